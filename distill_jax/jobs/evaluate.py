"""A job that measures: runs and models on the queries of a collection."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.evaluation import answers
from distill_jax.evaluation.measures import evaluate_queries, measured_names, ties
from distill_jax.io.errors import UserError
from distill_jax.io.values import Name, Seed, Size, UserPath
from distill_jax.jobs.names import CollectionName, Measures
from distill_jax.recipe import answering, checkpoints
from distill_jax.recipe.candidates import BM25, Context, Source
from distill_jax.recipe.checkpoints import Checkpoint, Model
from distill_jax.recipe.students import load_model
from distill_jax.runs.run import Run
from distill_jax.runtime import sharding
from distill_jax.workspace import compact, ranking
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace, open_judgements, open_workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measures runs and models on the queries of a collection.

    Attributes:
        runs: TREC files, each a system named by its file.
        checkpoints: models, by path or as ``checkpoints.Checkpoint``; encoders search,
            rerankers reorder ``first_stage``.
        reading: how ``checkpoints`` are read; None as they say themselves.
        compact: forms of dual encoders' vectors that are measured as well: numbers of
            dimensions, "int8", "binary", "rescored" (see ``workspace.compact``).
        first_stage: what rerankers reorder; None takes the one run of ``runs`` where
            there is just one, else BM25's first ``depth``.
        questions: ``jsonl:PATH`` or ``tfds:NAME``: questions with answers to ask of the
            collection instead of its own queries. Nothing is judged then.
        qrels: judgements alone (TREC or BEIR), which runs are measured by without any
            documents; ``collection`` and ``split`` are not read then.
        split: whose queries and judgements.
        measures: by trec_eval's rules; the first one decides.
        duo_depth: documents of a list that a pairwise reranker compares, all pairs.
        hits: depths of the hit rate, which counts the questions with an answer among
            this many documents; measured wherever queries have answers.
        reader: ``jobs.llm.Reader``, which answers from what each system found, for
            exact match and F1; None for none.
        count_missing: a judged query that a run lacks counts 0, as by trec_eval's -c;
            False leaves it out.
        without_own: leave out documents whose id is the query's (ArguAna, Quora).
        groups: a prefix of query ids ends at this character, and means are also given
            as the mean over groups (CQADupStack); None for none.
    """

    directory: UserPath
    collection: CollectionName
    runs: tuple[UserPath | None, ...] = ()
    checkpoints: tuple[Model | None, ...] = ()
    reading: Checkpoint | None = None
    questions: CollectionName | None = None
    compact: tuple[Size | Name, ...] = ()
    qrels: UserPath | None = None
    first_stage: Source | None = None
    split: Name = "test"
    depth: Size = 100
    duo_depth: Size = ranking.DUO_DEPTH
    measures: Measures = ("nDCG@10", "RR@10", "R@100")
    hits: tuple[Size, ...] = (5, 10)
    reader: Any = None
    count_missing: bool = True
    without_own: bool = False
    groups: Name | None = None
    index: ranking.Index = "exact"
    seed: Seed = 0
    mesh: Name | None = None

    def __call__(self, *, config: str = "", command: str = "") -> int:
        measured_names(self.measures)
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.gin").write_text(config, encoding="utf-8")
        workspace = self._workspace()
        found = self._systems(workspace, directory)
        systems = {name: self._measured(run, workspace) for name, run in found.items()}
        readings = {}
        if self.reader is not None:
            context = self._context(workspace, directory)
            readings = answering.read_all(self.reader, context, found)
            for name, reading in readings.items():
                systems[name] |= self._counted(reading.values, found[name])
        last = list(systems)[-1]
        data = report.compare_systems(
            systems, self.measures[0], baseline=next(iter(systems)), system=last
        )
        data |= {
            "title": f"{self._measured_on}: evaluation",
            "collection": self._measured_on,
            "again": command,
            "provenance": {} if self.qrels else {"test split": self.split},
            "notices": [
                *data["notices"],
                *self._unmatched(found, workspace),
                *workspace.collection.notices,
            ],
        }
        lacking = self._on_common(found, systems, workspace)
        if lacking:
            data["verdict"] = ". ".join(filter(None, [data.get("verdict"), lacking]))
        qrels = workspace.judged.qrels
        if len(qrels):
            data["ties"] = {
                name: dataclasses.asdict(ties(run, qrels, [self.measures[0]]))
                for name, run in found.items()
            }
        if readings:
            data["cost"] = answering.cost(readings)
        if self.groups is not None:
            data["groups"] = _by_group(systems, self.groups)
        data["examples"] = report.examples(
            data, found, workspace.judged.queries, workspace.collection, qrels
        )
        found[last].write(directory / "run.trec")
        page = report.publish(directory, data)
        print(report.summary(data))
        print(f"report: {page}")
        return 3 if any(reading.failed for reading in readings.values()) else 0

    def plan(self) -> int:
        workspace = self._workspace()
        systems = [str(name) for name in (*self.runs, *self.checkpoints) if name]
        print(
            f"{len(workspace.judged.queries):,} queries, {len(workspace.collection):,} "
            f"documents; systems: {', '.join(systems)}"
        )
        if self.reader is not None:
            # Whether a model is a reranker, and the first stage a system, is not known
            # before it is loaded.
            count = len(systems) + any(self.checkpoints)
            context = self._context(workspace, Path(self.directory))
            print(self.reader.estimate(context, count))
        return 0

    @property
    def _measured_on(self) -> str:
        return f"qrels:{self.qrels}" if self.qrels else self.collection

    def _workspace(self) -> Workspace:
        if self.qrels is not None:
            texts = (*self.checkpoints, self.questions, self.reader, self.first_stage)
            if any(each is not None for each in texts):
                raise UserError(
                    "QRELS measures runs alone: documents and queries have no texts",
                    "give RUN or RUNS and nothing else, or a COLLECTION in its place",
                )
            return open_judgements(self.directory, self.qrels, seed=self.seed)
        mesh = sharding.make_mesh(self.mesh)
        if self.questions is not None:
            workspace = answering.open_questions(
                self.directory,
                self.collection,
                self.questions,
                split=self.split,
                mesh=mesh,
                seed=self.seed,
            )
        else:
            workspace = open_workspace(
                self.directory,
                self.collection,
                mesh=mesh,
                seed=self.seed,
                dev_share=0.0,
                test_split=self.split,
            )
        answering.refuse_unmeasured(workspace, self.reader)
        return workspace

    def _measured(self, run: Run, workspace: Workspace) -> dict[str, dict[str, float]]:
        """``{measure: {query id: value}}``: by judgements, by answers, or by both."""
        values = {}
        queries, qrels = workspace.judged.queries, workspace.judged.qrels
        if len(qrels):
            values |= evaluate_queries(run, qrels, list(self.measures))
        if queries.answers is not None and any(queries.answers):
            values |= answers.hit_rates(
                run, answers.accepted(queries), workspace.collection, self.hits
            )
        return self._counted(values, run)

    def _counted(self, values: dict, run: Run) -> dict[str, dict[str, float]]:
        if self.count_missing:
            return values
        ranked = set(run.query_ids)
        return {m: {q: v for q, v in per.items() if q in ranked}
                for m, per in values.items()}  # fmt: skip

    def _on_common(
        self, runs: dict[str, Run], systems: dict[str, Any], workspace: Workspace
    ) -> str:
        """Where runs lack queries: how many, and the means over those that all rank."""
        expected = set(workspace.judged.qrels) or set(workspace.judged.queries.ids)
        ranked = {name: expected & set(run.query_ids) for name, run in runs.items()}
        lacking = {name: len(expected) - len(ids) for name, ids in ranked.items()}
        told = [f"{name} lacks {count}" for name, count in lacking.items() if count]
        if not told:
            return ""
        common = set.intersection(*ranked.values())
        measure = self.measures[0]
        means = [
            f"{name} {np.mean([values[measure][query] for query in common]):.4f}"
            for name, values in systems.items()
            if common and common <= values.get(measure, {}).keys()
        ]
        fate = "count 0" if self.count_missing else "are left out"
        return (
            f"Of {len(expected)} queries {', '.join(told)}, which {fate}; on the "
            f"{len(common)} that all rank, {measure}: {', '.join(means) or 'unknown'}"
        )

    def _unmatched(self, runs: dict[str, Run], workspace: Workspace) -> list[str]:
        """Queries that only a run has, or only the split: counted, with an example."""
        expected = set(workspace.judged.qrels) or set(workspace.judged.queries.ids)
        notices = []
        for name, run in runs.items():
            ranked = set(run.query_ids)
            missing, unknown = sorted(expected - ranked), sorted(ranked - expected)
            if missing:
                fate = "count 0" if self.count_missing else "are left out"
                notices.append(
                    f"{name} has no ranking of {len(missing)} of {len(expected)} "
                    f"queries, e.g. {missing[0]!r}: they {fate}"
                )
            if unknown:
                notices.append(
                    f"{name} ranks {len(unknown)} queries that are not of this split, "
                    f"e.g. {unknown[0]!r}: not measured"
                )
        return notices

    def _systems(self, workspace: Workspace, directory: Path) -> dict[str, Run]:
        found = {}
        known = None if self.qrels else workspace.collection
        for path in filter(None, self.runs):
            run = Run.read(path, collection=known)
            found[_name(path, found)] = run
        first = None
        for checkpoint in checkpoints.each(self.checkpoints, self.reading):
            path = str(checkpoint.path)
            model = load_model(checkpoint, workspace)
            if model.spec.vectors is None and first is None:
                name, first = self._first_stage(workspace, directory, found)
                found = {name: first, **found}
            started = time.monotonic()
            run = ranking.rank(
                model,
                workspace.judged.queries,
                workspace,
                first_stage=first,
                depth=self.depth,
                directory=directory / "vectors",
                index=self.index,
                duo_depth=self.duo_depth,
            )
            say(f"{path}: {len(run) / (time.monotonic() - started):.1f} queries/s")
            name = _name(path, found)
            run.write(directory / f"{name}.trec")
            found[name] = run
            smaller = compact.search(
                model,
                workspace.judged.queries,
                workspace,
                self.compact,
                depth=self.depth,
                directory=directory / "vectors",
            )
            for form, run in smaller.items():
                found[f"{name}, {form}"] = run
            for form in self.compact:
                say(f"{name}, {compact.bytes_of(form, model.spec.width)}")
        if not found:
            raise UserError(
                "nothing to evaluate", "give --gin.RUN=FILE or --gin.CHECKPOINT=PATH"
            )
        if self.without_own:
            found = {name: without_own(run) for name, run in found.items()}
        return found

    def _first_stage(
        self, workspace: Workspace, directory: Path, runs: dict[str, Run]
    ) -> tuple[str, Run]:
        """What rerankers reorder, and the name of its row."""
        if self.first_stage is None and len(runs) == 1:
            (name,) = runs
            return name, runs[name]
        source = self.first_stage or BM25(depth=max(100, self.depth))
        return "first_stage", source(self._context(workspace, directory))

    def _context(self, workspace: Workspace, directory: Path) -> Context:
        return Context(
            workspace=workspace,
            queries=workspace.judged.queries,
            student=None,
            model=functools.partial(load_model, workspace=workspace),
            directory=directory,
        )


def without_own(run: Run) -> Run:
    """The run without documents whose id is the query's own (trec_eval's custom)."""
    own = {doc: row for row, doc in enumerate(run.doc_ids)}
    rows = np.asarray([own.get(query, -2) for query in run.query_ids])
    scores = np.where(run.rows == rows[:, None], -np.inf, run.scores)
    return Run(
        run.query_ids,
        np.where(run.rows == rows[:, None], -1, run.rows),
        scores,
        run.doc_ids,
    )


def _name(path: str, taken: dict) -> str:
    """A system's name, which is a file's name too: nothing in it leads elsewhere."""
    name = Path(path).stem if path.endswith((".trec", ".txt", ".gz")) else path
    name = Path(name).name.removesuffix(".trec") or path
    name = re.sub(r"[^\w.:+-]+", "_", name).strip(".")[:80] or "system"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique


def _by_group(systems: dict, mark: str) -> dict:
    """Means over groups of queries: {system: {measure: mean of the groups' means}}."""
    found: dict = {}
    for system, measures in systems.items():
        for measure, values in measures.items():
            groups: dict[str, list[float]] = {}
            for query, value in values.items():
                groups.setdefault(query.split(mark)[0], []).append(value)
            means = [float(np.mean(group)) for group in groups.values()]
            found.setdefault(system, {})[measure] = float(np.mean(means))
    return found
