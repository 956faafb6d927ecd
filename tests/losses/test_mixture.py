"""Mixtures: parts, weights, and exact sums over micro-batches."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.batches import DualBatch, Targets
from distill_jax.io.errors import UserError
from distill_jax.losses import Listwise, Mixture, Term
from distill_jax.ops.vector_form import VectorForm

B, N, P = 4, 3, 2


class Student:
    """Vectors as representations; dot products as scores."""

    def scores(self, rep, batch):
        return jnp.einsum("bd,bnd->bn", *rep)

    def cross_scores(self, rep, batch):
        return jnp.einsum("qd,bnd->qbn", *rep)

    def regularise(self, rep, batch):
        return {"size": jnp.sum(rep[0] ** 2)}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    where = np.arange(N)[None] < np.asarray([[3], [2], [3], [1]])
    targets = Targets(
        labels=jnp.asarray(rng.normal(size=(B, N)), jnp.float32),
        where=jnp.asarray(where),
        doc_rows=jnp.asarray(np.where(where, np.arange(B * N).reshape(B, N), -1)),
        first=jnp.zeros((B, P), int),
        second=jnp.ones((B, P), int),
        probability=jnp.asarray(rng.uniform(size=(B, P)), jnp.float32),
        pair_where=jnp.asarray(
            [[True, True], [True, False], [True, True], [False] * 2]
        ),
    )
    return DualBatch(
        query_tokens=jnp.zeros((B, 1), int),
        doc_tokens=jnp.zeros((B, N, 1), int),
        targets=targets,
    )


@pytest.fixture
def rep():
    rng = np.random.default_rng(1)
    return (
        jnp.asarray(rng.normal(size=(B, 2)), jnp.float32),
        jnp.asarray(rng.normal(size=(B, N, 2)), jnp.float32),
    )


FOUR = Mixture(
    (
        Term("kl", losses.kl_divergence),
        Term("pairs", losses.pairwise_kl, 3.0, on="pairs"),
        Term("contrast", losses.in_batch_contrastive, 0.1, on="in_batch"),
        Term("size", None, 0.01, on="rep"),
        Term("length", lambda rep, batch: jnp.sum(rep[1] ** 2), 0.5, on="rep"),
    )
)
TWO = Mixture(FOUR.terms[:2])


def test_a_ramp_grows_as_the_square_of_the_updates_and_ends(batch, rep):
    term = Term("size", None, 0.5, on="rep", ramp=0.25)
    plain = Term("kl", losses.kl_divergence)
    mixture = Mixture((plain, term)).over(40)
    kl = losses.kl_divergence(
        Student().scores(rep, batch), batch.targets.labels, where=batch.targets.where
    )
    size = float(np.sum(np.square(rep[0])))
    for step, share in ((0, 0.01), (4, 0.25), (9, 1.0), (39, 1.0)):
        loss = jax.jit(lambda step: mixture.at(step)(Student(), rep, batch)[0])(step)
        assert float(loss) == pytest.approx(float(kl) + share * 0.5 * size, rel=1e-5)
    # What is measured on held-out lists has the whole weight.
    assert float(mixture(Student(), rep, batch)[0]) == pytest.approx(
        float(kl) + 0.5 * size, rel=1e-5
    )
    assert Mixture((Term("size", None, on="rep", ramp=7),)).over(40).terms[0].ramp == 7


def test_the_sum_is_weighted_and_parts_are_not(batch, rep):
    loss, parts = FOUR(Student(), rep, batch)
    targets = batch.targets
    scores = Student().scores(rep, batch)
    assert parts["kl"] == losses.kl_divergence(
        scores, targets.labels, where=targets.where
    )
    assert parts["size"] == jnp.sum(rep[0] ** 2)
    expected = (
        parts["kl"]
        + 3 * parts["pairs"]
        + 0.1 * parts["contrast"]
        + 0.01 * parts["size"]
        + 0.5 * parts["length"]
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_contrast_counts_only_the_labelled(batch, rep):
    objective = Mixture((FOUR.terms[2],))
    none = dataclasses.replace(batch.targets, labelled=jnp.zeros(B, bool))
    loss, _ = objective(Student(), rep, dataclasses.replace(batch, targets=none))
    assert loss == 0
    one = dataclasses.replace(batch.targets, labelled=jnp.arange(B) == 1)
    _, parts = objective(Student(), rep, dataclasses.replace(batch, targets=one))
    cross = Student().cross_scores(rep, batch)[1]
    flat = cross[batch.targets.where] / 0.01
    expected = jax.nn.logsumexp(flat) - cross[1, 0] / 0.01
    np.testing.assert_allclose(parts["contrast"], expected, rtol=1e-4)


def test_unequal_micro_batches_add_up_exactly(batch, rep):
    def whole(rep):
        return TWO(Student(), rep, batch)[0]

    counts = TWO.counts(batch)
    assert counts == {"kl": 4, "pairs": 5}

    def shares(rep):
        total = 0.0
        for rows in (slice(0, 1), slice(1, 4)):
            take = lambda x, rows=rows: x[rows]  # noqa: E731
            part = jax.tree.map(take, batch)
            total += TWO.partial(Student(), jax.tree.map(take, rep), part, counts)[0]
        return total

    expected, gradient = jax.value_and_grad(whole)(rep)
    found, there = jax.value_and_grad(shares)(rep)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for ours, theirs in zip(there, gradient):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_micro_batches_of_nothing_add_nothing(batch, rep):
    nothing = dataclasses.replace(
        batch.targets, where=jnp.zeros((B, N), bool), pair_where=jnp.zeros((B, P), bool)
    )
    empty = dataclasses.replace(batch, targets=nothing)
    loss, _ = TWO.partial(Student(), rep, empty, TWO.counts(empty))
    assert loss == 0


@pytest.mark.parametrize("term", FOUR.terms[2:4])
def test_terms_across_queries_are_not_split(batch, rep, term):
    with pytest.raises(UserError, match=r"looks across queries(.|\n)*GradCache"):
        Mixture((term,)).counts(batch)


def test_listwise_is_a_mixture_of_one(batch, rep):
    objective = Listwise(losses.ranknet)
    loss, parts = objective(Student(), rep, batch)
    assert parts == {"list": loss}
    share, _ = objective.partial(Student(), rep, batch, objective.counts(batch))
    np.testing.assert_allclose(share, loss, rtol=1e-6)


def test_mistakes_are_named(batch, rep):
    with pytest.raises(UserError, match="different names"):
        Mixture((FOUR.terms[0], FOUR.terms[0]))
    with pytest.raises(UserError, match="'lists'"):
        Term("x", losses.ranknet, on="lists")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no loss"):
        Term("x", None)
    bare = dataclasses.replace(
        batch, targets=dataclasses.replace(batch.targets, first=None, doc_rows=None)
    )
    with pytest.raises(UserError, match="judged pairs"):
        TWO(Student(), rep, bare)
    with pytest.raises(UserError, match="doc_rows"):
        Mixture((FOUR.terms[2],))(Student(), rep, bare)


def test_a_mixture_is_static_under_jit(batch, rep):
    step = jax.jit(lambda rep: FOUR(Student(), rep, batch))
    loss, parts = step(rep)
    np.testing.assert_allclose(loss, FOUR(Student(), rep, batch)[0], rtol=1e-5)
    assert set(parts) == {"kl", "pairs", "contrast", "size", "length"}
    assert hash(FOUR) == hash(Mixture(FOUR.terms))


class Vectors(Student):
    """As a dual encoder: ``q`` and ``d`` by name, of unit length."""

    def __init__(self, width, kind="dual_encoder", **fields):
        fields = {"normalise": True, "similarity": "dot"} | fields
        form = VectorForm.ONE if kind == "dual_encoder" else VectorForm.PER_TOKEN
        fields |= {"kind": kind, "vectors": form}
        self.spec = SimpleNamespace(width=width, **fields)

    def scores(self, rep, batch):
        return jnp.einsum("bd,bnd->bn", rep["q"], rep["d"])

    def cross_scores(self, rep, batch):
        return jnp.einsum("qd,bnd->qbn", rep["q"], rep["d"])


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_of_cut_vectors_is_added_for_each_width(batch, normalise):
    rng = np.random.default_rng(2)
    q, d = rng.normal(size=(B, 8)), rng.normal(size=(B, N, 8))
    if normalise:
        q /= np.linalg.norm(q, axis=-1, keepdims=True)
        d /= np.linalg.norm(d, axis=-1, keepdims=True)
    term = Term("mse", losses.mean_squared_error, 2.0)
    mixture = Mixture((term,), dims=(4, 2))
    rep = {"q": jnp.asarray(q, jnp.float32), "d": jnp.asarray(d, jnp.float32)}
    student = Vectors(8, normalise=normalise)
    loss, parts = mixture(student, rep, batch)

    labels, where = np.asarray(batch.targets.labels), np.asarray(batch.targets.where)
    expected = {}
    for width in (8, 4, 2):
        total = 0.0
        for i, n in zip(*np.nonzero(where)):
            a, b = q[i, :width], d[i, n, :width]
            norm = np.linalg.norm(a) * np.linalg.norm(b) if normalise else 1.0
            total += (a @ b / norm - labels[i, n]) ** 2
        expected[width] = 2.0 * total / where.sum()
    assert float(loss) == pytest.approx(sum(expected.values()), rel=1e-5)
    assert float(parts["at 4"]) == pytest.approx(expected[4], rel=1e-5)
    assert float(parts["at 2"]) == pytest.approx(expected[2], rel=1e-5)
    assert float(parts["mse"]) == pytest.approx(expected[8] / 2.0, rel=1e-5)
    # Micro-batches add up to it.
    whole, _ = mixture.partial(student, rep, batch, mixture.counts(batch))
    assert float(whole) == pytest.approx(float(loss), rel=1e-6)


@pytest.mark.parametrize(
    ("student", "words"),
    [(Vectors(8, kind="colbert"), "colbert"), (Vectors(4), "below 4")],
)
def test_widths_that_no_vector_has_are_refused(batch, student, words):
    mixture = Mixture((Term("mse", losses.mean_squared_error),), dims=(4,))
    rep = {"q": jnp.ones((B, 4)), "d": jnp.ones((B, N, 4))}
    with pytest.raises(UserError) as error:
        mixture(student, rep, batch)
    assert words in f"{error.value.what} {error.value.todo}"
