"""The state that a training carries from step to step, and its sharding."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.models import lora
from distill_jax.models.pretrained import unflatten
from distill_jax.runtime import sharding
from distill_jax.training.optimizers import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that the next step depends on, besides its batch.

    Attributes:
        step: number of updates done, int32.
        params: the nested dict of parameters, float32, with adapters where these are
            trained; see ``models.lora``.
        opt_state: the moments of the optimiser.
        key: the run's random key. It never changes: each step folds its number in.
    """

    step: Any
    params: Any
    opt_state: Any
    key: Any


def abstract(params: Any, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state, without touching a device.

    Args:
        params: arrays or ``jax.ShapeDtypeStruct`` leaves.
    """
    prepared = optimizer.trainable.prepared
    params = jax.eval_shape(lambda tree: prepared(_masters(tree), 0), params)
    opt_state = jax.eval_shape(optimizer.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=opt_state,
        key=key,
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        state,
        shardings(state, optimizer, mesh),
    )


def shardings(state: TrainState, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """A ``NamedSharding`` for each leaf: moments are placed like their parameters."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    places = sharding.param_shardings(state.params, mesh)
    trained = moments_like(state.params, optimizer, mesh)

    def place(leaf: Any, param: Any, where: NamedSharding) -> NamedSharding:
        # Adafactor's row and column moments have other shapes; they are small.
        return where if leaf.shape == param.shape else everywhere

    return TrainState(
        step=everywhere,  # type: ignore[arg-type]
        params=places,
        opt_state=optax.tree_map_params(
            optimizer.transform.init,
            place,
            state.opt_state,
            optimizer.trainable.parted(state.params)[0],
            trained,
            transform_non_params=lambda _: everywhere,
        ),
        key=everywhere,
    )


def moments_like(params: Any, optimizer: Optimizer, mesh: Mesh) -> Any:
    """Where a moment of each trained parameter lives; with ZeRO, its gradient too."""
    places = sharding.param_shardings(params, mesh)
    trained = optimizer.trainable.parted(places)[0]
    if not optimizer.zero:
        return trained
    leaves = optimizer.trainable.parted(params)[0]
    return jax.tree.map(
        lambda leaf, place: sharding.spread(place, leaf.shape), leaves, trained
    )


def create(params: Any, optimizer: Optimizer, mesh: Mesh, seed: int) -> TrainState:
    """The state before the first step, laid out on the mesh.

    Args:
        params: initial parameters on the host or on any devices; they are copied.
    """
    target = abstract(params, optimizer, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, target)
    params = optimizer.trainable.prepared(_masters(params), seed)
    params = sharding.shard_params(params, mesh)

    def make(params: Any) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            key=jax.random.key(seed),
        )

    return jax.jit(make, out_shardings=places)(params)


def student_params(params: Any, mesh: Mesh) -> Any:
    """The parameters of a state as the student has them: adapters are merged."""
    own, adapters = lora.parted(params)
    if not adapters:
        return params
    places = sharding.param_shardings(unflatten(own), mesh)
    return jax.jit(lora.merged, out_shardings=places)(params)


@jax.jit
def all_finite(params: Any) -> Any:
    """Whether no parameter is nan or infinite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves))


def _masters(params: Any) -> Any:
    """Float32 master copies: bfloat16 would round small updates to nothing."""

    def master(leaf: Any) -> Any:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float32) if floating else leaf

    return jax.tree.map(master, params)
