"""T5X checkpoints: its parameter names in its own single-file format.

T5X restores it with ``restore_optimizer_state=False``: there are no moments in it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from distill_jax.export.folders import as_numpy, note_of
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.t5 import T5Sizes
from distill_jax.weights import t5x
from distill_jax.weights.t5x_folders import NOTE, PROJECTION

# msgpack cannot hold more in one extension; T5X stores larger arrays beside the file.
_LARGEST = 2**32 - 2**10


def write(pretrained: Pretrained, folder: Path) -> None:
    """``checkpoint`` (msgpack), the tokenizer, and what the names do not say.

    Raises:
        UserError: no T5, two towers, or an array that the format cannot hold.
    """
    spec, params = pretrained.spec, as_numpy(pretrained.params)
    if not isinstance(spec.backbone, T5Sizes):
        raise UserError(
            "T5X holds T5 models, this is a BERT or an ELECTRA",
            "leave format out: it is chosen from the model",
        )
    if spec.backbone.layer_bias:
        raise UserError(
            "T5X's layers have one relative bias", 'use format="transformers"'
        )
    if spec.vectors is None:
        if "head" in params:
            raise UserError(
                "T5X has no encoder with a linear head", 'use format="transformers"'
            )
        arrays = t5x.write(params["backbone"])
    else:
        if not getattr(spec, "tied", True):
            raise UserError(
                "t5x_retrieval's towers are one", 'use format="sentence_transformers"'
            )
        tower = params.get("tower", params)
        arrays = t5x.write({"encoder": tower["encoder"]})
        if "projection" in tower:
            if "bias" in tower["projection"] or tower.get("project"):
                raise UserError(
                    "t5x_retrieval has one projection, without a bias",
                    'use format="sentence_transformers"',
                )
            arrays[PROJECTION] = tower["projection"]["kernel"]
    write_checkpoint(folder / "checkpoint", arrays)
    pretrained.tokenizer.save(folder / "tokenizer")
    note = note_of(spec)
    kept = dataclasses.asdict(spec.backbone)
    shapes = ("relative_max_distance", "eps", "dropout", "scale_logits", "activation")
    write_json(folder / NOTE, {**note, "backbone": {k: kept[k] for k in shapes}})


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by dotted names to a T5X checkpoint file of its version 2."""
    import msgpack

    target: dict = {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, np.float32)
        if array.nbytes > _LARGEST:
            raise UserError(
                f"{name} has {array.nbytes} bytes, more than msgpack holds",
                'export with format="transformers"',
            )
        *parents, last = name.split(".")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _packed(array)
    step = _packed(np.asarray(0, np.int32))
    state = {"step": step, "param_states": {}}
    tree = {"version": 2, "optimizer": {"state": state, "target": target}}
    with atomic_write(path, "wb") as out:
        out.write(msgpack.packb(tree, strict_types=True))


def _packed(array: np.ndarray):
    """An array as flax's msgpack extension has it: (shape, dtype, bytes)."""
    import msgpack

    record = (list(array.shape), array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(record, use_bin_type=True))
