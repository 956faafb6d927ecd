"""Weights out: a trained student to the library that it will be served with.

``write`` makes a folder aside, proves it, writes its card, and only then puts it in
its place. Formats: ``transformers``, ``sentence_transformers``, ``pylate``, ``t5x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.export import (
    hugging_face,
    model_card,
    pylate,
    sentence_transformers,
    storage,
    t5x,
    verify,
)
from distill_jax.export.folders import MARK, replaced
from distill_jax.io.errors import UserError, near
from distill_jax.io.reading import write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.reranker import CROSS_ENCODER
from distill_jax.models.t5 import T5Sizes
from distill_jax.ops.vector_form import VectorForm

FORMATS = {
    "transformers": hugging_face.write,
    "sentence_transformers": sentence_transformers.write,
    "pylate": pylate.write,
    "t5x": t5x.write,
}


def chosen(spec: Any) -> str:
    """The format that serves a student most widely."""
    is_t5 = isinstance(spec.backbone, T5Sizes)
    if spec.vectors is VectorForm.PER_TOKEN:
        return "t5x" if is_t5 else "pylate"
    if spec.vectors in (VectorForm.ONE, VectorForm.SPARSE):
        return "sentence_transformers"
    if spec.documents == 1 and not is_t5 and spec.prompt == CROSS_ENCODER:
        return "sentence_transformers"
    return "transformers"


def write(
    pretrained: Pretrained,
    directory: str | Path,
    format: str | None = None,
    *,
    samples: tuple[Sequence[str], Sequence[str]] | None = None,
    measures: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    library: bool = True,
    dtype: str = "float32",
    shard_bytes: int = storage.SHARD_BYTES,
) -> dict[str, Any]:
    """Exports a student, verified.

    Args:
        pretrained: the student.
        directory: the folder to write; an earlier export there is replaced, and
            only by one that passed its verification.
        format: one of ``FORMATS``; None chooses by the student.
        samples: real queries and documents for the verification; every query is
            scored with every document. Built-in ones when None.
        measures: ``{"nDCG@10": 0.7}``, or that by system (``"before"``, ``"after"``).
        provenance: facts for the card, e.g. ``{"collection": "beir:...",
            "method": "TWOLAR", "license": "apache-2.0"}``.
        calibration: ``scale``, ``shift`` and ``threshold`` of the scores (see
            ``evaluation.calibration``): for the card, and as ``calibration.json``.
        tolerance: greatest absolute difference of scores.
        library: verify with the target library where it is installed.
        dtype: of the weights on disk, one of ``storage.DTYPES``. What is verified is
            the model with its weights so rounded, computing in float32.
        shard_bytes: a model's weights above this size become several files.

    Returns:
        what ``verification.json`` holds, and ``directory``.

    Raises:
        UserError: the format cannot express the student, or its verification failed;
            nothing is left on disk in that case.
    """
    spec = pretrained.spec
    format = format or chosen(spec)
    if format not in FORMATS:
        raise UserError(
            f"no export format {format!r}{near(format, FORMATS)}",
            f"one of {', '.join(FORMATS)}",
        )
    if dtype not in storage.DTYPES:
        raise UserError(
            f"no dtype {dtype!r} of weights{near(dtype, storage.DTYPES)}",
            f"one of {', '.join(storage.DTYPES)}",
        )
    if dtype != "float32":
        if format == "t5x":
            raise UserError("t5x is exported in float32", "leave the dtype out")
        pretrained = storage.rounded(pretrained, dtype)
    with replaced(directory) as folder:
        FORMATS[format](pretrained, folder)
        storage.store(folder, dtype, shard_bytes)
        result = verify.verified(
            pretrained, folder, format, samples, tolerance, library
        )
        write_json(folder / MARK, result)
        if calibration:
            write_json(folder / "calibration.json", dict(calibration))
        card = model_card.text(
            pretrained, format, result, measures, provenance, calibration
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    for reader in result["readers"]:
        print(f"export: {verify.Agreement(**reader).line()}")
    if result["not_verified_by"]:
        print(f"export: not verified by {result['not_verified_by']}")
    return {**result, "directory": str(directory)}
