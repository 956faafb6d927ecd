"""T5X checkpoint folders to students: t5x_retrieval dual encoders, T5 itself."""

from __future__ import annotations

from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import t5x
from distill_jax.weights.folders import Folder, read_json
from distill_jax.weights.students import Base, assemble

PROJECTION = "projection_layer.kernel"
# Written beside our T5X exports: the names of a checkpoint do not give the student.
NOTE = "distill_jax.json"


def read(
    folder: Folder, kind: str | None, tokenizer: Any, seed: int, fields: dict
) -> Pretrained:
    """A T5X checkpoint: a dual encoder if it has a projection or no decoder.

    Mean pooling, a projection without bias and unit length are t5x_retrieval's; give
    ``pooling=`` and ``normalise=`` where a checkpoint was trained otherwise.

    Raises:
        UserError: no tokenizer is given: T5X checkpoints have none.
    """
    note = read_json(folder.path / NOTE, {}) if folder.path.is_dir() else {}
    if tokenizer is None and note and (folder.path / "tokenizer").is_dir():
        tokenizer = Tokenizer.load(folder.path / "tokenizer")
    if tokenizer is None:
        raise UserError(
            f"{folder.path}: a T5X checkpoint has no tokenizer beside it",
            "give tokenizer=PATH, the folder or spiece.model it was trained with",
        )
    arrays = t5x.read_t5x(folder.path)
    has_decoder = any(name.startswith("decoder.") for name in arrays)
    kind = kind or note.get("kind")
    if kind is None:
        kind = "reranker" if has_decoder and PROJECTION not in arrays else None
        kind = kind or "dual_encoder"
    backbone: dict[str, Any] = dict(note.get("backbone", {}))
    if kind == note.get("kind"):
        stated = note.get("fields", {}).items()
        stated = {k: tuple(v) if isinstance(v, list) else v for k, v in stated}
        fields = {**stated, **fields}
    if not has_decoder:
        backbone["decoder_layers"] = 0
    if "relative_max_distance" in fields:
        backbone["relative_max_distance"] = fields.pop("relative_max_distance")
    sizes, params = t5x.read(
        arrays,
        ignore=(r"projection_layer\.kernel",),
        source=str(folder.path),
        **backbone,
    )
    base = Base(sizes, params, tokenizer, str(folder.path))
    given = {}
    if kind in ("dual_encoder", "colbert") and PROJECTION in arrays:
        given = {"projection.kernel": arrays[PROJECTION]}
        width = "projection" if kind == "dual_encoder" else "dim"
        fields = {width: int(arrays[PROJECTION].shape[1]), **fields}
    return assemble(kind, base, given, seed=seed, **fields)
