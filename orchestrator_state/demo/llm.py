"""Summaries from an OpenAI-compatible endpoint, instead of the extractive ones."""

import os
from urllib.parse import urlsplit

from orchestrator_state.errors import MissingExtra

TIMEOUT_SECONDS = 60.0
_PROMPT = "Summarise the text in at most two plain sentences. Answer with the summary alone."


class LlmError(RuntimeError):
    """The endpoint gave no usable summary. Names the host, never the URL, which may hold a password."""


def summarise_with_llm(url: str, text: str) -> str:
    """Ask `url` (".../v1" or the full ".../chat/completions") for a summary.

    The model is `LLM_MODEL` (default "default") and the key, if any, `OPENAI_API_KEY`.
    Raises `LlmError` when the endpoint refuses or answers nonsense, `MissingExtra` without httpx.
    """
    try:
        import httpx  # an extra, and nothing but this function needs it
    except ImportError as error:
        raise MissingExtra("--llm needs httpx: pip install 'orchestrator-state[llm]'", extra="llm") from error

    key = os.environ.get("OPENAI_API_KEY")
    target = url.rstrip("/")
    if not target.endswith("/chat/completions"):
        target += "/chat/completions"
    try:
        answer = httpx.post(
            target,
            json={
                "model": os.environ.get("LLM_MODEL", "default"),
                "temperature": 0,
                "messages": [{"role": "system", "content": _PROMPT}, {"role": "user", "content": text}],
            },
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_SECONDS,
        )
        answer.raise_for_status()
        content = answer.json()["choices"][0]["message"]["content"]
    except httpx.HTTPStatusError as error:
        raise LlmError(f"{_host(url)} answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LlmError(f"{_host(url)} cannot be reached: {type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        raise LlmError(f"{_host(url)} answered without a chat completion") from None
    if not isinstance(content, str) or not content.strip():
        raise LlmError(f"{_host(url)} answered with an empty summary")
    # A model may answer with what no database stores: a NUL, half a surrogate pair.
    return " ".join(content.replace("\0", " ").encode("utf-8", "replace").decode().split())


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "the LLM endpoint"
    except ValueError:
        return "the LLM endpoint"
