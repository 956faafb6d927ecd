"""What must hold for every loss: each property runs over the whole list below."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.ops import masked

B, N = 3, 5


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    loss: Callable
    shifts: bool = True
    grades: bool = False
    ties: bool = True

    def __post_init__(self):
        # One program a shape: uncompiled, each operation is a program of its own.
        compiled = jax.jit(self.loss, static_argnames=("reduce_fn",))
        object.__setattr__(self, "loss", compiled)

    def __repr__(self):
        return self.name


def pairwise_kl(scores, labels, *, where=None, **options):
    """All pairs of the list, judged by the sigmoid of the labels' difference."""
    first, second = np.triu_indices(scores.shape[-1], 1)
    shape = (scores.shape[0], len(first))
    first, second = np.broadcast_to(first, shape), np.broadcast_to(second, shape)
    labels = jnp.asarray(labels)
    if where is None:
        where = np.ones(scores.shape, bool)
    where = jnp.asarray(where)

    def take(x, positions):
        return jnp.take_along_axis(x, jnp.asarray(positions), -1)

    p = jax.nn.sigmoid(take(labels, first) - take(labels, second))
    valid = take(where, first) & take(where, second)
    return losses.pairwise_kl(scores, first, second, p, where=valid, **options)


def in_batch(scores, labels, *, where=None, **options):
    """Similarity of query i to (j, n): its own scores on the diagonal, else a mix."""
    cross = jnp.asarray(scores)[None] * jnp.asarray(
        np.linspace(0.5, 1.5, scores.shape[0]), jnp.asarray(scores).dtype
    ).reshape(-1, 1, 1)
    ids = np.arange(scores.size).reshape(scores.shape)
    return losses.in_batch_contrastive(
        cross, ids, labels, where=where, temperature=0.5, **options
    )


CASES = [
    Case("ranknet", losses.ranknet),
    Case("listmle", losses.listmle, ties=False),
    Case(
        "listmle_on_probabilities",
        functools.partial(losses.listmle, on="probabilities"),
        ties=False,
    ),
    Case(
        "kl_divergence",
        functools.partial(
            losses.kl_divergence, student_temperature=0.5, teacher_temperature=0.3
        ),
    ),
    Case(
        "kl_divergence_of_the_confident",
        functools.partial(losses.kl_divergence, confidence=1.0),
    ),
    Case("p_listmle", losses.p_listmle, ties=False),
    Case("mean_squared_error", losses.mean_squared_error, shifts=False),
    Case("approx_ndcg", losses.approx_ndcg, grades=True),
    Case("pairwise_kl", pairwise_kl),
    Case("adr_mse", losses.adr_mse),
    Case("margin_mse", losses.margin_mse),
    Case("softmax_cross_entropy", losses.softmax_cross_entropy, grades=True),
    Case(
        "pointwise_cross_entropy",
        losses.pointwise_cross_entropy,
        shifts=False,
        grades=True,
    ),
    Case("lambda_loss", losses.lambda_loss, grades=True),
    Case("lambda_loss_at_3", functools.partial(losses.lambda_loss, k=3), grades=True),
    # In its test form each query's cross scores are a multiple of the others'.
    Case("in_batch_contrastive", in_batch, shifts=False, ties=False),
    Case(
        "in_batch_blocked",
        functools.partial(in_batch, block_size=2, false_negative_threshold=0.6),
        shifts=False,
        ties=False,
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=repr)
WITHIN_LIST = [case for case in CASES if not case.name.startswith("in_batch")]
within_list = pytest.mark.parametrize("case", WITHIN_LIST, ids=repr)


def gradient_of(loss):
    """The loss and its gradient, by one program a shape."""
    return jax.jit(jax.value_and_grad(loss))


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def batch(case, seed=0, rows=B):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, N)).astype(np.float32)
    labels = rng.permuted(np.tile(np.arange(N), (rows, 1)), axis=1)
    labels = labels.astype(np.float32)
    return scores, labels / (N - 1) if case.grades else labels


@pytest.mark.parametrize("case", [c for c in CASES if c.shifts], ids=repr)
def test_a_constant_added_to_a_list_changes_nothing(case):
    scores, labels = batch(case)
    shifted = scores + np.asarray([[3.0], [-2.0], [0.5]], np.float32)
    np.testing.assert_allclose(
        case.loss(shifted, labels), case.loss(scores, labels), rtol=2e-5
    )
    gradient = jax.grad(case.loss)(scores, labels)
    np.testing.assert_allclose(gradient.sum(-1), np.zeros(B), atol=1e-5)
    assert np.abs(gradient).max() > 1e-4


@within_list
def test_the_order_of_documents_does_not_matter(case):
    scores, labels = batch(case)
    where = np.arange(N)[None] < np.asarray([[5], [3], [4]])
    order = np.asarray([2, 0, 4, 1, 3])
    if case.name == "pairwise_kl":
        order = np.arange(N)[::-1]
    there = case.loss(scores[:, order], labels[:, order], where=where[:, order])
    np.testing.assert_allclose(there, case.loss(scores, labels, where=where), rtol=1e-5)


@within_list  # in a batch, these cross scores depend on the query's place
def test_the_order_of_queries_does_not_matter(case):
    scores, labels = batch(case)
    there = case.loss(scores[::-1], labels[::-1])
    np.testing.assert_allclose(there, case.loss(scores, labels), rtol=1e-5)


@pytest.mark.parametrize(
    "case", [c for c in WITHIN_LIST if c.name != "pairwise_kl"], ids=repr
)
def test_a_batch_may_have_any_number_of_dimensions(case):
    scores, labels = batch(case, rows=4)
    where = np.arange(N)[None] < np.asarray([[5], [3], [4], [2]])
    parts = [x.reshape(2, 2, N) for x in (scores, labels, where)]
    there = case.loss(parts[0], parts[1], where=parts[2])
    np.testing.assert_allclose(there, case.loss(scores, labels, where=where), rtol=1e-5)


def test_equal_scores_have_no_squared_error():
    scores = np.asarray([[3.0, -1.0, 0.5]], np.float32)
    assert losses.mean_squared_error(scores, scores) == 0


@every
@pytest.mark.parametrize("junk", [[np.nan, np.inf], [-np.inf, 7.5]], ids=str)
def test_padding_changes_neither_loss_nor_gradient(case, junk):
    scores, labels = batch(case)
    both = gradient_of(case.loss)
    if case.name.startswith("in_batch"):
        # Padding moves the numbering of this test's docs; hold it by masking.
        where = np.ones((B, N), bool)
        where[:, -2:] = False
        expected, gradient = both(scores, labels, where=where)
        spoilt, labels = scores.copy(), labels.copy()
        spoilt[:, -2:] = labels[:, -2:] = junk
        found, there = both(spoilt, labels, where=where)
        inside = gradient[:, :-2]
        there_inside, outside = there[:, :-2], there[:, -2:]
    else:
        expected, inside = both(scores, labels)
        pad = np.tile(np.asarray(junk, np.float32), (B, 1))
        found, there = both(
            np.concatenate([scores, pad], 1),
            np.concatenate([labels, pad], 1),
            where=np.arange(N + 2)[None] < np.full((B, 1), N),
        )
        there_inside, outside = there[:, :N], there[:, N:]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(there_inside, inside, rtol=1e-5, atol=1e-7)
    assert (outside == 0).all()


@within_list  # see test_an_empty_query_in_a_batch
def test_an_empty_list_counts_for_nothing(case):
    scores, labels = batch(case)
    empty = np.full((2, N), np.nan, np.float32)
    where = np.repeat([True, False], [B, 2])[:, None] & np.ones((1, N), bool)
    found, gradient = gradient_of(case.loss)(
        np.concatenate([scores, empty]),
        np.concatenate([labels, empty]),
        where=where,
    )
    np.testing.assert_allclose(found, case.loss(scores, labels), rtol=1e-6)
    assert (gradient[B:] == 0).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("junk", [np.inf, np.nan], ids=str)
def test_an_empty_query_in_a_batch(junk):
    rng = np.random.default_rng(0)
    cross = rng.normal(size=(3, 3, 2)).astype(np.float32)
    spoilt = cross.copy()
    spoilt[2], spoilt[:, 2] = junk, junk
    ids, labels = np.arange(6).reshape(3, 2), np.zeros((3, 2), np.float32)
    where = np.asarray([[True] * 2, [True] * 2, [False] * 2])
    found, gradient = gradient_of(losses.in_batch_contrastive)(
        spoilt, ids, labels, where=where, temperature=1.0
    )
    expected, inside = gradient_of(losses.in_batch_contrastive)(
        cross[:2, :2], ids[:2], labels[:2], temperature=1.0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:2, :2], inside, rtol=1e-6)
    assert (gradient[2] == 0).all()
    assert (gradient[:, 2] == 0).all()


@every
def test_a_batch_of_nothing_is_zero(case):
    scores = np.full((B, N), np.nan, np.float32)
    found, gradient = gradient_of(case.loss)(
        scores, scores, where=np.zeros((B, N), bool)
    )
    assert found == 0
    assert (gradient == 0).all()
    assert (
        case.loss(scores, scores, where=np.zeros((B, N), bool), reduce_fn=masked.count)
        == 0
    )


@within_list
def test_extreme_lists_have_finite_gradients(case):
    scores, labels = batch(case)
    wide = scores * np.float32(300.0)
    for scores_, labels_ in [
        (scores, np.full_like(labels, 0.5)),
        (np.zeros_like(scores), labels),
        (wide, labels),
        (scores[:, :1], labels[:, :1]),
    ]:
        found, gradient = gradient_of(case.loss)(scores_, labels_)
        assert np.isfinite(found)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "loss", [losses.kl_divergence, losses.ranknet, losses.listmle, losses.adr_mse]
)
def test_teachers_may_say_minus_infinity(loss):
    scores = np.asarray([[1.0, 2.0, 0.5]], np.float32)
    for labels in ([[0.3, -np.inf, 0.1]], [[-np.inf] * 3]):
        found, gradient = gradient_of(loss)(scores, np.asarray(labels))
        assert np.isfinite(found)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "loss", [losses.ranknet, losses.margin_mse, losses.lambda_loss]
)
def test_ties_make_no_pair(loss):
    tied = np.asarray([[2.0, 2.0, 1.0]], np.float32)
    scores = np.asarray([[0.3, 0.9, 0.1]], np.float32)
    swapped = scores[:, [1, 0, 2]]
    np.testing.assert_allclose(loss(scores, tied), loss(swapped, tied), rtol=1e-6)
    assert loss(scores, np.ones_like(tied)) == 0
    assert (jax.grad(loss)(scores, np.ones_like(tied)) == 0).all()


@pytest.mark.parametrize(
    "case",
    # The pairs of pairwise_kl have an order.
    [c for c in CASES if c.ties and c.name != "pairwise_kl"],
    ids=repr,
)
def test_tied_documents_are_treated_alike(case):
    scores = np.asarray([[0.3, 0.9, 0.1, -0.4]], np.float32)
    labels = np.asarray([[0.5, 0.5, 1.0, 0.0]], np.float32)
    order = [1, 0, 2, 3]
    np.testing.assert_allclose(
        case.loss(scores[:, order], labels), case.loss(scores, labels), rtol=1e-6
    )


@every
def test_f32_is_within_1e_5_of_f64(case):
    scores, labels = batch(case)
    single = gradient_of(case.loss)(jnp.asarray(scores), jnp.asarray(labels))
    with jax.enable_x64(True):
        double = gradient_of(case.loss)(
            jnp.asarray(scores, jnp.float64), jnp.asarray(labels, jnp.float64)
        )
        assert double[1].dtype == jnp.float64
        double = jax.tree.map(np.asarray, double)
    for narrow, wide in zip(single, double):
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


@every
def test_the_gradient_is_the_slope(case):
    scores, labels = batch(case)
    direction = np.random.default_rng(9).normal(size=scores.shape)
    with jax.enable_x64(True):
        loss = functools.partial(case.loss, labels=jnp.asarray(labels, jnp.float64))
        if case.name.startswith(("pairwise_kl", "in_batch")):
            loss = lambda s: case.loss(s, jnp.asarray(labels, jnp.float64))  # noqa: E731
        scores = jnp.asarray(scores, jnp.float64)
        slope = float(jnp.vdot(jax.grad(loss)(scores), direction))
        step = 1e-6
        rise = float(loss(scores + step * direction) - loss(scores - step * direction))
    assert slope == pytest.approx(rise / (2 * step), rel=1e-5, abs=1e-7)


@every
def test_bf16_and_f16_are_upcast(case):
    scores, labels = batch(case)
    narrow = jnp.asarray(scores, jnp.bfloat16)
    found = case.loss(narrow, jnp.asarray(labels, jnp.bfloat16))
    assert found.dtype == jnp.float32
    labels = jnp.asarray(labels, jnp.bfloat16).astype(jnp.float32)
    expected = case.loss(narrow.astype(jnp.float32), labels)
    # Cross scores and pair probabilities are computed in bf16 by the test itself.
    own = case.name.startswith(("in_batch", "pairwise_kl"))
    tolerance = 0.05 if own else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert jax.grad(case.loss)(narrow, labels).dtype == jnp.bfloat16


@within_list
def test_jit_and_vmap(case):
    scores, labels = batch(case)
    where = np.arange(N)[None] < np.asarray([[5], [3], [4]])
    plain = case.loss(scores, labels, where=where)
    np.testing.assert_allclose(
        jax.jit(case.loss)(scores, labels, where=where), plain, rtol=1e-6
    )
    one = lambda s, t, w: case.loss(s[None], t[None], where=w[None])  # noqa: E731
    each = jax.vmap(one)(scores, labels, where)
    by_hand = [one(scores[i], labels[i], where[i]) for i in range(B)]
    np.testing.assert_allclose(each, np.asarray(by_hand), rtol=1e-5)


@every
def test_the_mean_is_the_sum_over_the_count(case):
    scores, labels = batch(case)
    where = np.arange(N)[None] < np.asarray([[5], [3], [0]])
    total, count = case.loss(
        scores, labels, where=where, reduce_fn=masked.sum_and_count
    )
    mean = case.loss(scores, labels, where=where)
    np.testing.assert_allclose(mean, total / count, rtol=1e-6)
    # Counts know nothing of scores.
    spoilt = np.full_like(scores, np.nan)
    again = case.loss(spoilt, labels, where=where, reduce_fn=masked.count)
    assert again == count > 0


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (losses.ranknet, {"weight": "diff"}),
        (losses.listmle, {"on": "logit"}),
        (losses.adr_mse, {"discount": "log"}),
    ],
)
def test_a_wrong_option_is_named(loss, options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        loss(np.zeros((1, 2)), np.zeros((1, 2)), **options)


def test_a_better_order_costs_less():
    labels = np.asarray([[2.0, 1.0, 0.0]], np.float32)
    right = np.asarray([[2.0, 1.0, 0.0]], np.float32)
    for case in WITHIN_LIST:
        assert case.loss(right, labels / 2) < case.loss(right[:, ::-1], labels / 2)


def test_blocks_bound_the_memory_of_the_contrastive_loss():
    rows, number = 256, 8
    shapes = [
        jax.ShapeDtypeStruct((rows, rows, number), jnp.float32),
        jax.ShapeDtypeStruct((rows, number), jnp.int32),
        jax.ShapeDtypeStruct((rows, number), jnp.float32),
    ]

    def temporaries(block_size):
        loss = functools.partial(losses.in_batch_contrastive, block_size=block_size)
        step = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
        return step.memory_analysis().temp_size_in_bytes

    similarity = rows * rows * number * 4
    assert temporaries(None) > similarity
    assert temporaries(16) < similarity / 2
