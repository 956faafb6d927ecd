"""Finished folders side by side, in one page."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report, weights
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_json
from distill_jax.io.values import UserPath
from distill_jax.models.pretrained import Pretrained, flatten
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.retrieval import embeddings
from distill_jax.workspace import ranking
from distill_jax.workspace.context import Workspace, open_workspace

_TIMED = 64  # queries that speed is measured with
_DEPTH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Two or more ``MODEL_DIR`` in one page.

    Attributes:
        model_dirs: folders of finished jobs on one collection and split, measured by
            the same first measure.
    """

    directory: UserPath
    model_dirs: tuple[UserPath, ...]

    def __call__(self, *, config: str = "", command: str = "") -> int:
        del config
        if len(self.model_dirs) < 2:
            raise UserError(
                "a comparison needs two folders",
                "--gin.MODEL_DIRS=\"('runs/a', 'runs/b')\"",
            )
        reports = {path: self._report(path) for path in self.model_dirs}
        collections = {r.get("collection") for r in reports.values()}
        if len(collections) > 1:
            raise UserError(
                f"different collections: {sorted(map(str, collections))}",
                "compare models that were measured on the same one",
            )
        measure = _measure(reports)
        names = _short(self.model_dirs)
        systems = {}
        for path, found in reports.items():
            values = found["queries"]["values"]
            systems[names[path]] = {measure: values[found["system"]]}
        data = report.compare_systems(
            systems, measure, baseline=names[self.model_dirs[0]]
        )
        collection = str(collections.pop())
        split = _split(reports)
        workspace = open_workspace(
            self.directory, collection, dev_share=0.0, test_split=split
        )
        data |= {
            "title": "comparison",
            "collection": collection,
            "systems": {
                names[path]: facts_of(
                    Path(path), dataclasses.replace(workspace, directory=Path(path))
                )
                for path in self.model_dirs
            },
            "again": command,
        }
        page = report.publish(self.directory, data)
        print(report.summary(data))
        print(json.dumps(data["systems"], indent=1))
        print(f"report: {page}")
        return 0

    def plan(self) -> int:
        print("compares", ", ".join(self.model_dirs))
        return 0

    def _report(self, path: str) -> dict:
        file = Path(path) / "report.json"
        if not file.is_file():
            raise UserError(f"no report in {path}", "finish that job first")
        found = read_json(file)
        if "queries" not in found:
            raise UserError(f"{file} has no values per query", "run that job again")
        return found


def _split(reports: dict[str, dict]) -> str:
    """The split that every report was measured on."""
    splits = {
        path: found.get("provenance", {}).get("test split", "test")
        for path, found in reports.items()
    }
    return _the_one(splits, "on different splits", "on", "on the same one (SPLIT)")


def _measure(reports: dict[str, dict]) -> str:
    """The measure whose values per query every report has."""
    measures = {path: found["queries"]["measure"] for path, found in reports.items()}
    todo = "by the same first measure (MEASURES)"
    return _the_one(measures, "differently", "by", todo)


def _the_one(values: dict[str, str], how: str, by: str, todo: str) -> str:
    """The measures of all folders; refuses folders that were measured differently."""
    if len(set(values.values())) > 1:
        told = ", ".join(f"{path} {by} {value}" for path, value in values.items())
        raise UserError(
            f"measured {how}: {told}", f"evaluate them {todo}, then compare"
        )
    return next(iter(values.values()))


def _short(paths: tuple[str, ...]) -> dict[str, str]:
    names = {path: Path(path).name for path in paths}
    return names if len(set(names.values())) == len(paths) else {p: p for p in paths}


def facts_of(folder: Path, workspace: Workspace) -> dict[str, Any]:
    """Size and speed of a finished job's model; a folder of runs alone has neither.

    Args:
        folder: the job's ``MODEL_DIR``.
        workspace: its collection; vectors are kept in its directory.
    """
    facts: dict[str, Any] = {}
    if (folder / "student").is_dir():
        model = weights.load(str(folder / "student"))
        facts["kind"] = model.spec.kind
        facts["parameters"] = int(
            sum(np.size(leaf) for leaf in flatten(model.params).values())
        )
        facts["queries_per_second"] = _queries_per_second(model, workspace)
        if model.spec.vectors is not None:
            facts["index_bytes"] = _index_bytes(model, workspace)
    cost = read_json(folder / "report.json").get("cost", {})
    facts["seconds"] = cost.get("seconds")
    return facts


def _index_bytes(model: Pretrained, workspace: Workspace) -> int:
    """Bytes on disk of the vectors of all documents."""
    found = embeddings.folder_of(
        model,
        ranking.doc_passages(model, workspace).features,
        workspace.directory / "vectors",
        corpus_digest=workspace.collection.digest,
    )
    return sum(file.stat().st_size for file in found.rglob("*") if file.is_file())


def _queries_per_second(model: Pretrained, workspace: Workspace) -> float:
    """Queries that are answered in a second on this machine, text to ranking.

    Rerankers reorder the first ``_DEPTH`` of BM25; encoders search all documents, whose
    vectors are there or are made once. The first turn compiles, and is not counted.
    """
    queries = workspace.judged.queries
    queries = queries.select(np.arange(min(_TIMED, len(queries))))
    context = Context(
        workspace=workspace,
        queries=queries,
        student=model,
        model=None,
        directory=workspace.directory,
    )
    encodes = model.spec.vectors is not None
    first = None if encodes else BM25(depth=_DEPTH)(context)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        ranking.rank(
            model,
            queries,
            workspace,
            first_stage=first,
            depth=_DEPTH,
            directory=workspace.directory / "vectors",
        )
        seconds = time.perf_counter() - started
    return len(queries) / seconds
