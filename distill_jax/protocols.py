"""What a room promises to the others. Nobody has to inherit from these."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.batches import Batch


@runtime_checkable
class Loss(Protocol):
    """Scores and labels of lists to one number."""

    def __call__(
        self,
        scores: Float[Array, "B N"],
        labels: Float[Array, "B N"],
        *,
        where: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, ""]: ...


@runtime_checkable
class Student(Protocol):
    """Anything that the train step can train: a batch to scores.

    ``represent`` is the expensive half: every leaf that it returns has the leading
    axis B, so it can be computed in chunks of queries (GradCache). ``scores`` is the
    cheap half, and sees the whole batch. ``rngs`` given means training (dropout),
    ``None`` means inference.
    """

    def represent(self, batch: Any, *, rngs: nnx.Rngs | None = None) -> Any: ...

    def scores(self, rep: Any, batch: Any) -> Float[Array, "B N"]: ...

    def __call__(
        self, batch: Any, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]: ...


@runtime_checkable
class Encoder(Student, Protocol):
    """A student that represents queries and documents apart."""

    def cross_scores(self, rep: Any, batch: Any) -> Float[Array, "B B N"]: ...

    def encode_queries(self, tokens: Int[Array, "M L"]) -> Array: ...

    def encode_docs(self, tokens: Int[Array, "M L"]) -> Array: ...


@runtime_checkable
class Objective(Protocol):
    """The loss of one global batch, and its parts by name for the log."""

    def __call__(
        self, student: Any, rep: Any, batch: Batch
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]: ...


@runtime_checkable
class Retriever(Protocol):
    """Made by ``build(docs_or_vectors)``; saved and loaded as a folder."""

    def search(self, queries: Any, k: int) -> Any: ...

    def save(self, directory: str) -> None: ...


@runtime_checkable
class Teacher(Protocol):
    """A run of candidates to labels."""

    def label(self, run: Any, queries: Any, docs: Any) -> Any: ...


@runtime_checkable
class Feed(Protocol):
    """An endless, seekable stream of training batches.

    ``batch(step)`` depends on nothing but the feed's construction and ``step``: that
    is what makes a resumed run see the batches an uninterrupted one would.
    """

    def __call__(self, start: int) -> Any: ...


@runtime_checkable
class Job(Protocol):
    """Something that ``main`` can run: it returns the exit status, None for 0."""

    def __call__(self) -> int | None: ...


Vectors = Float[np.ndarray, "M D"]
