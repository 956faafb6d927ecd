"""How a kernel of attention is shared out over the devices of a mesh.

A compiler that partitions programs does not look into kernels, so each device is given
its rows and its heads by ``shard_map``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from distill_jax.runtime import placement


class Shares(NamedTuple):
    """The mesh (None for one device) and its axes for rows and for heads."""

    mesh: Mesh | None = None
    rows: tuple[str, ...] = ()
    heads: str | None = None


def shares(rows: int, heads: int, group: int = 1) -> Shares | None:
    """How a call on the mesh that is traced for is shared out; None where it cannot be.

    Without a mesh it is not shared out, see ``known``.

    Args:
        group: heads that a kernel takes together.
    """
    now = placement.current()
    if now is None:
        return Shares() if heads % group == 0 else None
    if now.mesh.size == 1:
        return Shares(now.mesh) if heads % group == 0 else None
    if now.leading is None:
        return None
    ways = math.prod(now.mesh.shape[axis] for axis in now.leading)
    if rows % ways or heads % (group * now.mesh.shape["model"]):
        return None
    return Shares(now.mesh, now.leading, "model")


def known() -> bool:
    """Whether it is known how rows are shared out: on one device, or on a mesh."""
    return placement.current() is not None or jax.device_count() == 1


def on_mesh(function: Callable, shares: Shares, read: str, written: str) -> Callable:
    """``function`` on each device's rows and heads.

    Args:
        read, written: a letter an array: "r" [B, L, H, ...] (or H heads' features), "b"
            a table [H, ...] that all rows share, "m" [B, ...].
    """
    if shares.mesh is None:
        return function
    leading = shares.rows or None
    specs = {
        "r": P(leading, None, shares.heads),
        "b": P(shares.heads),
        "m": P(leading),
    }
    outputs = [specs[one] for one in written]
    return jax.shard_map(
        function,
        mesh=shares.mesh,
        in_specs=tuple(specs[one] for one in read),
        out_specs=outputs[0] if len(outputs) == 1 else tuple(outputs),
        check_vma=False,
    )
