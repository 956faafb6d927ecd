"""Why an endpoint does not answer, in its own words, and what to do about it."""

from __future__ import annotations

import re
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.teaching import chat

# Words of an endpoint's complaint, and what sets the field that it complains of. The
# first that is found counts; ``error.param`` is looked at before the message.
_FIELDS = (
    (
        r"context.(?:length|window|size)|maximum context",
        "show it less: fewer documents of a call (WINDOW), fewer words of each",
    ),
    (
        r"max_(?:completion_|output_)?tokens.*(?:too large|at most|exceed|less than)",
        "lower reply_tokens, or show fewer documents of a call (WINDOW)",
    ),
    (
        r"max_(?:completion_|output_)?tokens",
        "set --gin.LLM_TOKENS_FIELD to the field that it takes for the longest reply"
        " (often max_completion_tokens)",
    ),
    (
        r"\b(?P<field>temperature|seed|top_p)\b",
        "leave the field out: --gin.LLM_OMIT=\"('{field}',)\"",
    ),
    (
        r"too (?:long|large|many)",
        "show it less: fewer documents of a call (WINDOW), fewer words of each",
    ),
    (
        r"\b(?:system|developer)\b",
        'give a prompt without a system message: a prompt file with "user" alone',
    ),
    (r"\bmodel\b", "set LLM_MODEL to a name that this endpoint knows"),
)
_OTHER = (
    "LLM_OMIT leaves fields of the request out, LLM_TOKENS_FIELD names the longest"
    " reply, clients.Client.extra adds fields"
)


def refusal(
    config: Any, outcome: chat.Outcome, key: str | None, in_a_row: int = 0
) -> UserError:
    """Two lines for an endpoint that answers nothing.

    Args:
        config: the ``Client``.
        outcome: the call that ends the job.
        key: as it was sent.
        in_a_row: requests that failed alike; 0 where the first one did.
    """
    said = f": {outcome.detail}" if outcome.detail else ""
    if outcome.reason == chat.UNSENT:
        return UserError(
            f"{config.base_url}: no connection{said} (nothing was charged)",
            "start the endpoint, or set LLM_BASE_URL to its address",
        )
    times = f", {in_a_row} requests in a row" if in_a_row else ""
    what = f"{config.base_url}: {outcome.reason} for the model {config.model!r}"
    return UserError(f"{what}{times}{said}", _todo(config, outcome, key))


def _todo(config: Any, outcome: chat.Outcome, key: str | None) -> str:
    name, status = config.key_env, outcome.status
    if status in (400, 413, 422):
        texts = (outcome.detail, outcome.field, "too large" if status == 413 else "")
        if outcome.field and outcome.field != "messages":
            texts = (f"{outcome.field}: {outcome.detail}",)
        for text in texts:
            for pattern, todo in _FIELDS:
                found = re.search(pattern, text, re.IGNORECASE)
                if found:
                    return todo.format(**found.groupdict())
        return _OTHER
    if status in (301, 302, 307, 308):
        return "redirects are not followed: set LLM_BASE_URL to the new address"
    if outcome.reason == chat.NO_LOGPROBS:
        return "read the replies instead: --gin.judges.METHOD.logprobs=False"
    if outcome.reason == "empty, cut at max_tokens":
        return "raise reply_tokens: the model uses them up before it answers"
    return {
        401: f"set {name} to a key of this endpoint"
        + ("" if key else "; it is not set"),
        402: f"the account of the key in {name} is to be paid for",
        403: f"the key in {name} may not use this model",
        404: "check LLM_BASE_URL (often it ends in /v1) and the model's name",
        405: "check LLM_BASE_URL (often it ends in /v1)",
        429: "set requests_per_minute of clients.Client, or wait; the same command goes"
        " on",
    }.get(
        status or 0,
        "look at the endpoint and run the same command: what was answered is kept",
    )
