"""What a call of a model costs, by the lists of `genai-prices`, if that is installed."""

from __future__ import annotations

from functools import cache
from typing import Any

from orchestrator_state import hooks
from orchestrator_state.runs.spending.amounts import as_nano


def price_of(model: str, provider: str | None, input_tokens: int, output_tokens: int) -> int | None:
    """In billionths of a US dollar. None: nobody knows. Whatever that library does, no step fails of it."""
    if (prices := _library()) is None:
        return None
    try:
        usage = prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        found = prices.calc_price(usage, model_ref=model, provider_id=provider)
        return as_nano(found.total_price, "cost")
    except LookupError:
        return None  # a model that it does not know
    except Exception as error:  # noqa: BLE001 - another's code, and the price is not what the step is about
        _complain(type(error).__qualname__)
        return None


@cache
def _library() -> Any:
    try:
        import genai_prices
    except ImportError:
        return None
    except Exception as error:  # noqa: BLE001 - as above
        _complain(type(error).__qualname__)
        return None
    return genai_prices


@cache  # once: else each call of a model would say it
def _complain(error_type: str) -> None:
    hooks.logger.warning("genai-prices raised %s: what calls of models cost is not known", error_type)
