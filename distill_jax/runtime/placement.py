"""Placement of the values of a traced program, and the platform it is compiled for.

Layers know no mesh. They say ``rows(x)`` of their activations and ``at_use(layer)`` of
their weights; inside ``computing_on(mesh)`` both become constraints of the compiler:
activations are split over data x fsdp, weights are gathered over fsdp for one layer
at a time, in the dtype of the products, and their gradients are scattered back. Left
to itself the compiler keeps weights where they are and copies the batch instead.

This is the one module that asks for JAX's default backend: a program is compiled for
the devices of its mesh, which need not be those of this machine.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.runtime import sharding, targets

P = PartitionSpec
REMAT = ("none", "matmuls", "full")
"""Policies of recomputation, each with less memory and more work than the last."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """What layers are traced for.

    Attributes:
        mesh: the devices.
        leading: axes of the mesh that an array's first dimension is split over; none
            where a ``vmap`` over rows has taken them; None where rows do not divide
            by the devices, and nothing is constrained.
        remat: what layers recompute at least in the backward pass; see ``T5Sizes``.
    """

    mesh: Mesh
    leading: tuple[str, ...] | None = ("data", "fsdp")
    remat: str = REMAT[0]


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "placement", default=None
)


@contextlib.contextmanager
def computing_on(mesh: Mesh | None, remat: str = REMAT[0]) -> Iterator[None]:
    """What is traced inside is for the devices of ``mesh``; None for the default.

    Enter it inside of the function that is jitted: JAX keeps traces by function.
    """
    token = _current.set(None if mesh is None else Placement(mesh, remat=remat))
    try:
        yield
    finally:
        _current.reset(token)


_counted: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "counted", default=False
)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """What is traced inside is to have its FLOPs counted: in the plain form, without
    loops (of which a count takes one round) and without kernels (which count as none).
    """
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


def current() -> Placement | None:
    """The placement that is being traced for; None outside of ``computing_on``."""
    return _current.get()


def remat_of(policy: str) -> str:
    """A layer's policy, or the one that is traced for where that saves more."""
    placement = current()
    least = REMAT[0] if placement is None else placement.remat
    return max(policy, least, key=REMAT.index)


def platform(mesh: Mesh | None = None) -> str:
    """ "cpu", "gpu" or "tpu": of the mesh, of the trace, or of this machine."""
    if _counted.get():
        return "cpu"
    if mesh is None:
        placement = current()
        mesh = None if placement is None else placement.mesh
    target = targets.current()
    if target is not None:
        return target.chip.platform
    if mesh is None:
        return jax.default_backend()
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def default_dtype() -> str | None:
    """The dtype of matrix products where none is set: bfloat16 on an accelerator.

    None on a CPU: the dtype of the checkpoint, or float32.
    """
    return None if platform() == "cpu" else "bfloat16"


def rows(x: jax.Array) -> jax.Array:
    """``x`` with its first dimension over data x fsdp and the others on each device."""
    placement = current()
    if placement is None or placement.mesh.size == 1 or placement.leading is None:
        return x
    mesh, leading = placement.mesh, placement.leading
    if leading and x.shape[0] % sharding.data_devices(mesh):
        return x
    spec = P(leading or None, *(None,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def over_rows(function: Callable, number: int) -> Callable:
    """``jax.vmap(function)`` over ``number`` rows, sharded over data x fsdp."""
    placement = current()
    if placement is None or placement.mesh.size == 1:
        return jax.vmap(function)
    even = number % sharding.data_devices(placement.mesh) == 0
    inside = dataclasses.replace(placement, leading=() if even else None)

    @functools.wraps(function)
    def one(*arguments: Any) -> Any:
        token = _current.set(inside)
        try:
            return function(*arguments)
        finally:
            _current.reset(token)

    return jax.vmap(one, spmd_axis_name=placement.leading if even else None)


def at_use(layer: nnx.Module, dtype: Any) -> nnx.Module:
    """A layer with the weights that its products read: whole, but for the model axis.

    What is split over fsdp is cast to ``dtype`` first and gathered then. The gradient
    goes back to where the weight is. Called inside ``jax.checkpoint`` it is done
    again in the backward pass, so no gathered weight is kept.
    """
    placement = current()
    if placement is None or placement.mesh.shape["fsdp"] == 1:
        return layer
    graphdef, state = nnx.split(layer)
    params = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: weight(f"layers.0.{sharding.path_of(keys)}", leaf, dtype),
        nnx.to_pure_dict(state),
    )
    return nnx.merge(graphdef, nnx.State(params))


def weight(path: str, leaf: jax.Array, dtype: Any) -> jax.Array:
    """One parameter where it is read; see ``at_use``.

    Args:
        path: a name in the table of partitions.
    """
    placement = current()
    if placement is None or placement.mesh.shape["fsdp"] == 1:
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        dtype = leaf.dtype  # codes of a quantised kernel
    mesh = placement.mesh
    kept = sharding.fitting(sharding.partition_of(path), leaf.shape, mesh, path)
    if "fsdp" not in kept:
        return leaf
    used = P(*(None if axis == "fsdp" else axis for axis in kept))
    return _gather(leaf, dtype, NamedSharding(mesh, used), NamedSharding(mesh, kept))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(
    weight: jax.Array, dtype: Any, used: NamedSharding, kept: NamedSharding
) -> jax.Array:
    # Constrained twice: the cast is to happen on each device's own part.
    part = jax.lax.with_sharding_constraint(weight.astype(dtype), kept)
    return jax.lax.with_sharding_constraint(part, used)


def _gather_forward(weight, dtype, used, kept):
    return _gather(weight, dtype, used, kept), jnp.zeros((), weight.dtype)


def _gather_backward(dtype, used, kept, stored, gradient):
    # Whole first, or the compiler would split the summands by features.
    part = jax.lax.with_sharding_constraint(gradient, used)
    part = jax.lax.with_sharding_constraint(part, kept)
    return (part.astype(stored.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)
