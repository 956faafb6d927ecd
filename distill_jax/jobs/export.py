"""A checkpoint to a folder that the library which serves it loads, with proof."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distill_jax.ir.files import read_json
from distill_jax.models import weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Exports any model that ``distill_jax.load`` takes.

    Attributes:
        checkpoint: a MODEL_DIR, a checkpoint step, or any folder of the ecosystem.
        directory: where the export goes.
        format: "transformers", "sentence_transformers", "pylate" or "t5x"; None
            chooses by the model.
        kind: makes another student of a base model; None keeps what it is.
    """

    checkpoint: str
    directory: str
    format: str | None = None
    kind: str | None = None
    tolerance: float = 1e-4

    def __call__(self, *, config: str = "", command: str = "") -> int:
        del config
        from distill_jax import export

        model = weights.load(self.checkpoint, kind=self.kind)
        report = Path(self.checkpoint) / "report.json"
        found = read_json(report) if report.is_file() else {}
        result = export.write(
            model,
            self.directory,
            format=self.format,
            measures=found.get("measures"),
            provenance={"collection": found.get("collection"), "command": command},
            tolerance=self.tolerance,
        )
        print(f"{result['directory']}: {result['format']}")
        return 0

    def plan(self) -> int:
        print(f"exports {self.checkpoint} to {self.directory}")
        return 0
