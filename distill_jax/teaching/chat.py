"""One call of an endpoint, and what came of it; and how a chat's answer is read.

Nothing of the key, which is in a header only, reaches an outcome: exceptions are kept
by their kind alone, since some quote the headers, and an endpoint's own words are
searched for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_jax.teaching.limits import retry_after
from distill_jax.text.replies import Reply

# Worth another try: the endpoint is busy, restarting, or lost the request.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# What makes every request fail alike.
REFUSED = frozenset({301, 302, 307, 308, 400, 401, 402, 403, 404, 405, 413, 422})
# The reason of a call that no endpoint has received; it is not charged.
UNSENT = "no connection"
# The reason of a reply without the log-probabilities that it was to have.
NO_LOGPROBS = "no log-probabilities"
# Reasons that would be the same for every request.
ALIKE = frozenset({UNSENT, NO_LOGPROBS})
# Bytes of a body, decoded: twice a whole context of a million tokens, or 32 vectors of
# 4,096 numbers.
_LONGEST_BODY = 1 << 22
_LONGEST_ERROR = 1 << 16


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one call.

    Attributes:
        reply: the text, marked where it was cut; None when the call failed.
        reason: of a failure, in a few words; they are counted by it.
        detail: what the endpoint, or the network, says of a failure, in its own words
            and without the key.
        field: the request's field that the endpoint complains of; "" where unknown.
        again: another attempt may succeed.
        wait: seconds of the endpoint's Retry-After.
        status: of HTTP; None where there was no answer.
        tokens: (prompt, completion) as charged; None when the endpoint does not say.
    """

    reply: Reply | None = None
    reason: str = ""
    detail: str = ""
    field: str = ""
    again: bool = False
    wait: float | None = None
    status: int | None = None
    tokens: tuple[int, int] | None = None


async def ask(
    http: Any,
    url: str,
    payload: Mapping[str, Any],
    key: str | None,
    seconds: float,
    reads: Callable[[Any], Outcome],
) -> Outcome:
    """Posts one request; never raises but when it is cancelled.

    Args:
        http: an ``httpx.AsyncClient``.
        seconds: for the whole of it; a byte a second does not keep it open.
        reads: what the JSON of an answer means.
    """
    import httpx

    # Compressed bodies cost little to send and much to read.
    headers = {"Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        async with (
            asyncio.timeout(seconds),
            http.stream("POST", url, json=payload, headers=headers) as response,
        ):
            status = response.status_code
            longest = _LONGEST_BODY if status == 200 else _LONGEST_ERROR
            body = await _body(response, longest)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return Outcome(reason=UNSENT, detail=_cause(error), again=True, tokens=(0, 0))
    except (TimeoutError, httpx.TimeoutException):
        return Outcome(reason="time-out", again=True)
    except httpx.HTTPError as error:
        return Outcome(reason=type(error).__name__, again=True)
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        return Outcome(reason=type(error).__name__, tokens=(0, 0))
    except zlib.error:
        return Outcome(reason="malformed compression", again=True, status=status)
    if status != 200:
        said, field = _complaint(_hidden(key, body or b""))
        return Outcome(
            reason=f"HTTP {status}",
            detail=_without(key, said),
            field=field,
            again=status in _PASSING,
            wait=retry_after(response.headers.get("retry-after"), time.time()),
            status=status,
            # A refusal is not charged.
            tokens=(0, 0),
        )
    if body is None:
        return Outcome(reason="reply too long", status=status)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return Outcome(reason="malformed JSON", again=True, status=status)
    outcome = reads(found)
    return dataclasses.replace(outcome, detail=_without(key, outcome.detail))


async def _body(response: Any, longest: int) -> bytes | None:
    """The decoded body, or its first ``longest`` bytes of an error; None if longer."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise ValueError(coding)
    # 32: the header says whether it is gzip or zlib.
    unpack = None if coding in ("", "identity") else zlib.decompressobj(wbits=32 + 15)
    body = bytearray()
    async for chunk in response.aiter_raw(1 << 16):
        room = longest + 1 - len(body)
        body += chunk[:room] if unpack is None else unpack.decompress(chunk, room)
        if len(body) > longest:
            return None if response.status_code == 200 else bytes(body[:longest])
    return bytes(body)


def read(body: Any) -> Outcome:
    """The reply in the body of an answer, or why there is none."""
    tokens = _usage(body)
    try:
        choice = body["choices"][0]
        content = choice["message"].get("content")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        detail, field = complaint(body)
        return Outcome(
            reason="no choices",
            detail=detail,
            field=field,
            again=True,
            status=200,
            tokens=tokens,
        )
    if finish == "content_filter":
        return Outcome(reason="content filter", status=200, tokens=tokens)
    cut = finish in ("length", "max_tokens")
    text = _text(content)
    if text is None or not text.strip():
        # A model that thinks may use up its tokens before it answers: asking again
        # would cost the same and give the same.
        reason = "empty, cut at max_tokens" if cut else "empty"
        return Outcome(reason=reason, again=not cut, status=200, tokens=tokens)
    # A lone surrogate, which JSON can carry, cannot be stored as UTF-8; a reply is the
    # same from the endpoint and from the cache.
    text = text.encode("utf-8", "replace").decode()
    return Outcome(reply=Reply(text, cut), status=200, tokens=tokens)


def _complaint(body: bytes) -> tuple[str, str]:
    """The endpoint's error message for a refused request, and the field it names."""
    try:
        said, field = complaint(json.loads(body))
    except (ValueError, RecursionError):
        said, field = "", ""
    if not said:
        text = body.decode("utf-8", "replace").strip()
        said = "" if text.startswith("<") else text.partition("\n")[0]
    return _line(said), field


def complaint(body: Any) -> tuple[str, str]:
    """``error.message`` and ``error.param``, in the forms that servers give them."""
    if not isinstance(body, dict):
        return "", ""
    error = body.get("error", body)
    if isinstance(error, str):
        return _line(error), ""
    if not isinstance(error, dict):
        return "", ""
    said = error.get("message") or error.get("detail") or error.get("error")
    if isinstance(said, list | dict):
        said = json.dumps(said, ensure_ascii=False)[:1000]
    field = error.get("param")
    return _line(said if isinstance(said, str) else ""), (
        field if isinstance(field, str) else ""
    )


def _line(text: str) -> str:
    text = "".join(c if c.isprintable() else " " for c in text[:2000])
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def _without(key: str | None, text: str) -> str:
    return text.replace(key, "(the key)") if key else text


def _hidden(key: str | None, body: bytes) -> bytes:
    # Before anything is cut, which could leave a part of a key; a short one ("x", as
    # local servers want it) would be found in the middle of words.
    return body.replace(key.encode(), b"(the key)") if key and len(key) > 7 else body


def _cause(error: BaseException) -> str:
    """The system's reason for a failed connection."""
    found, waiting = "", [error]
    for _ in range(16):
        if not waiting:
            break
        at = waiting.pop()
        if isinstance(at, OSError) and at.errno is not None:
            found = os.strerror(at.errno) if at.errno > 0 else str(at.strerror)
            if isinstance(at, socket.gaierror | ssl.SSLError):
                found = str(at.strerror or at)
        elif isinstance(at, BaseExceptionGroup):
            waiting += at.exceptions
        waiting += [e for e in (at.__context__, at.__cause__) if e is not None]
    return _line(found or str(error) or type(error).__name__)


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
