"""What does it cost to make a payload safe to store, beside the JSON encoder alone?

No database takes part, and a call is microseconds long: batches of calls are timed, the sides in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.measure import Bar, Bench, Figure, Question
from benchmarks.samples import output, records
from orchestrator_state.compression import Zstd
from orchestrator_state.encryption import AesGcm, KeyRing, new_key
from orchestrator_state.payloads import PLAIN, Payloads, decode, encode

_IDENTITY: Final = "step_states/9f1c6a1e-5f0e-4f52-8a43-0d5d1c0f7a11/load/outputs"
_CALLS: Final = 20
"""In one batch, which is so short that it is seldom interrupted."""
_BATCHES: Final = 50
_DOCUMENTS: Final = Path(__file__).parent.parent / "docs"


async def _measure(bench: Bench) -> list[Figure]:
    return [*_encoding(bench), *_compression(bench), *_encryption(bench)]


def _encoding(bench: Bench) -> list[Figure]:
    figures = []
    for what, value in (("text", output(bench.size)), ("records", records(bench.size))):
        assert decode(encode(value, "outputs"), "outputs") == value
        bare = partial(msgspec.json.encode, value)
        for name, side in (("encoded", _encoded), ("encoded, with digest", _sealed)):
            rounds = [_time(partial(side, value), bench) / _time(bare, bench) for _ in range(bench.rounds)]
            figures.append(
                Figure(what=f"2 KB of {what} {name} / the encoder alone", unit="x", rounds=rounds, bar=Bar(1.5))
            )
    return figures


def _encoded(value: Any) -> object:
    return encode(value, "outputs")


def _sealed(value: Any) -> object:
    return PLAIN.seal(encode(value, "outputs"), _IDENTITY)


def _compression(bench: Bench) -> list[Figure]:
    codec, chat = Zstd(), encode(_chat_history(100_000), "outputs").encode()
    packed = codec.encode(chat, b"")
    assert packed is not None
    stored = Payloads([codec]).seal(chat.decode(), _IDENTITY).text
    return [
        Figure(
            what="100 KB of chat, compressed",
            unit="x smaller",
            rounds=[len(chat) / len(packed)],
            bar=Bar(4.0, at_least=True),
            beside={"as stored text": len(chat) / len(stored)},
        ),
        Figure(
            what="100 KB of chat, time to compress",
            unit="ms",
            rounds=[_time(lambda: codec.encode(chat, b""), bench) / 1e3 for _ in range(bench.rounds)],
            bar=Bar(1.0),
        ),
    ]


def _encryption(bench: Bench) -> list[Figure]:
    encrypted, text = Payloads([AesGcm(KeyRing({"k": new_key()}, "k"))]), encode(output(bench.size), "outputs")
    stored = {payloads: payloads.seal(text, _IDENTITY) for payloads in (PLAIN, encrypted)}

    def seal(payloads: Payloads) -> object:
        return payloads.seal(text, _IDENTITY)

    def unseal(payloads: Payloads) -> object:
        return payloads.open(*stored[payloads], _IDENTITY, "outputs")

    figures = []
    for what, call in (("sealed", seal), ("opened", unseal)):
        rounds = [
            _time(partial(call, encrypted), bench) - _time(partial(call, PLAIN), bench) for _ in range(bench.rounds)
        ]
        figures.append(Figure(what=f"2 KB {what} with AES-GCM, added", unit="µs", rounds=rounds, bar=Bar(20.0)))
    return figures


def _chat_history(size: int) -> list[dict[str, Any]]:
    """About `size` bytes of questions, what a tool found, and answers that quote it; prose is of our documents."""
    prose = "\n".join(path.read_text() for path in sorted(_DOCUMENTS.rglob("*.md")))
    chat: list[dict[str, Any]] = []
    for number in range(size // 2200):
        question, answer = (prose[start : start + 400] for start in (number * 1000, number * 1000 + 400))
        found = records(1000)
        chat += [
            {"role": "user", "content": question},
            {"role": "tool", "name": "search", "content": found},
            {"role": "assistant", "content": f"{answer} You asked: {question}", "usage": found["usage"]},
        ]
    return chat


def _time(call: Callable[[], object], bench: Bench) -> float:
    """The microseconds of one call, in the best batch."""
    batches = []
    for _ in range(bench.scaled(_BATCHES)):
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        batches.append((time.perf_counter() - start) / _CALLS * 1e6)
    return min(batches)


PAYLOADS: Final = Question(name="payloads", measure=_measure, size=2048, quick_size=2048, databases=("sqlite",))
