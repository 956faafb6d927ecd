"""One call of an OpenAI-compatible ``/chat/completions``, and what came of it.

Nothing of the key, which is in a header only, reaches an outcome: exceptions are kept
by their kind alone, since some quote the headers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.teaching.limits import retry_after

# Worth another try: the endpoint is busy, restarting, or lost the request.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# What makes every request fail alike.
REFUSED = frozenset({401, 403, 404})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Attributes:
        reply: the text; None when the call failed.
        reason: of a failure, in a few words; they are counted by it.
        again: another attempt may succeed.
        wait: seconds that the endpoint asked for.
        status: of HTTP; None where there was no answer.
        tokens: (prompt, completion) as charged; None when the endpoint does not say.
    """

    reply: str | None = None
    reason: str = ""
    again: bool = False
    wait: float | None = None
    status: int | None = None
    tokens: tuple[int, int] | None = None


async def ask(
    http: Any, url: str, payload: Mapping[str, Any], key: str | None, seconds: float
) -> Outcome:
    """Posts one chat; never raises but when it is cancelled.

    Args:
        http: an ``httpx.AsyncClient``.
        seconds: for the whole of it; a byte a second does not keep it open.
    """
    import httpx

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        async with asyncio.timeout(seconds):
            response = await http.post(url, json=payload, headers=headers)
    except TimeoutError:
        return Outcome(reason="time-out", again=True)
    except httpx.TimeoutException:
        return Outcome(reason="time-out", again=True)
    except httpx.HTTPError as error:
        return Outcome(reason=type(error).__name__, again=True)
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        return Outcome(reason=type(error).__name__)
    status = response.status_code
    if status != 200:
        return Outcome(
            reason=f"HTTP {status}",
            again=status in _PASSING,
            wait=retry_after(response.headers.get("retry-after"), time.time()),
            status=status,
            # A refusal is not charged.
            tokens=(0, 0),
        )
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return Outcome(reason="malformed JSON", again=True, status=status)
    return read(body)


def read(body: Any) -> Outcome:
    """The reply in the body of an answer, or why there is none."""
    tokens = _usage(body)
    try:
        choice = body["choices"][0]
        content = choice["message"].get("content")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Outcome(reason="no choices", again=True, status=200, tokens=tokens)
    if finish == "content_filter":
        return Outcome(reason="content filter", status=200, tokens=tokens)
    text = _text(content)
    if text is None or not text.strip():
        # A model that thinks may use up its tokens before it answers: asking again
        # would cost the same and give the same.
        cut = finish == "length"
        reason = "empty, cut at max_tokens" if cut else "empty"
        return Outcome(reason=reason, again=not cut, status=200, tokens=tokens)
    return Outcome(reply=text, status=200, tokens=tokens)


def estimated_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Rather too many: a third of the UTF-8 bytes, and what wraps each turn.

    English has some 4.5 bytes a token, Chinese some 3.
    """
    size = sum(
        len(turn["content"].encode("utf-8", "surrogatepass")) for turn in messages
    )
    return size // 3 + 8 * len(messages) + 8


def _text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _usage(body: Any) -> tuple[int, int] | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    found = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    if all(isinstance(n, int) and 0 <= n < 1 << 40 for n in found):
        return found  # type: ignore[return-value]
    return None
