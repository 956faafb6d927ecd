"""One pure train step for every student and every loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from distill_jax.batches import batch_size
from distill_jax.io.errors import UserError
from distill_jax.runtime import placement, sharding
from distill_jax.training.gradcache import (
    Gradient,
    cached_gradient,
    represent,
    split,
    student_of,
)
from distill_jax.training.optimizers import Optimizer
from distill_jax.training.state import TrainState, moments_like, shardings
from distill_jax.training.trainable import joined

Numbers = dict[str, Any]


def train_step(
    state: TrainState,
    batch: Any,
    *,
    gradient: Gradient,
    optimizer: Optimizer,
    dropout: bool,
    place: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[TrainState, Numbers]:
    """One update, or none when the loss or its gradient is not finite.

    Args:
        place: lays a tree of gradients, or of their parameters, out as the moments are.

    Returns:
        The next state, and the numbers of this step: ``loss``, its parts by name,
        ``gradient_norm`` before clipping, ``learning_rate``, ``score_spread`` (mean
        over lists of greatest minus least score; nan where no list has two docs) and
        ``finite``.
    """
    keys = row_keys(state, batch_size(batch)) if dropout else None
    before, rest = optimizer.trainable.parted(state.params)
    (loss, (parts, spread)), grads = gradient(before, batch, keys, rest)
    grads, before = place(grads), place(before)
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.transform.update(grads, state.opt_state, before)
    params = optax.apply_updates(before, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    # Moments included: one bad batch must leave no trace in what is trained on.
    step, params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (state.step + 1, params, opt_state),
        (state.step, before, state.opt_state),
    )
    numbers = {"loss": loss, **parts, "gradient_norm": norm, "finite": finite}
    numbers["learning_rate"] = optimizer.schedule(state.step)
    numbers["score_spread"] = spread[0] / spread[1]
    new = TrainState(
        step=step, params=joined(params, rest), opt_state=opt_state, key=state.key
    )
    return new, numbers


def lower_step(
    state: TrainState,
    batch: Any,
    *,
    graphdef: Any,
    objective: Any,
    optimizer: Optimizer,
    mesh: Mesh,
    chunk: int | None = None,
    micro_batch: int | None = None,
    remat: str = "none",
) -> Any:
    """The step as a program for a mesh, to be compiled; nothing is computed.

    Args:
        state, batch: arrays, or shapes with their shardings.
        objective: see ``make_gradient``; with ``at(step)`` it changes as training goes.
        chunk, micro_batch: queries at once, over all devices together.
        remat: what layers recompute at least; see ``T5Sizes``.

    Returns:
        ``jax.stages.Lowered`` of ``(state, batch) -> (state, numbers)``.
    """
    dropout = uses_dropout(graphdef, state.params, batch)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Numbers]:
        gradient = make_gradient(
            graphdef,
            objective.at(state.step) if hasattr(objective, "at") else objective,
            chunk=chunk,
            micro_batch=micro_batch,
            rows=NamedSharding(mesh, sharding.BATCH) if mesh.size > 1 else None,
        )
        with placement.computing_on(mesh, remat):
            return train_step(
                state,
                batch,
                gradient=gradient,
                optimizer=optimizer,
                dropout=dropout,
                place=place,
            )

    moments = moments_like(state.params, optimizer, mesh)

    def place(tree: Any) -> Any:
        if not optimizer.zero:
            return tree
        return jax.lax.with_sharding_constraint(tree, moments)

    places = shardings(state, optimizer, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))
    return jitted.lower(state, batch)


def row_keys(state: TrainState, rows: int) -> Any:
    """A random key for each query of this step's batch."""
    key = jax.random.fold_in(state.key, state.step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def make_gradient(
    graphdef: Any,
    objective: Any,
    *,
    chunk: int | None = None,
    micro_batch: int | None = None,
    rows: NamedSharding | None = None,
) -> Gradient:
    """Chooses how the gradient of a batch is computed; the result is the same.

    Args:
        objective: ``(student, rep, batch) -> (loss, parts)``.
        chunk: number of queries represented at a time (GradCache); any loss.
        micro_batch: number of queries per forward and backward pass; only losses
            that are sums over queries.
        rows: sharding of the query axis of a batch.
    """
    if chunk is not None and micro_batch is not None:
        raise UserError(
            f"both a chunk of {chunk} and a micro-batch of {micro_batch} are set",
            "set one: chunks serve every loss, micro-batches save a forward pass",
        )
    if micro_batch is not None:
        return accumulated_gradient(graphdef, objective, micro_batch, rows)

    def loss(student: Any, rep: Any, batch: Any) -> Any:
        return _with_spread(objective(student, rep, batch), student, rep, batch)

    if chunk is not None:
        return cached_gradient(graphdef, loss, chunk, rows)
    return plain_gradient(graphdef, loss)


def plain_gradient(graphdef: Any, loss: Callable) -> Gradient:
    """The gradient of a whole batch at once."""

    def of_params(params: Any, batch: Any, keys: Any, rest: Any = None) -> Any:
        student = student_of(graphdef, params, rest)
        return loss(student, represent(student, batch, keys), batch)

    return jax.value_and_grad(of_params, has_aux=True)


def accumulated_gradient(
    graphdef: Any, objective: Any, micro_batch: int, rows: NamedSharding | None = None
) -> Gradient:
    """The gradient as a sum over micro-batches, each divided by the batch's counts.

    A mean over pairs is not the mean of the micro-batches' means if counts differ,
    so the counts of the whole batch come first: they do not depend on the scores.
    """
    if not hasattr(objective, "partial"):
        raise UserError(
            "this objective cannot be summed over micro-batches",
            "use a GradCache chunk instead: it serves every loss",
        )

    def gradient(params: Any, batch: Any, keys: Any, rest: Any = None) -> Any:
        counts = objective.counts(batch)

        def of_params(params: Any, batch: Any, keys: Any) -> Any:
            student = student_of(graphdef, params, rest)
            rep = represent(student, batch, keys)
            found = objective.partial(student, rep, batch, counts)
            return _with_spread(found, student, rep, batch)

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            found = jax.value_and_grad(of_params, has_aux=True)(params, *piece)
            return jax.tree.map(jnp.add, total, found), None

        pieces = split((batch, keys), micro_batch, rows)
        first = jax.tree.map(lambda leaf: leaf[0], pieces)
        shapes = jax.eval_shape(
            jax.value_and_grad(of_params, has_aux=True), params, *first
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, pieces)[0]

    return gradient


def score_spread(
    scores: Float[Array, "B N"], where: Bool[Array, "B N"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum over lists of (greatest - least score), and the number of lists.

    Lists with fewer than two docs are left out: they can say nothing of a collapse.
    """
    scores = jax.lax.stop_gradient(scores).astype(jnp.float32)
    most = jnp.max(scores, axis=-1, where=where, initial=-jnp.inf)
    least = jnp.min(scores, axis=-1, where=where, initial=jnp.inf)
    counted = jnp.sum(where, axis=-1) > 1
    total = jnp.sum(jnp.where(counted, most - least, 0.0))
    return total, jnp.sum(counted).astype(jnp.float32)


def uses_dropout(graphdef: Any, params: Any, batch: Any) -> bool:
    """Whether the student draws random numbers at all, found by tracing it once.

    A student without dropout is not run row by row under ``vmap`` needlessly.
    """

    def run(key: Any, params: Any, batch: Any) -> Any:
        student = student_of(graphdef, params)
        return student.represent(batch, rngs=nnx.Rngs(dropout=key))

    key = jax.eval_shape(lambda: jax.random.key(0))
    params, batch = jax.eval_shape(lambda *trees: trees, params, batch)
    # Keys are split whether or not a rate is 0; only a real draw makes bits.
    return "random_bits[" in str(jax.make_jaxpr(run)(key, params, batch))


def _with_spread(found: Any, student: Any, rep: Any, batch: Any) -> Any:
    loss, parts = found
    scores = student.scores(rep, batch)
    return loss, (parts, score_spread(scores, batch.targets.where))
