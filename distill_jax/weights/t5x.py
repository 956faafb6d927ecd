"""T5X checkpoints, read without T5X and without TensorFlow.

T5X wrote a format of its own until 2023 (still with ``use_orbax=False``): one msgpack
file ``checkpoint`` with the small arrays inside and the large ones as zarr folders
beside it. Version 2 keeps the parameters under ``optimizer/target``, version 3 under
``target``. Today's T5X writes Orbax. Parameter names are the same in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import abstract_params, flatten, unflatten
from distill_jax.models.t5 import T5Sizes
from distill_jax.weights import tables
from distill_jax.weights.tables import SAME, TRANSPOSED, Rule

# Errors of reading another kind of file, besides msgpack's own.
_MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
# No gzip stream grows by more than this; an array that claims more lacks its chunks.
_DEFLATED = 1032

_CHUNKED = "__msgpack_chunked_array__"


def _stack(side: str, parts: dict[str, tuple[str, str]]) -> list[Rule]:
    """``parts``: our name -> (their norm, their attention)."""
    theirs, ours = f"{side}.layers_{{i}}", f"{side}.layers.{{i}}"
    rules = [
        Rule(f"{side}.{side}_norm.scale", f"{side}.final_norm.scale"),
        Rule(
            f"{side}.relpos_bias.rel_embedding",
            f"{side}.relative_bias.embedding",
            TRANSPOSED,  # theirs is [heads, buckets]
        ),
        Rule(f"{theirs}.pre_mlp_layer_norm.scale", f"{ours}.ffn_norm.scale"),
    ]
    for name, (norm, attention) in parts.items():
        rules.append(Rule(f"{theirs}.{norm}.scale", f"{ours}.{name}_norm.scale"))
        rules += [
            Rule(f"{theirs}.{attention}.{p}.kernel", f"{ours}.{name}.{p}.kernel", SAME)
            for p in ("query", "key", "value", "out")
        ]
    rules += [
        Rule(f"{theirs}.mlp.{wi}.kernel", f"{ours}.ffn.{wi}.kernel")
        for wi in ("wi", "wi_0", "wi_1", "wo")
    ]
    return rules


TABLE: tuple[Rule, ...] = (
    Rule("token_embedder.embedding", "encoder.embedding"),
    *_stack("encoder", {"attention": ("pre_attention_layer_norm", "attention")}),
    *_stack(
        "decoder",
        {
            "self_attention": ("pre_self_attention_layer_norm", "self_attention"),
            "cross_attention": (
                "pre_cross_attention_layer_norm",
                "encoder_decoder_attention",
            ),
        },
    ),
    Rule("decoder.logits_dense.kernel", "lm_head"),
)


def read_t5x(path: str | Path) -> dict[str, np.ndarray]:
    """The parameters of a T5X checkpoint: dotted names without ``target``, float32.

    Args:
        path: a checkpoint folder (``checkpoint_N`` or the one above it, then the
            latest is taken), or a single msgpack file.

    Raises:
        UserError: not a T5X checkpoint, or an array is missing or leads outside.
    """
    path = Path(path)
    if path.is_file():
        return _legacy(path)
    if (path / "checkpoint").is_file():
        return _legacy(path / "checkpoint")
    steps = [p for p in path.glob("checkpoint_*") if p.name[11:].isdigit()]
    if steps:
        return read_t5x(max(steps, key=lambda p: int(p.name[11:])))
    for inside in ("state", "target", "default", ""):
        folder = path / inside if inside else path
        if any((folder / name).exists() for name in ("_METADATA", "manifest.ocdbt")):
            return _orbax(folder)
    raise UserError(
        f"{path}: no T5X checkpoint (looked for checkpoint, checkpoint_N, state/)",
        "give the folder that T5X wrote for one step",
    )


def _target(tree: Any, where: Path) -> dict:
    for step in ("optimizer", "target"):
        if isinstance(tree, Mapping) and step in tree:
            tree = tree[step]
    if not isinstance(tree, Mapping) or not tree:
        raise UserError(f"{where}: holds no 'target' with parameters")
    return dict(tree)


def _legacy(file: Path) -> dict[str, np.ndarray]:
    import msgpack

    try:
        tree = msgpack.unpackb(
            file.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False
        )
        return {
            name: np.asarray(_array(leaf, file.parent, name), np.float32)
            for name, leaf in _leaves(_target(tree, file))
        }
    except UserError:
        raise
    except (msgpack.exceptions.UnpackException, *_MALFORMED) as error:
        raise UserError(
            f"{file}: not a sound T5X checkpoint: {str(error)[:200]}",
            "copy or download it again",
        ) from error


def _extension(code: int, data: bytes) -> Any:
    import ml_dtypes  # registers bfloat16 with numpy
    import msgpack

    del ml_dtypes
    if code in (1, 3):  # an array, a numpy scalar
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        return np.frombuffer(buffer, np.dtype(dtype.decode())).reshape(shape)
    return msgpack.ExtType(code, data)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not (
            _CHUNKED in value or {"driver", "kvstore"} <= value.keys()
        ):
            yield from _leaves(value, name + ".")
        else:
            yield name, value


def _array(leaf: Any, folder: Path, name: str) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        return leaf
    if isinstance(leaf, Mapping) and _CHUNKED in leaf:
        chunks = leaf["chunks"]
        parts = [np.ravel(chunks[key]) for key in sorted(chunks, key=int)]
        shape = [int(size) for size in dict(leaf["shape"]).values()]
        return np.concatenate(parts).reshape(shape)
    if isinstance(leaf, Mapping):
        return _zarr(folder, str(leaf["kvstore"].get("path", "")), name)
    return np.asarray(leaf)


def _zarr(folder: Path, inside: str, name: str) -> np.ndarray:
    import tensorstore

    # The path is the last part only: checkpoints are moved, and a stranger's file must
    # not make us read elsewhere.
    place = folder / Path(inside.rstrip("/")).name
    if not (place / ".zarray").is_file():
        raise UserError(
            f"{place}: the array of {name} is missing", "copy the checkpoint again"
        )
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(place)}}
    array = tensorstore.open(spec, open=True, read=True).result()
    held = sum(path.stat().st_size for path in place.iterdir() if path.is_file())
    claimed = array.size * array.dtype.numpy_dtype.itemsize
    if claimed > _DEFLATED * held:
        raise UserError(
            f"{place}: claims {claimed:,} bytes, and holds {held:,}",
            "chunks are missing: copy the checkpoint again",
        )
    return array.read().result()


def _orbax(folder: Path) -> dict[str, np.ndarray]:
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute())
        found = getattr(found, "item_metadata", found)
        tree = getattr(found, "tree", found)
        # As numpy: the devices that wrote it need not be here.
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = checkpointer.restore(folder.absolute(), restore_args=args)
    return {
        name: np.asarray(leaf, np.float32)
        for name, leaf in _leaves(_target(state, folder))
    }


def sizes_of(arrays: Mapping[str, np.ndarray], **overrides: Any) -> T5Sizes:
    """The sizes that the shapes of a T5X checkpoint say.

    ``relative_max_distance``, dropout and epsilon are not in the arrays: they keep
    T5's own values unless given.

    Raises:
        UserError: not the names of a T5 (or layers stacked for scanning).
    """
    try:
        vocab_size, d_model = arrays["token_embedder.embedding"].shape
        heads, buckets = arrays["encoder.relpos_bias.rel_embedding"].shape
        inner = arrays["encoder.layers_0.attention.query.kernel"].shape[1]
        d_ff = arrays["encoder.layers_0.mlp.wo.kernel"].shape[0]
    except KeyError as error:
        raise UserError(
            f"the T5X checkpoint has no {error.args[0]}; it has "
            f"{', '.join(sorted(arrays)[:6])}, ...",
            "only T5 1.0 and 1.1 with separate layers (scan_layers=False) are read",
        ) from error

    def layers(side: str) -> int:
        found = (re.match(rf"{side}\.layers_(\d+)\.", name) for name in arrays)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    values = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": d_ff,
        "heads": heads,
        "d_kv": inner // heads,
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "gated": "encoder.layers_0.mlp.wi_0.kernel" in arrays,
        "tied": "decoder.logits_dense.kernel" not in arrays,
        "relative_buckets": buckets,
    }
    return T5Sizes(**{**values, **overrides})


def read(
    arrays: Mapping[str, np.ndarray],
    *,
    ignore: tuple[str, ...] = (),
    source: str = "the T5X checkpoint",
    **overrides: Any,
) -> tuple[T5Sizes, dict]:
    """The arrays of ``read_t5x`` to sizes and the parameters of ``models.t5.T5``.

    Args:
        ignore: regexes of names that the caller reads himself, as
            ``projection_layer\\.kernel`` of a dual encoder.
        overrides: fields of ``T5Sizes``; ``decoder_layers=0`` drops the decoder.

    Raises:
        UserError: names or shapes that do not fit, all of them.
    """
    sizes = sizes_of(arrays, **overrides)
    if not sizes.decoder_layers:
        ignore = (*ignore, r"decoder\..*")
    params, _ = tables.read(
        arrays, TABLE, flatten(abstract_params(sizes)), ignore=ignore, source=source
    )
    return sizes, unflatten(params)


def write(params: dict) -> dict[str, np.ndarray]:
    """The parameters of ``models.t5.T5`` under T5X's names (without ``target``)."""
    return tables.write(flatten(params), TABLE)
