"""Judges behind an endpoint: what is posted to them, and what their replies mean.

``Pointwise`` (an LLM) and ``Scoring`` (a ``/rerank`` endpoint) give a document a score;
``Pairwise`` (an LLM) says which of two is better.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.teaching import parsing, prompts
from distill_jax.teaching.calls import Judged, Rerank
from distill_jax.teaching.clients import Request
from distill_jax.teaching.pairs import sigmoid
from distill_jax.text import replies


class Scorer(Protocol):
    """How documents are shown and scored."""

    @property
    def tries(self) -> int:
        """Calls for a reply that can be used."""
        ...

    @property
    def at_once(self) -> int:
        """Documents of a call."""
        ...

    def request(
        self, id: str, query: str, documents: Sequence[str], attempt: int
    ) -> Any: ...

    def scores(
        self, reply: str | None, count: int
    ) -> tuple[Sequence[float] | None, str]:
        """The documents' scores, or None and why there are none."""
        ...

    def provenance(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chatting(abc.ABC):
    """What LLM judges share.

    Attributes:
        logprobs: the judgement is read from the log-probabilities of the first token;
            False reads it from the reply.
        prompt: a shipped name or a path; None takes the one that fits.
        words: what is shown of a document.
        temperature: of the first try; further ones use at least 0.7.
        tries: calls for a reply that can be used.
        reply_tokens: longest reply; models that think need more than the default.
        seed: of the sampling.
    """

    logprobs: bool = True
    prompt: str | None = None
    words: int = 300
    temperature: float = 0.0
    tries: int = 2
    reply_tokens: int | None = None
    seed: int = 0

    @property
    @abc.abstractmethod
    def _prompt(self) -> str:
        """The shipped prompt that fits."""

    @property
    @abc.abstractmethod
    def _choices(self) -> tuple[str, ...]:
        """The answers whose log-probabilities are read."""

    @property
    def _example(self) -> str:
        return ""

    def request(
        self, id: str, query: str, documents: Sequence[str], attempt: int
    ) -> Any:
        """The chat about some documents."""
        messages = prompts.load(self.prompt or self._prompt).messages(
            prompts.plain(query, self.words),
            [prompts.plain(text, self.words) for text in documents],
            example=self._example,
        )
        sampled = attempt or self.temperature
        how: dict[str, Any] = {
            "id": f"{id}/{attempt}",
            "messages": messages,
            "temperature": max(self.temperature, 0.7) if attempt else self.temperature,
            "seed": int(digest(self.seed, id.partition("/")[2], attempt)[:7], 16)
            if sampled
            else self.seed,
            "max_tokens": self.reply_tokens or (4 if self.logprobs else 16),
        }
        return Judged(**how, choices=self._choices) if self.logprobs else Request(**how)

    def provenance(self) -> dict[str, Any]:
        prompt = prompts.load(self.prompt or self._prompt)
        method = dataclasses.asdict(dataclasses.replace(self, prompt=None))
        return {
            "prompt": prompt.name, "prompt_digest": prompt.digest, "method": method
        }  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointwise(_Chatting):
    """An LLM judges one document a call.

    Attributes:
        scale: "yes_no": the log-odds of Yes over No (Nogueira et al. 2020's score), of
            replies 1 or 0; or "graded": a number from 0 to ``most``, with
            log-probabilities its expectation (Zhuang et al. 2023, RG-S).
        most: the best grade; a single digit with log-probabilities.
    """

    scale: Literal["yes_no", "graded"] = "yes_no"
    most: int = 3
    at_once = 1

    def __post_init__(self) -> None:
        if self.scale == "graded" and self.logprobs and self.most > 9:
            raise UserError(
                f"grades from 0 to {self.most}, read from the log-probabilities of one "
                "token",
                "use most=9 or less, or logprobs=False",
            )

    @property
    def _prompt(self) -> str:
        return "yes_no" if self.scale == "yes_no" else "grades"

    @property
    def _choices(self) -> tuple[str, ...]:
        if self.scale == "yes_no":
            return ("yes", "no")
        return tuple(map(str, range(self.most + 1)))

    @property
    def _example(self) -> str:
        return str(self.most)

    def scores(
        self, reply: str | None, count: int
    ) -> tuple[Sequence[float] | None, str]:
        del count
        if reply is None:
            return None, "no reply"
        if self.logprobs:
            found = json.loads(reply)
            if self.scale == "yes_no":
                return [found["yes"] - found["no"]], ""
            grades = np.arange(self.most + 1)
            logits = np.asarray([found[str(grade)] for grade in grades])
            weights = np.exp(logits - logits.max())
            return [float((weights * grades).sum() / weights.sum())], ""
        if self.scale == "yes_no":
            return said_yes(reply)
        return said_grade(reply, self.most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairwise(_Chatting):
    """An LLM says which of two documents answers the query better, in both orders.

    With log-probabilities the two log-odds are averaged with opposite signs; replies
    count 1 or 0, and their mean is 1/2 where the orders disagree (PRP, Qin et al.
    2023).
    """

    @property
    def _prompt(self) -> str:
        return "pair"

    @property
    def _choices(self) -> tuple[str, ...]:
        return ("1", "2")

    @property
    def _example(self) -> str:
        return "1 or 2"

    def first_is_better(self, reply: str | None) -> tuple[float | None, str]:
        """Log-odds, or with replies 1.0 and 0.0; None and why there is neither."""
        if reply is None:
            return None, "no reply"
        if self.logprobs:
            found = json.loads(reply)
            return found["1"] - found["2"], ""
        ranking = parsing.parse_ranking(reply, 2)
        if ranking.order is None:
            return None, ranking.failure
        return float(ranking.order[0] == 0), ""

    def probability(self, forward: float, backward: float) -> float:
        """P(first over second) of what ``first_is_better`` gave for both orders."""
        if self.logprobs:
            return float(sigmoid(np.asarray((forward - backward) / 2)))
        return (forward + 1.0 - backward) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """A ``/rerank`` endpoint scores the documents of a query.

    Attributes:
        at_once: documents of a call.
        words: what is sent of a document.
        documents_field: "documents", or "texts" as TEI has it.
    """

    at_once: int = 64
    words: int = 300
    documents_field: Literal["documents", "texts"] = "documents"
    # An endpoint that scores gives the same again.
    tries = 1

    def request(
        self, id: str, query: str, documents: Sequence[str], attempt: int
    ) -> Rerank:
        texts = tuple(first_words(text, self.words) for text in documents)
        return Rerank(f"{id}/{attempt}", query, texts, self.documents_field)

    def scores(
        self, reply: str | None, count: int
    ) -> tuple[Sequence[float] | None, str]:
        del count
        return (None, "no reply") if reply is None else (json.loads(reply), "")

    def provenance(self) -> dict[str, Any]:
        return {"method": dataclasses.asdict(self)}


_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)
_GRADE = re.compile(
    r"\b(?:grade|score|rating|relevance)\b\W{0,4}(?:is\W{0,3})?(-?\d{1,6}(?:\.\d+)?)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,6}(?:\.\d+)?(?![\w]|\.\d)")


def said_yes(reply: str | None) -> tuple[list[float] | None, str]:
    """[1.0] or [0.0]; None and a reason where a reply is neither yes nor no.

    The first line decides if it is the word alone; else only one of the two may occur.
    """
    text, failure = replies.answer(reply, plain=True)
    if failure:
        return None, failure
    alone = _ALONE.fullmatch(text.partition("\n")[0])
    if alone and (not replies.is_cut(reply) or "\n" in text):
        return [float(alone[1].lower() == "yes")], ""
    if replies.is_cut(reply):
        return None, "cut at max_tokens"
    words = {word.lower() for word in _YES_NO.findall(text)}
    if len(words) != 1:
        return None, "both yes and no" if words else "neither yes nor no"
    return [float(words == {"yes"})], ""


def said_grade(reply: str | None, most: int) -> tuple[list[float] | None, str]:
    """[grade]: the last number that is called a grade, or the only number there is."""
    text, failure = replies.answer(reply, plain=True)
    if failure:
        return None, failure
    if replies.is_cut(reply):
        return None, "cut at max_tokens"
    text = re.sub(rf"\s?(?:/|out of)\s?{most}\b", "", text.replace("**", ""))
    named = _GRADE.findall(text)
    numbers = named[-1:] or sorted(set(_NUMBER.findall(text)))
    if len(numbers) != 1:
        return None, "more than one grade" if numbers else "no grade"
    grade = float(numbers[0])
    if not 0 <= grade <= most:
        return None, f"a grade outside 0-{most}"
    return [grade], ""


def first_words(text: str, words: int) -> str:
    """The text itself, or its first words where it has more."""
    found = text.split()
    return text if len(found) <= words else " ".join(found[:words])
