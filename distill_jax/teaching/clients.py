"""LLMs that complete chats: behind HTTP with a budget, or in this process.

Both are configured once (``Client``, ``LocalModel``) and opened for a folder with
``at(folder)``; what that gives has ``complete_all(requests)``, ``counts(job)`` and
``model``. A request is anything with ``id``, ``messages``, ``temperature``,
``max_tokens`` and ``seed``, or one of those in ``teaching.calls``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.values import (
    Count,
    ModelName,
    NotNegative,
    Positive,
    Size,
    UserPath,
)
from distill_jax.runtime import processes
from distill_jax.runtime.placement import default_dtype
from distill_jax.teaching.ledger import Limit
from distill_jax.teaching.local_session import LocalSession
from distill_jax.teaching.sessions import Session


@dataclasses.dataclass(frozen=True)
class Request:
    """One chat to complete; ``id`` names its owner, and changes nothing else."""

    id: str
    messages: Sequence[Mapping[str, str]]
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0


class Completer(Protocol):
    """An opened LLM.

    ``complete_all`` gives one reply a request, in order, None where it failed for
    good. ``counts`` gives calls, succeeded, failed, cached, tokens and cost of a job,
    which is the text before the "/" of its requests' ids.
    """

    model: str

    def complete_all(self, requests: Sequence[Any]) -> list[str | None]: ...

    def counts(self, job: str | None = None) -> dict[str, Any]: ...

    def close(self) -> None:
        """Closes the ledger and the cache of replies."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """An OpenAI-compatible endpoint.

    Attributes:
        base_url: what stands before ``/chat/completions``, ``/rerank``,
            ``/embeddings``.
        model: its name there; part of every cache key.
        budget_calls, budget_tokens, budget_money: the most that may ever be spent in
            one folder. A call is made only if the budget still covers its maximum.
        budget_seconds: no call starts after this many seconds of one run; those in
            flight end. The same command continues, with the same budget again.
        price_in, price_out: of a million prompt and completion tokens; None where they
            are not known, and then no cost is.
        concurrency: requests in flight; fewer while the endpoint returns 429.
        requests_per_minute, tokens_per_minute: None for no limit.
        timeout: seconds of a call.
        max_attempts: calls of one request, the first included.
        failures_in_a_row: requests that fail alike, with no success between them, after
            which the job ends.
        key_env: the environment variable that holds the key; it may be unset for
            endpoints that want none.
        cache: a file of replies shared between jobs; None keeps one in the folder.
        tokens_field: what the endpoint calls ``max_tokens``.
        omit: fields that it does not accept, e.g. ``("seed", "temperature")``.
        extra: fields to add to every request; part of the cache key.
    """

    base_url: str = free()
    model: str
    budget_calls: Count | None = free(None)
    budget_tokens: Count | None = free(None)
    budget_money: NotNegative | None = free(None)
    budget_seconds: Positive | None = free(None)
    price_in: NotNegative | None = free(None)
    price_out: NotNegative | None = free(None)
    concurrency: Size = free(8)
    requests_per_minute: Positive | None = free(None)
    tokens_per_minute: Positive | None = free(None)
    timeout: Positive = free(120.0)
    max_attempts: Size = free(6)
    failures_in_a_row: Size = free(8)
    key_env: str = free("OPENAI_API_KEY")
    cache: UserPath | None = free(None)
    tokens_field: str = free("max_tokens")
    omit: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.base_url or not self.model:
            raise UserError(
                "no endpoint is named",
                "add --gin.LLM_BASE_URL=... and --gin.LLM_MODEL=...",
            )
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"base_url {_without_user(self.base_url)!r} is not an address",
                "give one like https://api.example.org/v1 or http://localhost:8000/v1",
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"base_url of {parts.hostname} holds a user, a password or a query",
                f"put the key into the environment variable {self.key_env}",
            )
        for name in ("concurrency", "max_attempts", "failures_in_a_row"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "give 1 or more")
        if (self.price_in is None) != (self.price_out is None):
            raise UserError(
                "one price without the other",
                "give both, of a million tokens: LLM_PRICE_IN and LLM_PRICE_OUT",
            )
        for name in ("price_in", "price_out"):
            price = getattr(self, name)
            if price is not None and not 0 <= price < float("inf"):
                raise UserError(f"{name} is {price}", "give money, 0 or more")
        if self.budget_money is not None and not (self.price_in or self.price_out):
            raise UserError(
                "a budget of money without prices",
                "give those of a million tokens, LLM_PRICE_IN and LLM_PRICE_OUT, or"
                " another budget",
            )

    @property
    def limit(self) -> Limit:
        return Limit(self.budget_calls, self.budget_tokens, self.budget_money)

    @property
    def key(self) -> str | None:
        """The key, from the environment only."""
        key = os.environ.get(self.key_env, "").strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(
                f"the key in {self.key_env} has blanks or characters that no key has",
                "set it again",
            )
        return key or None

    def cost(self, tokens: tuple[int, int]) -> float | None:
        """Of (prompt, completion) tokens; None where no price is given."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens[0] * self.price_in + tokens[1] * self.price_out) / 1e6

    def at(self, folder: str | Path, **clockwork: Any) -> Session:
        """Opens the ledger and the cache of a folder.

        Args:
            clockwork: ``clock``, ``sleep`` and ``jitter``, for tests.

        Raises:
            UserError: several processes would each pay for every call.
        """
        if processes.several():
            raise UserError(
                f"{self.model}: an HTTP endpoint is called by one process only",
                "run this recipe as one process first, and its labels are reused",
            )
        return Session(self, folder, **clockwork)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A language model that runs in this process: a ...ForCausalLM, or a T5.

    A ...ForCausalLM reads a chat by its own template, or without one as the turns
    joined by empty lines, which is how a T5 reads all of them.

    Attributes:
        checkpoint: what ``weights.load`` takes.
        longest: prompts of more tokens fail; they are never cut silently.
        top_k, top_p: of sampling, where a request's temperature is not 0.
        tokens_per_batch: encoder tokens computed at once.
    """

    checkpoint: ModelName
    longest: int = free(4096)
    top_k: int | None = None
    top_p: float | None = None
    tokens_per_batch: int = free(1 << 14)

    def at(
        self,
        folder: str | Path,
        *,
        load: Callable[[str], Any] | None = None,
        decode: Callable[..., Any] | None = None,
    ) -> Completer:
        """Loads the model; the folder gets a ledger of requests."""
        from distill_jax.weights.causal import is_language_model

        if load is None:
            from distill_jax.weights import load as load
        how: dict[str, Any] = {}
        if is_language_model(self.checkpoint):
            how = {"kind": "llm", "dtype": default_dtype()}
        pretrained = load(self.checkpoint, **how)
        backbone = getattr(pretrained.spec, "backbone", None)
        generates = how or getattr(backbone, "decoder_layers", 0)
        if decode is None and not generates:
            raise UserError(
                f"{self.checkpoint}: a {pretrained.spec.kind} that cannot generate",
                "give a ...ForCausalLM, or a T5 with its decoder",
            )
        return LocalSession(self, pretrained, folder, decode)

    def cost(self, tokens: tuple[int, int]) -> float:
        del tokens
        return 0.0


def chat(
    base_url: str, endpoint: Callable[[], Client], local: Callable[[], LocalModel]
) -> Client | LocalModel:
    """The LLM that a recipe names: ``local`` is one of files, all else an address."""
    return local() if base_url == "local" else endpoint()


def _without_user(url: str) -> str:
    return url.rpartition("@")[2]
