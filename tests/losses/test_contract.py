"""A user's own loss works by the documented signature, or is refused at once."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from distill_jax import losses
from distill_jax.batches import Targets
from distill_jax.io.errors import UserError
from distill_jax.losses import Listwise, Mixture, Term


def squared(scores, labels, *, where=None):
    where = jnp.ones(scores.shape, bool) if where is None else where
    return jnp.where(where, (scores - labels) ** 2, 0.0).sum() / where.sum()


class Student:
    def scores(self, rep, batch):
        return rep


class Targeted(NamedTuple):
    """As much of a batch as losses read."""

    targets: Targets


def batch_of(labels) -> Targeted:
    return Targeted(Targets(labels=labels, where=jnp.ones(labels.shape, bool)))


def test_the_documented_signature_is_enough_for_a_whole_batch():
    scores, labels = jnp.asarray([[1.0, 3.0]]), jnp.asarray([[0.0, 1.0]])
    loss, parts = Listwise(loss=squared)(Student(), scores, batch_of(labels))
    assert float(loss) == 2.5
    assert float(parts["list"]) == 2.5


def test_a_loss_that_cannot_be_split_says_so_and_not_by_a_type_error():
    labels = jnp.asarray([[0.0, 1.0]])
    with pytest.raises(UserError, match="takes no reduce_fn"):
        Listwise(loss=squared).counts(batch_of(labels))
    with pytest.raises(UserError, match="takes no reduce_fn"):
        Listwise(loss=squared).partial(Student(), labels, batch_of(labels), {})
    counts = jax.jit(Listwise(loss=losses.ranknet).counts)(batch_of(labels))
    assert float(counts["list"]) > 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda scores: scores,
        lambda scores, labels: scores,
        lambda scores, labels, margin, *, where=None: scores,
        "ranknet",
        5,
    ],
)
def test_another_signature_is_refused_when_the_objective_is_built(loss):
    for build in (lambda: Listwise(loss=loss), lambda: Term("mine", loss)):
        with pytest.raises(UserError) as stop:
            build()
        assert len(str(stop.value).splitlines()) <= 2


def test_options_are_parameters_of_the_loss_and_of_their_types():
    with pytest.raises(UserError, match="temperatur"):
        Term("kl", losses.kl_divergence, options={"temperatur": 1.0})
    with pytest.raises(UserError, match="student_temperature is 'abc'"):
        Term("kl", losses.kl_divergence, options={"student_temperature": "abc"})
    term = Term("kl", losses.kl_divergence, options={"student_temperature": 1})
    assert type(term.options["student_temperature"]) is float


def test_parameters_bound_to_a_loss_count_as_given():
    bound = functools.partial(losses.kl_divergence, student_temperature=0.05)
    assert Mixture((Term("kl", bound),))
