"""What is posted to an endpoint, and how its answer is read.

A request that has no ``read`` of its own is a chat (``clients.Request``). The others
stand here: a chat whose choice is read from log-probabilities, a query with documents
to score, and texts to embed. Their replies are text too, so that the one cache keeps
them: JSON, and of vectors the bytes in base 64.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from distill_jax.teaching import chat
from distill_jax.teaching.chat import Outcome
from distill_jax.teaching.ledger import reply_key
from distill_jax.text import replies
from distill_jax.text.replies import Reply

# As many as OpenAI gives; vLLM's default limit too.
_TOP = 20
# A probability below this one is treated as equal to it.
LEAST = math.log(1e-9)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A ``clients.Request``, or what has its fields."""

    request: Any
    path = "/chat/completions"

    def fields(self, tokens_field: str) -> dict[str, Any]:
        request = self.request
        return {
            "messages": [dict(turn) for turn in request.messages],
            "temperature": request.temperature,
            tokens_field: request.max_tokens,
            "seed": request.seed,
        }

    def key_fields(self) -> dict[str, Any]:
        # What is not sent, such as the seed, still tells requests apart.
        return {"seed": self.request.seed, "temperature": self.request.temperature}

    def tokens(self) -> tuple[int, int]:
        prompt = chat.estimated_tokens(self.request.messages)
        return prompt, int(self.request.max_tokens)

    def read(self, body: Any) -> Outcome:
        return chat.read(body)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A chat whose answer is one of a few words, read from log-probabilities.

    The reply is JSON, ``{choice: natural logarithm of its probability}``, taken at the
    first token after the thoughts that is a choice; forms of a word ("Yes", " yes")
    are summed. A choice that is not among the most probable tokens has at most the
    probability of the last of them, and at most what all of them leave: it gets that.

    Attributes:
        choices: in lower case.
    """

    id: str
    messages: Sequence[Mapping[str, str]]
    choices: tuple[str, ...]
    temperature: float = 0.0
    max_tokens: int = 4
    seed: int = 0
    path = Chat.path

    def fields(self, tokens_field: str) -> dict[str, Any]:
        asked = {"logprobs": True, "top_logprobs": _TOP}
        return Chat(self).fields(tokens_field) | asked

    def key_fields(self) -> dict[str, Any]:
        return Chat(self).key_fields() | {"choices": list(self.choices)}

    def tokens(self) -> tuple[int, int]:
        return Chat(self).tokens()

    def read(self, body: Any) -> Outcome:
        said = chat.read(body)
        if said.reply is None:
            return said
        # Not what is kept, but what was written, is what it took.
        said = dataclasses.replace(said, tokens=said.tokens or self.tokens())
        try:
            tokens = body["choices"][0]["logprobs"]["content"]
            steps = [
                (
                    str(step["token"]),
                    {
                        str(top["token"]): float(top["logprob"])
                        for top in step["top_logprobs"]
                    },
                )
                for step in tokens
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            steps = []
        if not any(top for _, top in steps):
            return dataclasses.replace(said, reply=None, reason=chat.NO_LOGPROBS)
        found, reason = choice_logprobs(steps, self.choices)
        if found is None:
            return dataclasses.replace(said, reply=None, reason=reason)
        return dataclasses.replace(said, reply=Reply(json.dumps(found)))


@dataclasses.dataclass(frozen=True)
class Rerank:
    """A query and documents to score: ``/rerank`` of Jina, Cohere, vLLM, or TEI.

    The reply is a JSON list of float, in the documents' order.

    Attributes:
        documents_field: "documents", or "texts" where TEI wants that.
    """

    id: str
    query: str
    documents: tuple[str, ...]
    documents_field: Literal["documents", "texts"] = "documents"
    path = "/rerank"

    def fields(self, tokens_field: str) -> dict[str, Any]:
        del tokens_field
        return {"query": self.query, self.documents_field: list(self.documents)}

    def key_fields(self) -> dict[str, Any]:
        return {"path": self.path}

    def tokens(self) -> tuple[int, int]:
        # Each document is read together with the query.
        texts = [text for document in self.documents for text in (self.query, document)]
        return _estimated(texts), 0

    def read(self, body: Any) -> Outcome:
        tokens, scores = _usage(body) or self.tokens(), {}
        try:
            results = body if isinstance(body, list) else _items(body)
            for result in results:
                score = result.get("relevance_score", result.get("score"))
                if not isinstance(result["index"], int) or isinstance(score, bool):
                    raise TypeError
                scores[result["index"]] = float(score)
        except (KeyError, TypeError, ValueError, AttributeError):
            return _unreadable(body, "no scores", tokens)
        count = len(self.documents)
        if set(scores) != set(range(count)) or len(results) != count:
            reason = f"{len(results)} scores of {count} documents"
            return Outcome(reason=reason, status=200, tokens=tokens)
        values = [scores[index] for index in range(count)]
        if not all(map(math.isfinite, values)):
            return Outcome(reason="scores not finite", status=200, tokens=tokens)
        return Outcome(reply=Reply(json.dumps(values)), status=200, tokens=tokens)


@dataclasses.dataclass(frozen=True)
class Embed:
    """Texts to embed: ``/embeddings`` in OpenAI's form.

    The reply is a float32 array [M, E]; ``vectors_in`` reads it.
    """

    id: str
    texts: tuple[str, ...]
    path = "/embeddings"

    def fields(self, tokens_field: str) -> dict[str, Any]:
        del tokens_field
        return {"input": list(self.texts)}

    def key_fields(self) -> dict[str, Any]:
        return {"path": self.path}

    def tokens(self) -> tuple[int, int]:
        return _estimated(self.texts), 0

    def read(self, body: Any) -> Outcome:
        tokens, count = _usage(body) or self.tokens(), len(self.texts)
        try:
            items = _items(body)
            found = {int(item["index"]): item["embedding"] for item in items}
            rows = [found[index] for index in range(count)]
            vectors = np.asarray(rows, np.float32)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return _unreadable(body, "no vectors", tokens)
        if vectors.ndim != 2 or len(items) != count or not vectors.shape[-1]:
            reason = f"vectors of shape {vectors.shape} for {count} texts"
            return Outcome(reason=reason, status=200, tokens=tokens)
        text = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
        reply = Reply(f"{count}:{text}")
        return Outcome(reply=reply, status=200, tokens=tokens)


def vectors_in(reply: str) -> np.ndarray:
    """float32[M, E]: the vectors of a reply to ``Embed``."""
    count, _, text = reply.partition(":")
    flat = np.frombuffer(base64.b64decode(text), "<f4")
    return flat.reshape(int(count), -1).astype(np.float32)


def call_of(request: Any) -> Any:
    """The request itself, if it says what is posted; a chat, if it does not."""
    return request if hasattr(request, "read") else Chat(request)


def payload(request: Any, config: Any) -> dict[str, Any]:
    """What is posted.

    Args:
        config: the ``Client``: its model, and the fields that it omits or adds.
    """
    fields = {"model": config.model, **call_of(request).fields(config.tokens_field)}
    fields |= config.extra or {}
    return {name: value for name, value in fields.items() if name not in config.omit}


def key(request: Any, config: Any) -> str:
    """SHA-256 of what the reply depends on."""
    fields = payload(request, config)
    fields.pop("model", None)
    messages = fields.pop("messages", ())
    return reply_key(config.model, messages, fields | call_of(request).key_fields())


def choice_logprobs(
    steps: Sequence[tuple[str, Mapping[str, float]]], choices: Sequence[str]
) -> tuple[dict[str, float] | None, str]:
    """``({choice: log-probability}, "")``, or None and why there is none.

    Args:
        steps: (token, log-probabilities of the most probable tokens) of a reply.
    """
    text = "".join(token for token, _ in steps)
    answer, failure = replies.answer(text)
    if failure:
        return None, failure
    # Where the answer begins: it is the reply's end without blanks around it.
    start = len(text.rstrip()) - len(answer)
    after, end = [], 0
    for token, top in steps:
        end += len(token)
        if end > start:
            after.append((token, top))
    at = next((top for token, top in after if word(token) in choices), after[0][1])
    sums: dict[str, float] = {}
    for token, logprob in at.items():
        if (said := word(token)) in choices:
            sums[said] = float(np.logaddexp(sums.get(said, -math.inf), logprob))
    if not sums:
        return None, "no choice among the log-probabilities"
    rest = 1.0 - sum(math.exp(min(logprob, 0.0)) for logprob in at.values())
    least = min(*at.values(), math.log(max(rest, 1e-9))) if at else LEAST
    return {each: max(sums.get(each, least), LEAST) for each in choices}, ""


def word(token: str) -> str:
    """A token without blanks and marks around it, in lower case."""
    return token.strip(" \t\n▁Ġ\"'`*_[](){}<>.,:;!?#").casefold()


def _items(body: Any) -> list[Any]:
    """The list of results, under the names that servers give it."""
    for name in ("results", "data"):
        if isinstance(body.get(name), list):
            return body[name]
    raise KeyError("results")


def _unreadable(body: Any, reason: str, tokens: tuple[int, int] | None) -> Outcome:
    detail, field = chat.complaint(body)
    return Outcome(
        reason=reason, detail=detail, field=field, again=True, status=200, tokens=tokens
    )


def _usage(body: Any) -> tuple[int, int] | None:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return None
    read = usage.get("prompt_tokens", usage.get("total_tokens"))
    if isinstance(read, int) and 0 <= read < 1 << 40:
        return read, 0
    return None


def _estimated(texts: Sequence[str]) -> int:
    return chat.estimated_tokens([{"content": text} for text in texts])
