"""The models of a job by name: where it starts, checkpoints, what it has trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from distill_jax.io.errors import UserError, near
from distill_jax.io.reading import write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import checkpoints
from distill_jax.recipe.stage import StageResult
from distill_jax.recipe.students import Student, load_model
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.dependencies import of_path
from distill_jax.workspace.describe import describe


class Models:
    """Models by name: checkpoints, and what earlier stages of this job trained."""

    def __init__(self, job: Any, workspace: Workspace):
        self.job = job
        self.workspace = workspace
        self.trained: dict[str, StageResult] = {}
        self.loaded: dict[str, Pretrained] = {}

    def initial(self) -> Pretrained:
        """The student that the job starts from, kept in ``MODEL_DIR/initial``."""
        folder = Path(self.job.directory) / "initial"
        inputs = {
            "student": describe(self.job.student),
            "seed": self.job.seed,
            "collection": self.workspace.collection.digest
            if self.job.student.reads_texts
            else None,
            "weights": of_path(checkpoints.path_of(self.job.student.checkpoint)),
        }

        def make(folder: Path) -> dict:
            student = self.made(self.job.student)
            if jax.process_index() == 0:
                student.save(folder)
                write_json(folder / "fresh.json", list(student.fresh))
            return {"source": student.source, "fresh": list(student.fresh)}

        made = part(folder, inputs, make, what="student")
        if made["fresh"]:
            names = ", ".join(made["fresh"][:4])
            say(f"new weights, not in the checkpoint: {names}")
        return Pretrained.read(folder)

    def made(self, student: Student) -> Pretrained:
        return student.make(
            lambda: self.workspace.collection.full_texts(), self.job.seed, self._path
        )

    def load(self, model: Any, **overrides: Any) -> Pretrained:
        """A checkpoint by path, ``initial``, ``stage:NAME`` or ``fresh:KIND:BACKBONE``.

        Args:
            model: one of these, or a ``checkpoints.Checkpoint``.
            overrides: what to make of it: ``kind`` and fields of its spec.
        """
        found = checkpoints.named(model, **overrides)
        name = str(found.path)
        if name == "initial":
            path = Path(self.job.directory) / "initial"
            if not found.fields:
                return Pretrained.read(path)
            found = dataclasses.replace(found, path=str(path))
        elif name.startswith("stage:"):
            if not found.fields:
                return self._stage(name)
            found = dataclasses.replace(found, path=self._path(name))
        key = repr(found)
        if key not in self.loaded:
            self.loaded[key] = load_model(found, self.workspace)
        return self.loaded[key]

    def _stage(self, name: str) -> Pretrained:
        stage = name.removeprefix("stage:")
        if stage not in self.trained:
            raise UserError(
                f"no stage {stage!r} has been trained{near(stage, self.trained)}",
                "a stage can name only stages before it",
            )
        return self.trained[stage].student

    def _path(self, name: str) -> str:
        if not name.startswith("stage:"):
            return name
        self._stage(name)
        return str(self.trained[name.removeprefix("stage:")].directory / "student")
