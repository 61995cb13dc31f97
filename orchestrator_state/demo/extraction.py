"""Splitting, scoring and summarising a text: pure functions from text to plain JSON values."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

PARAGRAPH_WORDS, SENTENCE_WORDS, PART_WORDS = 120, 300, 600
TERMS_PER_DOCUMENT = 30
SENTENCES_PER_PART = 2
SENTENCE_CHARACTERS = 320
HEADING_WORDS = 5

WORD = re.compile(r"\S+")
_TERM = re.compile(r"[^\W\d_]{3,}")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"')”\u2019])\s+|(?<=[。\uff01\uff1f])")
_COMMON_WORDS = """
about after all also and any are because been before began both but can could did does down each even every
for from gave had has have her here him his how however into its itself like made many may might more most
much must never nor not now off once one only other our out over own same say she should since some still
such than that the their them then there these they this those thought through too two under until upon very
was way were what when where which while who whom whose why will with would yet you your
"""
_COMMON = frozenset(_COMMON_WORDS.split())

Span = list[int]  # [start, end]; a tuple would come back from JSON as a list


def split(text: str) -> list[Span]:
    """Parts of a text as [start, end]: up to a paragraph once long enough, to a sentence once too long."""
    words = [match.span() for match in WORD.finditer(text)]
    if not words:
        return []
    spans: list[Span] = []
    start, count = words[0][0], 0
    for (_, end), (following, _) in pairwise(words):
        count += 1
        if (
            (count >= PARAGRAPH_WORDS and text.count("\n", end, following) > 1)
            or (count >= SENTENCE_WORDS and text[end - 1] in ".!?")
            or count >= PART_WORDS
        ):
            spans.append([start, end])
            start, count = following, 0
    return [*spans, [start, words[-1][1]]]


def score(texts: list[str], spans: list[list[Span]]) -> list[dict[str, float]]:
    """The weightiest terms of each document, by tf-idf with the parts of all documents as the collection."""
    parts = [text[start:end] for text, pieces in zip(texts, spans, strict=True) for start, end in pieces]
    spread = Counter(term for part in parts for term in set(_terms(part)))
    weights = []
    for text in texts:
        counts = Counter(_terms(text))
        total = sum(counts.values())
        weighted = {
            term: round(1000 * count / total * (1 + math.log((1 + len(parts)) / (1 + spread[term]))), 3)
            for term, count in counts.items()
        }
        weights.append(heaviest(weighted, TERMS_PER_DOCUMENT))
    return weights


def summarise(text: str, weights: dict[str, float]) -> str:
    """The sentences that carry the most weight for their length, in the order of the text."""
    sentences = [
        " ".join(sentence.split()) for paragraph in _PARAGRAPH.split(text) for sentence in _SENTENCE.split(paragraph)
    ]
    sentences = [sentence for sentence in sentences if sentence]
    # A heading is short, unpunctuated and full of weighty terms; it counts only where there is nothing else.
    candidates = [
        index
        for index, sentence in enumerate(sentences)
        if len(sentence.split()) > HEADING_WORDS and not sentence[-1].isalnum()
    ]

    def weight(index: int) -> float:
        terms = sorted(set(_terms(sentences[index])))
        return sum(weights.get(term, 0.0) for term in terms) / math.sqrt(len(sentences[index].split()))

    chosen = sorted(candidates or range(len(sentences)), key=lambda index: (-weight(index), index))
    return " ".join(_cut(sentences[index]) for index in sorted(chosen[:SENTENCES_PER_PART]))


def _terms(text: str) -> Iterable[str]:
    return (term for term in _TERM.findall(text.lower()) if term not in _COMMON)


def heaviest(weights: dict[str, float], count: int) -> dict[str, float]:
    """Ties fall alphabetically, so that two runs agree to the byte."""
    return dict(sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:count])


def _cut(sentence: str) -> str:
    if len(sentence) <= SENTENCE_CHARACTERS:
        return sentence
    return f"{sentence[: SENTENCE_CHARACTERS - 1].rstrip()}…"
