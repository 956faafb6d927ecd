"""Tables of papers: models and runs over many collections, in one resumable command."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.collections.groups import GROUPS
from distill_jax.collections.qrels import Qrels
from distill_jax.evaluation.measures import evaluate_queries, measured_names
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import atomic_write
from distill_jax.io.values import Size
from distill_jax.jobs.evaluate import without_own
from distill_jax.recipe import checkpoints
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.recipe.checkpoints import Checkpoint
from distill_jax.recipe.students import load_model
from distill_jax.report.grid import (
    Values,
    latex,
    significance,
    table_of,
    text,
    write_tsv,
)
from distill_jax.runs.run import Run
from distill_jax.runtime import sharding
from distill_jax.workspace import ranking
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace, open_workspace
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """Systems by collections.

    Attributes:
        collections: each ``scheme:where``, ``qrels:FILE`` (judgements alone, for runs),
            a name of ``GROUPS``, or (name, collections) for the mean over several.
        checkpoints: models; encoders search, rerankers reorder each of
            ``first_stages``.
        reading: how ``checkpoints`` are read; None as they say themselves.
        first_stages: sources, which are rows of the table too.
        runs: ``{collection: (TREC files)}``; a run is called by its file's name up to
            the first dot, so that one system has one row.
        measures: by trec_eval's rules; the tables are of the first.
        published: ``{system: {collection: value}}``, shown beside the cells.
        duo_depth: documents of a list that a pairwise reranker compares, all pairs.
        without_own: leave out documents whose id is the query's own (ArguAna, Quora).
    """

    directory: str
    collections: tuple[Any, ...]
    checkpoints: tuple[Any, ...] = ()
    reading: Checkpoint | None = None
    first_stages: tuple[Any, ...] = dataclasses.field(default_factory=lambda: (BM25(),))
    runs: Any = dataclasses.field(default_factory=dict)
    measures: tuple[str, ...] = ("nDCG@10",)
    split: str = "test"
    depth: int = 100
    duo_depth: Size = ranking.DUO_DEPTH
    published: Any = dataclasses.field(default_factory=dict)
    without_own: bool = False
    index: str = "auto"
    seed: int = 0
    mesh: str | None = None
    max_queries: int | None = None

    def __call__(self, *, config: str = "", command: str = "") -> int:
        measured_names(self.measures)
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.gin").write_text(config, encoding="utf-8")
        columns = self.columns()
        measured: dict[str, Values] = {measure: {} for measure in self.measures}
        for where in dict.fromkeys(spec for _, specs in columns for spec in specs):
            for system, run, qrels in self._systems(where, directory):
                values = evaluate_queries(run, qrels, list(self.measures))
                for measure, per_query in values.items():
                    measured[measure].setdefault(system, {})[where] = per_query
                mean = np.mean(list(values[self.measures[0]].values()))
                lacking = len(set(qrels) - set(run.query_ids))
                told = f", {lacking} queries without a ranking count 0"
                say(
                    f"{short(where)}: {system} {self.measures[0]} {mean:.4f}"
                    f"{told if lacking else ''}"
                )
        if not measured[self.measures[0]]:
            raise UserError(
                "nothing to measure", "give CHECKPOINTS, FIRST_STAGES or RUNS"
            )
        self._publish(directory, columns, measured, command)
        return 0

    def plan(self) -> int:
        columns = self.columns()
        print(f"{len(columns)} columns: {', '.join(name for name, _ in columns)}")
        models = [str(each.path) for each in checkpoints.each(self.checkpoints)]
        print(f"models: {', '.join(models) or 'none'}")
        print(f"first stages: {', '.join(map(_name_of, self.first_stages)) or 'none'}")
        return 0

    def columns(self) -> list[tuple[str, tuple[str, ...]]]:
        """(name, collections whose mean it is) of each column."""
        found: list[tuple[str, tuple[str, ...]]] = []
        for entry in self.collections:
            if isinstance(entry, tuple | list):
                name, specs = entry
                found.append((str(name), tuple(specs)))
            elif entry in GROUPS:
                found += dataclasses.replace(self, collections=GROUPS[entry]).columns()
            elif ":" not in str(entry) and entry != "pydocs":
                raise UserError(
                    f"no collection {entry!r}{near(str(entry), GROUPS)}",
                    f"write scheme:where, or one of {', '.join(GROUPS)}",
                )
            else:
                found.append((short(entry), (str(entry),)))
        return found

    def _systems(self, where: str, directory: Path) -> Iterator[tuple[str, Run, Qrels]]:
        """Every system that ranks a collection: its name, its run, the judgements."""
        files = self.runs.get(where, self.runs.get(short(where), ()))
        files = (files,) if isinstance(files, str) else files
        if where.startswith("qrels:"):
            qrels = Qrels.read(Path(where.removeprefix("qrels:")).expanduser())
            for path in files:
                yield system_name(path), self._own(Run.read(path)), qrels
            return
        workspace = open_workspace(
            directory / slug(where),
            where,
            mesh=sharding.make_mesh(self.mesh),
            seed=self.seed,
            dev_share=0.0,
            test_split=self.split,
            max_test_queries=self.max_queries,
        )
        qrels = workspace.judged.qrels
        for path in files:
            run = Run.read(path, collection=workspace.collection)
            yield system_name(path), self._own(run), qrels
        first: dict[str, Run] = {}
        for source in self.first_stages:
            name = _name_of(source)
            first[name] = self._from_source(source, name, workspace)
            yield name, self._own(first[name]), qrels
        for checkpoint in checkpoints.each(self.checkpoints, self.reading):
            model = load_model(checkpoint, workspace)
            name = system_name(str(checkpoint.path))
            if model.spec.vectors is not None:
                yield name, self._own(self._from_model(model, name, workspace)), qrels
                continue
            if not first:
                raise UserError(
                    f"{checkpoint.path} is a {model.spec.kind}: it reorders candidates",
                    "give FIRST_STAGES, e.g. (@candidates.BM25(),)",
                )
            for stage, run in first.items():
                both = name if len(first) == 1 else f"{name} over {stage}"
                ranked = self._from_model(model, both, workspace, run)
                yield both, self._own(ranked), qrels

    def _from_source(self, source: Any, name: str, workspace: Workspace) -> Run:
        context = Context(
            workspace=workspace,
            queries=workspace.judged.queries,
            student=None,  # type: ignore[arg-type]
            model=lambda model, **fields: load_model(model, workspace, **fields),
            directory=workspace.directory,
        )
        inputs = {"source": describe(source), **dependencies(source, context)}
        return _kept(workspace, name, inputs, lambda: source(context).top(self.depth))

    def _from_model(
        self, model: Any, name: str, workspace: Workspace, first: Run | None = None
    ) -> Run:
        inputs = {
            "model": model.digest,
            "first stage": None if first is None else first.digest,
            "depth": self.depth,
            "index": self.index,
        }
        if model.spec.documents == 2:
            inputs["duo depth"] = self.duo_depth
        return _kept(
            workspace,
            name,
            inputs,
            lambda: ranking.rank(
                model,
                workspace.judged.queries,
                workspace,
                first_stage=first,
                depth=self.depth,
                directory=workspace.directory / "vectors",
                index=self.index,
                duo_depth=self.duo_depth,
            ),
        )

    def _own(self, run: Run) -> Run:
        if not self.without_own:
            return run
        return without_own(run)

    def _publish(self, directory, columns, measured, command: str) -> None:
        primary = self.measures[0]
        cells = table_of(measured[primary], columns)
        systems = list(measured[primary])
        tests = significance(measured[primary], systems[0], columns)
        marks = {(t.system, t.measure): t for t in tests}
        rows = []
        for measure in self.measures:
            found = table_of(measured[measure], columns)
            for system in found:
                for column, value in found[system].items():
                    # Tests and a paper's figures are of the first measure.
                    first = measure == primary
                    test = marks.get((system, column)) if first else None
                    beside = self.published.get(system, {}) if first else {}
                    published = beside.get(column, "")
                    holm = None if test is None else test.p_holm
                    p = "" if holm is None else f"{holm:.4g}"
                    rows.append((measure, system, column, value, published, p))
        write_tsv(directory / "table.tsv", rows)
        with atomic_write(directory / "table.tex") as out:
            out.write(latex(cells, marks, self.published, primary))
        data = {
            "title": f"{primary} by collection",
            "measures": {
                s: {c: v for c, v in row.items() if v is not None}
                for s, row in cells.items()
            },
            "primary": "mean",
            "baseline": systems[0],
            "system": systems[-1],
            "significance": [test.as_dict() for test in tests],
            "verdict": f"{len(systems)} systems, {len(columns)} columns of {primary}; "
            f"* differs from {systems[0]}: p < 0.05, paired t-test, Holm over "
            f"{len(tests)} tests",
            "again": command,
            "notices": [],
        }
        page = report.publish(directory, data)
        print(text(cells, marks, self.published))
        print(f"* differs from {systems[0]}: p < 0.05, Holm over {len(tests)} tests")
        print(f"table: {directory / 'table.tsv'}, {directory / 'table.tex'}")
        print(f"report: {page}")


def _kept(workspace: Workspace, name: str, inputs: dict, make: Any) -> Run:
    """A system's run of a collection, computed once."""
    folder = workspace.directory / "runs" / slug(name)
    inputs = {
        **inputs,
        "collection": workspace.collection.digest,
        "queries": workspace.judged.queries.digest,
    }
    part(
        folder,
        inputs,
        lambda folder: make().write(folder / "run.trec"),
        what=f"{workspace.collection.name}: {name}",
    )
    return Run.read(folder / "run.trec", collection=workspace.collection)


def _name_of(source: Any) -> str:
    checkpoint = getattr(source, "checkpoint", None)
    return (
        system_name(checkpoints.path_of(checkpoint))
        if checkpoint
        else type(source).__name__
    )


def system_name(path: Any) -> str:
    """BM25 of runs/BM25.dl19.top100.trec.gz; gt_minilm of package:gt_minilm/model."""
    parts = str(path).rpartition(":")[2].rstrip("/").split("/")
    # The folder of a package or of a MODEL_DIR says nothing of which model it is.
    named = [part for part in parts if part not in ("", "model", "student", "export")]
    name = named[-1] if named else parts[-1]
    is_file = name.endswith((".gz", ".trec", ".txt", ".run"))
    return name.partition(".")[0] if is_file else name


def short(where: str) -> str:
    """A collection's name in a table."""
    scheme, _, rest = str(where).partition(":")
    if scheme == "irds":
        return rest.removeprefix("beir/")
    name = (Path(rest).name if rest else scheme).removeprefix("qrels.")
    return re.sub(r"\.(txt|tsv|qrels)(\.gz)?$|\.gz$", "", name)


def slug(name: str) -> str:
    """A folder's name for it."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or "all"
