"""The document pipeline: read, split, score, summarise, combine, write.

Every function takes and returns plain JSON values and knows nothing of the store, so each of them can be a
durable step. `process` is the order in which they run; `run.step` is what makes them durable.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, TypeVarTuple

from orchestrator_state.demo.extraction import WORD, heaviest, score, split, summarise
from orchestrator_state.demo.llm import summarise_with_llm

NAME = "documents"
CORPUS = Path(__file__).parent / "corpus"
SUFFIXES = (".txt", ".md")
# Each checkpoint holds every text read so far, so the input of a demo is kept to what a snapshot can carry.
MAX_FILES = 2000
MAX_BYTES = 2_000_000
STEPS_PER_STAGE = 30

TITLE_CHARACTERS = 80
LABEL_CHARACTERS = 200  # a step id may have 255

_MARKUP = re.compile(r"([\\`*_\[\]<>#|])")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DocumentError(ValueError):
    """The input cannot be processed as it is; the message says which file or directory, and why."""


class Document(TypedDict):
    """One file as it was read. `undecodable` counts the characters that are not UTF-8 text."""

    name: str
    title: str
    text: str
    words: int
    undecodable: int


class Report(TypedDict):
    """What was written: the size and the digest of the report's bytes."""

    bytes: int
    sha256: str


class Step(Protocol):
    """`run.step`, or what stands in front of it."""

    async def __call__(self, step_id: str, fn: Callable[[*Ts], T], /, *args: *Ts) -> T: ...


async def process(step: Step, source: str, output: str, llm: str | None = None) -> Report:
    """Summarise every text file under `source` into a Markdown report at `output`, one step at a time."""
    names = await step("discover", discover, source)
    labels = [_label(number, name) for number, name in enumerate(names, 1)]
    documents = await _each(step, "read", read, labels, [(source, name) for name in names])
    texts = [document["text"] for document in documents]
    spans = await _each(step, "split", split, labels, [(text,) for text in texts])
    weights = await step("score", score, texts, spans)
    parts = [
        (f"{label} part {number}", text[start:end], own)
        for label, text, own, places in zip(labels, texts, weights, spans, strict=True)
        for number, (start, end) in enumerate(places, 1)
    ]
    labels = [label for label, _, _ in parts]
    if llm:
        summaries = await _each(step, "summarise", summarise_with_llm, labels, [(llm, part) for _, part, _ in parts])
    else:
        summaries = await _each(step, "summarise", summarise, labels, [(part, own) for _, part, own in parts])
    remaining = iter(summaries)
    report = await step("combine", combine, documents, weights, [list(islice(remaining, len(own))) for own in spans])
    return await step("write", write, output, report)


async def _each(
    step: Step, verb: str, fn: Callable[..., T], labels: Sequence[str], calls: Sequence[tuple[object, ...]]
) -> list[T]:
    """A step per call; where there are many calls, several share a step, since each step saves a snapshot of all."""
    size = math.ceil(len(calls) / STEPS_PER_STAGE)
    results: list[T] = []
    for start in range(0, len(calls), size or 1):
        batch = calls[start : start + size]
        label = labels[start] if size == 1 else f"{start + 1} to {start + len(batch)} of {len(calls)}"
        results += await step(f"{verb} {label}", _call_each, fn, batch)
    return results


def _call_each(fn: Callable[..., T], calls: Sequence[tuple[object, ...]]) -> list[T]:
    return [fn(*call) for call in calls]


def discover(source: str) -> list[str]:
    """The text files under a directory, as sorted relative paths; hidden ones are left out."""
    root, shown = Path(source), _printable(source)
    if not root.is_dir():
        raise DocumentError(f"the input is not a directory: {shown}")
    try:
        found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in found}
    except OSError as error:
        raise DocumentError(f"cannot read {shown}: {error.strerror}") from error
    names = sorted(name for name in sizes if not any(part.startswith(".") for part in name.split("/")))
    if not names:
        raise DocumentError(f"no {' or '.join(SUFFIXES)} files in {shown}")
    if len(names) > MAX_FILES:
        raise DocumentError(f"{len(names)} files in {shown}; the demo takes up to {MAX_FILES}")
    if (size := sum(sizes[name] for name in names)) > MAX_BYTES:
        raise DocumentError(f"{size:,} bytes of text in {shown}; the demo takes up to {MAX_BYTES:,}")
    for name in names:
        if _printable(name) != name:
            raise DocumentError(f"the name of a file is not text: {_printable(name)}")
    return names


def read(source: str, name: str) -> Document:
    """One file as text; what is not UTF-8 becomes U+FFFD and is counted, so a stray byte ends nothing."""
    try:
        data = (Path(source) / name).read_bytes()
    except OSError as error:
        raise DocumentError(f"cannot read {name}: {error.strerror}") from error
    text = data.decode("utf-8-sig", errors="replace").replace("\0", "\ufffd")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first, _, rest = text.strip().partition("\n")
    title = first.strip("# ") if len(first) <= TITLE_CHARACTERS and rest.startswith("\n") else ""
    words, undecodable = len(WORD.findall(text)), text.count("\ufffd")
    return Document(name=name, title=title or name, text=text, words=words, undecodable=undecodable)


def combine(documents: list[Document], weights: list[dict[str, float]], summaries: list[list[str]]) -> str:
    """The report as Markdown: the terms of the whole collection, then each document part by part."""
    total: dict[str, float] = {}
    for own in weights:
        for term, weight in own.items():
            total[term] = total.get(term, 0.0) + weight
    words = sum(document["words"] for document in documents)
    parts = sum(map(len, summaries))
    lines = [
        f"# A summary of {len(documents)} documents",
        "",
        f"{words:,} words in {parts} parts.",
        "",
        f"Key terms: {_listed(total, 10)}.",
    ]
    for document, own, summary in zip(documents, weights, summaries, strict=True):
        origin = f"{_escaped(document['name'])}, {document['words']:,} words."
        lines += ["", f"## {_escaped(document['title'])}", "", f"{origin} Key terms: {_listed(own, 6)}."]
        if document["undecodable"]:
            lines += ["", f"{document['undecodable']:,} characters of this file are not UTF-8 text."]
        if summary:
            lines += ["", *(f"{number}. {_escaped(text)}" for number, text in enumerate(summary, 1))]
    return "\n".join(lines) + "\n"


def write(output: str, report: str) -> Report:
    """Put the report in place whole: a reader, or a crash, sees the old file or the new one."""
    path, data = Path(output), report.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DocumentError(f"cannot write {_printable(output)}: {error.strerror}") from error
    return Report(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _listed(weights: dict[str, float], count: int) -> str:
    return ", ".join(heaviest(weights, count)) or "none"


def _label(number: int, name: str) -> str:
    """A name short enough for a step id; the number keeps it unique where the end of a path is not."""
    return name if len(name) <= LABEL_CHARACTERS else f"{number}…{name[-LABEL_CHARACTERS:]}"


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _printable(name: str) -> str:
    """A file name with undecodable bytes spelled out; such a name can be neither stored nor printed."""
    return name.encode("utf-8", "backslashreplace").decode()
