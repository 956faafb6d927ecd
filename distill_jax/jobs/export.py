"""A checkpoint to a folder that the library which serves it loads, with proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from distill_jax.io.reading import read_json
from distill_jax.io.values import Positive, UserPath
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import checkpoints
from distill_jax.recipe.checkpoints import Model
from distill_jax.workspace.context import Workspace

AUTO = "auto"
Format: TypeAlias = Literal[
    "auto", "transformers", "sentence_transformers", "pylate", "t5x"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Exports any model that ``distill_jax.load`` takes.

    Attributes:
        checkpoint: a MODEL_DIR, a checkpoint step, or any folder of the ecosystem; or
            a ``checkpoints.Checkpoint`` of one.
        directory: the folder to export to.
        format: "transformers", "sentence_transformers", "pylate" or "t5x"; None
            chooses by the model.
        dtype: of the weights on disk.
    """

    checkpoint: Model
    directory: UserPath
    format: Format | None = None
    tolerance: Positive = 1e-4
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __call__(self, *, config: str = "", command: str = "") -> int:
        del config
        from distill_jax import export

        found = checkpoints.named(self.checkpoint)
        model = checkpoints.load(found)
        report = Path(str(found.path)) / "report.json"
        found = read_json(report) if report.is_file() else {}
        result = export.write(
            model,
            self.directory,
            format=None if self.format == AUTO else self.format,
            measures=found.get("measures"),
            provenance={"collection": found.get("collection"), "command": command},
            tolerance=self.tolerance,
            dtype=self.dtype,
        )
        print(f"{result['directory']}: {result['format']}")
        return 0

    def plan(self) -> int:
        print(f"exports {self.checkpoint} to {self.directory}")
        return 0


def exported(
    student: Pretrained,
    workspace: Workspace,
    format: str | None,
    measures: Mapping[str, Any],
    directory: str | Path,
    calibration: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """``MODEL_DIR/export`` at the end of a training job.

    Args:
        format: one of ``export.FORMATS``, ``AUTO`` for the student's own, None for no
            export.
        measures: of the card, by system.
        directory: the job's ``MODEL_DIR``.
        calibration: what ``evaluation.calibration.report`` gives; None for none.

    Returns:
        what ``export.write`` does. The proof is over texts of the collection.
    """
    if format is None:
        return None
    from distill_jax import export

    judged = workspace.test or workspace.dev
    assert judged is not None  # measures were taken on one of them
    return export.write(
        student,
        Path(directory) / "export",
        format=None if format == AUTO else format,
        measures=measures,
        calibration=calibration,
        samples=(judged.queries.texts[:4], workspace.collection.full_texts()[:16]),
    )
