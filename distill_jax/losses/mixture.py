"""A weighted sum of named losses: what the train step is given to minimise.

An objective reads scores from a student and targets from a batch:

    objective = Mixture((
        Term("kl", losses.kl_divergence),
        Term("pairs", losses.pairwise_kl, weight=3.0, on="pairs"),
        Term("contrast", losses.in_batch_contrastive, on="in_batch"),
    ))
    loss, parts = objective(student, student.represent(batch), batch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill_jax.batches import Batch
from distill_jax.io.errors import UserError
from distill_jax.io.values import Name, Named, NotNegative, Size
from distill_jax.losses import contract
from distill_jax.ops import masked
from distill_jax.ops.similarity import normalise
from distill_jax.ops.vector_form import VectorForm

Loss: TypeAlias = Annotated[Callable[..., Any], Named("distill_jax.losses")]
Parts: TypeAlias = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of a mixture.

    Attributes:
        name: under which its value is logged, unweighted.
        loss: what it computes; its arguments follow ``on``.
        weight: its factor in the sum.
        on: "list": ``loss(scores, labels, where=)``.
            "pairs": ``loss(scores, first, second, probability, where=)``.
            "in_batch": ``loss(cross_scores, doc_rows, labels, where=, labelled=,
            query_rows=)``.
            "rep": ``loss(rep, batch)``, for regularisers of the representation; with
            ``loss=None`` the student's own ``regularise(rep, batch)[name]``.
        options: further keywords of the loss, e.g. ``{"temperature": 0.05}``. Given
            here rather than bound to the function, they are part of the run's record.
        ramp: updates in which the weight grows as the square of their number, from
            near 0 (Paria et al. 2020, for FLOPS); below 1 a share of all updates.
    """

    name: Name
    loss: Loss | None
    weight: NotNegative = 1.0
    on: Literal["list", "pairs", "in_batch", "rep"] = "list"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    ramp: NotNegative = 0.0

    def __post_init__(self):
        if self.on not in contract.FORMS:
            raise UserError(
                f"term {self.name!r}: on should be one of {', '.join(contract.FORMS)}, "
                f"but {self.on!r} is given"
            )
        if self.loss is None and self.on != "rep":
            raise UserError(
                f"term {self.name!r} has no loss", "only on='rep' may leave it out"
            )
        if self.loss is not None:
            options = contract.check(self.name, self.loss, self.on, self.options)
            object.__setattr__(self, "options", options)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The weighted sum of ``terms``; each part is returned under its name.

    Attributes:
        terms: of different names.
        dims: numbers of leading dimensions. The sum is computed for the whole vectors
            and again for each truncation, which is normalised if the whole vectors
            are (Matryoshka, Kusupati et al. 2022); the further sums are returned as
            "at DIM". For dual encoders only.
    """

    terms: tuple[Term, ...]
    dims: tuple[Size, ...] = ()

    def __post_init__(self):
        names = [term.name for term in self.terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise UserError(
                f"a mixture needs terms of different names, but has {names}"
            )

    def __call__(
        self, student: Any, rep: Any, batch: Batch
    ) -> tuple[Float[Array, ""], Parts]:
        """The loss of a whole batch."""
        return self._of_all_widths(student, rep, batch, {})

    def over(self, steps: int) -> Mixture:
        """The mixture of a training of ``steps``: ramps are counts of updates."""
        return self._changed(
            lambda term: {"ramp": term.ramp * steps if term.ramp < 1 else term.ramp}
        )

    def at(self, step: Int[Array, ""]) -> Mixture:
        """The mixture at an update (from 0), with the current values of ramps."""
        return self._changed(
            lambda term: {
                "weight": term.weight * jnp.minimum((step + 1) / term.ramp, 1.0) ** 2,
                "ramp": 0.0,
            }
        )

    def _changed(self, change: Callable[[Term], dict[str, Any]]) -> Mixture:
        terms = tuple(
            dataclasses.replace(term, **change(term)) if term.ramp else term
            for term in self.terms
        )
        return Mixture(terms, self.dims)

    def counts(self, batch: Batch) -> Parts:
        """How many lists, docs or pairs each term averages over; no scores needed.

        Counts of micro-batches add up to the count of their union.
        """
        self._refuse_splitting()
        scores = jnp.zeros(batch.targets.labels.shape, jnp.float32)
        return {
            term.name: _value(term, scores, batch, reduce_fn=masked.count)
            for term in self.terms
        }

    def partial(
        self, student: Any, rep: Any, batch: Batch, counts: Mapping[str, Any]
    ) -> tuple[Float[Array, ""], Parts]:
        """A micro-batch's share of the loss of a batch with these ``counts``.

        Shares (and their gradients) add up to the whole's exactly, however unequal
        the micro-batches are: sums are divided by the global count, not averaged.
        """
        self._refuse_splitting()
        return self._of_all_widths(student, rep, batch, counts)

    def _of_all_widths(
        self, student: Any, rep: Any, batch: Batch, counts: Mapping[str, Any] | None
    ) -> tuple[Float[Array, ""], Parts]:
        loss, parts = self._sum(student, rep, batch, counts)
        for width in sorted(set(self.dims), reverse=True):
            part, _ = self._sum(student, _cut(student, rep, width), batch, counts)
            loss, parts = loss + part, {**parts, f"at {width}": part}
        return loss, parts

    def _sum(
        self, student: Any, rep: Any, batch: Batch, counts: Mapping[str, Any] | None
    ) -> tuple[Float[Array, ""], Parts]:
        scores = cross = own = None
        parts: Parts = {}
        for term in self.terms:
            if term.on == "rep":
                if term.loss is None:
                    own = student.regularise(rep, batch) if own is None else own
                    parts[term.name] = own[term.name]
                else:
                    parts[term.name] = term.loss(rep, batch, **term.options)
            elif term.on == "in_batch":
                cross = student.cross_scores(rep, batch) if cross is None else cross
                parts[term.name] = _value(term, cross, batch)
            else:
                scores = student.scores(rep, batch) if scores is None else scores
                if counts:
                    share = _value(term, scores, batch, reduce_fn=masked.total)
                    parts[term.name] = share / jnp.maximum(counts[term.name], 1.0)
                else:
                    parts[term.name] = _value(term, scores, batch)
        loss = sum(term.weight * parts[term.name] for term in self.terms)
        return jnp.asarray(loss), parts

    def _refuse_splitting(self) -> None:
        for term in self.terms:
            if term.on in ("in_batch", "rep"):
                raise UserError(
                    f"term {term.name!r} (on={term.on!r}) looks across queries, so its "
                    "batch cannot be split for gradient accumulation",
                    "encode in chunks instead (GradCache): the same gradient",
                )
            if not contract.can_be_split(term.loss):
                raise UserError(
                    f"term {term.name!r}: its loss takes no reduce_fn, so its batch "
                    "cannot be split for gradient accumulation",
                    "encode in chunks instead (GradCache), or end the loss in "
                    "reduce_fn(values, where=valid) as distill_jax.losses do",
                )


@dataclasses.dataclass(frozen=True)
class Listwise:
    """An objective of one list loss: ``Mixture((Term(name, loss),))``."""

    loss: Loss
    name: Name = "list"

    def __post_init__(self):
        self._mixture  # noqa: B018 - a term checks its loss

    def __call__(self, student: Any, rep: Any, batch: Batch):
        return self._mixture(student, rep, batch)

    def counts(self, batch: Batch) -> Parts:
        return self._mixture.counts(batch)

    def partial(self, student: Any, rep: Any, batch: Batch, counts: Mapping[str, Any]):
        return self._mixture.partial(student, rep, batch, counts)

    @property
    def _mixture(self) -> Mixture:
        return Mixture((Term(self.name, self.loss),))


def _cut(student: Any, rep: Any, width: int) -> dict[str, Array]:
    """The first numbers of each vector, of unit length where the whole ones have it."""
    spec = student.spec
    if spec.vectors is not VectorForm.ONE:
        raise UserError(
            f"a {spec.kind} has no vector whose first numbers could be a vector",
            "set --gin.MATRYOSHKA=()",
        )
    if width >= spec.width:
        raise UserError(
            f"vectors of {width} numbers are to be learnt, and there are {spec.width}",
            f"give MATRYOSHKA widths below {spec.width}",
        )
    unit = spec.normalise or spec.similarity == "cosine"
    return {
        name: normalise(vectors[..., :width]) if unit else vectors[..., :width]
        for name, vectors in rep.items()
    }


def _value(term: Term, scores: Array, batch: Batch, **options: Any) -> Array:
    """Calls the term's loss with the targets that its kind reads."""
    targets = batch.targets
    loss = term.loss
    assert loss is not None
    options = {**term.options, **options}
    if term.on == "list":
        return loss(scores, targets.labels, where=targets.where, **options)
    if term.on == "pairs":
        if targets.first is None:
            raise UserError(
                f"term {term.name!r} reads judged pairs, but the batch has none",
                "give the job pair labels, or drop the term",
            )
        return loss(
            scores,
            targets.first,
            targets.second,
            targets.probability,
            where=targets.pair_where,
            **options,
        )
    if targets.doc_rows is None:
        raise UserError(
            f"term {term.name!r} masks false negatives by doc, but the batch has no "
            "doc_rows"
        )
    return loss(
        scores,
        targets.doc_rows,
        targets.labels,
        where=targets.where,
        labelled=targets.labelled,
        query_rows=targets.query_rows,
        **options,
    )
