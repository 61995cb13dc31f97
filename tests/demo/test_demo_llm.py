"""The demo with an OpenAI-compatible endpoint instead of the extractive summaries."""

import io
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import ClassVar, cast

import pytest
from rich.console import Console

from orchestrator_state.demo import runner
from orchestrator_state.demo.llm import LlmError, summarise_with_llm
from orchestrator_state.errors import MissingExtra

pytestmark = pytest.mark.process


def answer(summary: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": summary}}]}).encode()


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that answers with `status` and `body`, or with the next number."""

    status: ClassVar[int]
    body: ClassVar[bytes]
    asked: ClassVar[list[tuple[str, str | None, dict[str, object]]]]
    numbers: ClassVar[Iterator[int] | None]

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        question = json.loads(self.rfile.read(length))
        type(self).asked.append((self.path, self.headers["Authorization"], question))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(answer(f"Answer {next(self.numbers)}.") if self.numbers else self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.status, Endpoint.asked, Endpoint.numbers = 200, [], None
    Endpoint.body = answer(" A model's\n summary. ")
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://user:s3cret@127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_a_part_is_sent_as_the_question_and_the_answer_is_the_summary(endpoint: str) -> None:
    assert summarise_with_llm(endpoint, "A sentence about a canal.") == "A model's summary."
    path, _, question = Endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert cast("list[dict[str, str]]", question["messages"])[-1]["content"] == "A sentence about a canal."


def demo(llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(runner, "WATCHABLE_SECONDS", 0.0)
    shown = io.StringIO()
    report = tmp_path / "report.md"
    status = runner.run_demo(db=None, input_dir=None, llm=llm, output=report, console=Console(file=shown, width=200))
    return status, shown.getvalue()


@pytest.mark.usefixtures("forked_workers")
def test_the_demo_keeps_its_promise_with_a_model_that_never_answers_twice_the_same(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Endpoint.numbers = count(1)
    status, shown = demo(endpoint, tmp_path, monkeypatch)
    assert status == 0, shown
    report = (tmp_path / "report.md").read_text()
    asked = len(Endpoint.asked)
    answers = [number for number in range(1, asked + 1) if f" Answer {number}.\n" in report]
    assert len(answers) == 12
    # The one that was under way at the kill was asked for again; no other was.
    assert asked == 13


@pytest.mark.usefixtures("forked_workers")
def test_a_model_that_cannot_be_reached_ends_the_demo_with_status_two_and_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, shown = demo("http://user:s3cret@127.0.0.1:1/v1", tmp_path, monkeypatch)
    assert status == 2
    assert "The demo cannot run: LlmError: 127.0.0.1 cannot be reached: ConnectError" in shown
    assert "s3cret" not in shown


def test_the_key_and_the_model_come_from_the_environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-1")
    monkeypatch.setenv("LLM_MODEL", "small")
    summarise_with_llm(endpoint.replace("user:s3cret@", "") + "/chat/completions", "text")
    path, authorization, question = Endpoint.asked[0]
    assert (path, authorization, question["model"]) == ("/v1/chat/completions", "Bearer k-1", "small")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"broken"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {"content": " "}}]}'),
        (200, b'{"choices": [{"message": {"content": ["a"]}}]}'),
    ],
)
def test_an_answer_without_a_summary_is_an_error_that_shows_no_password(
    endpoint: str, status: int, body: bytes
) -> None:
    Endpoint.status, Endpoint.body = status, body
    with pytest.raises(LlmError, match=r"^127\.0\.0\.1 answered") as caught:
        summarise_with_llm(endpoint, "text")
    assert "s3cret" not in str(caught.value)


def test_an_answer_with_half_a_surrogate_pair_or_a_nul_becomes_storable(endpoint: str) -> None:
    Endpoint.body = rb'{"choices": [{"message": {"content": "a\ud800b\u0000c"}}]}'
    assert summarise_with_llm(endpoint, "text") == "a?b c"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "not a url", "http://[::1", "ftp://host/v1"])
def test_an_endpoint_that_cannot_be_reached_is_an_error(url: str) -> None:
    with pytest.raises(LlmError, match="cannot be reached"):
        summarise_with_llm(url, "text")


def test_without_httpx_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtra, match=r"orchestrator-state\[llm\]"):
        summarise_with_llm("http://127.0.0.1:1/v1", "text")
