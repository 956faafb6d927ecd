"""Where arrays live: one mesh, and one table from parameter path to partition.

Three axes. ``data`` splits the batch and copies the parameters; ``fsdp`` splits both;
``model`` splits the inside of layers (heads, feed-forward, vocabulary). Modules use
none of this. The loss is a function of the global batch, whatever the mesh.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.io.errors import UserError, near
from distill_jax.runtime import targets

AXES = ("data", "fsdp", "model")
BATCH = PartitionSpec(("data", "fsdp"))

P = PartitionSpec
# Matched against the whole path, as in "backbone.encoder.layers.0.ffn.wo.kernel".
# Exactly one rule has to match each parameter.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Tables of words: rows over the model axis, features over fsdp.
    (r"(?!.*relative_bias)(.*\.)?(embedding|embeddings\.word)", P("model", "fsdp")),
    (r"(.*\.)?lm_head", P("fsdp", "model")),
    # Attention: heads over the model axis.
    (r".*attention\.(query|key|value)\.kernel", P("fsdp", "model")),
    (r".*attention\.(query|key|value)\.bias", P("model")),
    (r".*attention\.out\.kernel", P("model", "fsdp")),
    # Feed-forward: the wide side over the model axis. T5's names, then BERT's.
    (r".*\.(ffn\.(wi|wi_0|wi_1)|up|gate)\.kernel", P("fsdp", "model")),
    (r".*\.(up|gate)\.bias", P("model")),
    (r"(.*\.)?mlm\.bias|query_weights", P("model")),  # one for each word
    (r".*\.(ffn\.wo|down)\.kernel", P("model", "fsdp")),
    # Small things are copied.
    (r".*(attention\.out|\.down)\.bias", P()),
    (r"(.*\.)?(relative_bias\.embedding|distances\.table)", P()),
    (r"(.*\.)?embeddings\.(position|token_type)", P()),
    (r"(.*[._])?norm\.(scale|bias)", P()),
    (r".*\.lora_(a|b|scale)", P()),
    # Heads and projections, one matrix each.
    (r"(.*\.)?(head|projection|project)(\.(?!norm)\w+)?\.(kernel|bias)", P()),
)


def partition_of(path: str) -> PartitionSpec:
    """The partition of a parameter.

    Raises:
        LookupError: no rule, or more than one, matches the path.
    """
    kernel, _, part = path.partition(".kernel.")
    if part:  # a quantised kernel's codes, scales of columns, gains of rows
        whole = partition_of(f"{kernel}.kernel")
        return {"codes": whole, "scales": P(*whole[1:]), "gains": P(*whole[:1])}[part]
    found = [(rule, part) for rule, part in RULES if re.fullmatch(rule, path)]
    if len(found) != 1:
        names = [rule for rule, _ in found]
        raise LookupError(
            f"parameter {path} matches {len(found)} sharding rules {names}; "
            "each needs exactly one in models/sharding.py"
        )
    return found[0][1]


def make_mesh(spec: str | None = None, devices: Any = None) -> Mesh:
    """A mesh with the axes data, fsdp and model.

    Args:
        spec: "data=4,model=2"; axes left out have size 1, except that ``data`` takes
            the devices that are left. None puts all devices on ``data``.
        devices: all of this program's by default.

    Raises:
        UserError: a name or a size that does not fit.
    """
    devices = list(_devices() if devices is None else devices)
    sizes: dict[str, int] = {}
    for part in filter(None, (spec or "").replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise UserError(
                f"mesh axis {name!r} in {spec!r} is not known{near(name, AXES)}",
                "write it as in 'data=4,model=2'; the axes are data, fsdp, model",
            )
        if name in sizes:
            raise UserError(f"mesh axis {name!r} is given twice in {spec!r}")
        if not size.isdigit() or int(size) < 1:
            raise UserError(f"mesh axis {part!r} needs a size of at least 1")
        sizes[name] = int(size)
    inner = sizes.get("fsdp", 1) * sizes.get("model", 1)
    sizes.setdefault("data", max(1, len(devices) // inner))
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    total = math.prod(shape)
    if total > len(devices) or (total < len(devices) and jax.process_count() > 1):
        raise UserError(
            f"the mesh {dict(zip(AXES, shape))} needs {total} devices, "
            f"there are {len(devices)}",
            "change MESH, or leave it out to put all devices on data",
        )
    grid = _grid(devices[:total], shape)
    # Auto: the compiler places intermediate values; explicit axes break nnx.Embed.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(devices: list, shape: tuple[int, ...]) -> np.ndarray:
    """Devices by the axes: neighbours on a TPU's torus, slices over ``data`` alone.

    The ``data`` axis exchanges the least, so it crosses the network between
    slices.
    """
    if devices[0].platform != "tpu" or len(devices) == 1:
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    if shape[0] % slices:
        raise UserError(
            f"{slices} slices cannot share out data={shape[0]}",
            f"set MESH so that data is a multiple of {slices}",
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, *(1,) * (len(shape) - 1)),
        devices,
        allow_split_physical_axes=True,
    )


def _devices() -> list:
    target = targets.current()
    if target is not None:
        return list(target.devices)
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # without a plug-in it asserts
        asked = getattr(jax.config, "jax_platforms", None) or "an accelerator"
        reason = (str(error).splitlines() or ["JAX has no plug-in for it"])[0]
        raise UserError(
            f"the requested device is not available ({asked}): {reason[:200]}",
            "pip install 'jax[cuda12]' on a machine with a GPU, or run with "
            "JAX_PLATFORMS=cpu",
        ) from error


def fitting(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, path: str = ""
) -> PartitionSpec:
    """``spec`` without the axes that do not divide their dimension; warns once."""
    parts = []
    for size, axes in zip(shape, tuple(spec) + (None,) * len(shape)):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        ways = math.prod(mesh.shape[name] for name in names)
        if ways > 1 and size % ways:
            _notice(path, size, ways)
            axes = None
        parts.append(axes)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


@functools.cache
def _notice(path: str, size: int, ways: int) -> None:
    logging.getLogger(__name__).warning(
        "%s: a dimension of %d does not divide by %d devices; it is copied instead",
        re.sub(r"\.\d+\.", ".*.", path) or "a batch",
        size,
        ways,
    )


def path_of(keys: Any) -> str:
    """jax's key path as our dotted name."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in keys)


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding of each parameter; takes arrays or ``ShapeDtypeStruct``."""

    def sharding(keys, leaf):
        path = path_of(keys)
        spec = fitting(partition_of(path), leaf.shape, mesh, path)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def spread(place: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The same sharding with ``data`` on the first dimension that it divides as well.

    Where none does, or ``data`` is 1, the sharding is unchanged.
    """
    mesh = place.mesh
    parts = [*place.spec, *(None,) * (len(shape) - len(place.spec))]
    for axis, (size, part) in enumerate(zip(shape, parts)):
        names = (part,) if isinstance(part, str) else tuple(part or ())
        ways = math.prod(mesh.shape[name] for name in (*names, "data"))
        if size % ways == 0:
            parts[axis] = (*names, "data")
            return NamedSharding(mesh, PartitionSpec(*parts))
    return place


def shard_params(params: Any, mesh: Mesh) -> Any:
    """The parameters on the mesh, each placed by the partition table."""
    return jax.device_put(params, param_shardings(params, mesh))


def data_devices(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def at_once(per_device: int, rows: int, mesh: Mesh) -> int | None:
    """Queries at a time over all devices, of ``per_device`` on each; None for all.

    On several devices the most that divides a batch of ``rows`` and gives each device
    a share; on one it is what is said.
    """
    ways = data_devices(mesh)
    most = per_device * ways
    if most >= rows:
        return None
    if ways == 1:
        return per_device
    least = ways if rows % ways == 0 else 1
    sizes = (n for n in range(most, 0, -1) if rows % n == 0 and n % least == 0)
    return next(sizes, None)


def batch_sharding(leaf: Any, mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis ``axis`` over data and fsdp together."""
    spec = P(*(None,) * axis, ("data", "fsdp"))
    return NamedSharding(mesh, fitting(spec, leaf.shape, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A host's batch to its part of the global batch, leading axis over data x fsdp.

    With several processes each passes its own rows; with one the batch is global.
    """
    if jax.process_count() == 1:
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, batch_sharding(leaf, mesh)), batch
        )
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)),
        batch,
    )
