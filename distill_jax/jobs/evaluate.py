"""Single jobs that measure: runs, models, and finished folders side by side."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.ir.errors import UserError
from distill_jax.ir.files import read_json
from distill_jax.ir.measures import evaluate_queries, measured_names, ties
from distill_jax.ir.run import Run
from distill_jax.jobs import ranking
from distill_jax.jobs.candidates import BM25, Asked
from distill_jax.jobs.console import say
from distill_jax.jobs.setting import Setting, open_setting
from distill_jax.models import sharding, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measures runs and models on the queries of a collection.

    Attributes:
        runs: TREC files, each a system named by its file.
        checkpoints: models; encoders search, rerankers reorder ``first_stage``.
        split: whose queries and judgements.
        measures: by trec_eval's rules; the first one decides.
        without_own: leave out documents whose id is the query's (ArguAna, Quora).
        groups: a prefix of query ids ends at this character, and means are also given
            as the mean over groups (CQADupStack); None for none.
    """

    directory: str
    collection: str
    runs: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    first_stage: Any = dataclasses.field(default_factory=BM25)
    split: str = "test"
    depth: int = 100
    measures: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")
    without_own: bool = False
    groups: str | None = None
    index: str = "exact"
    seed: int = 0
    mesh: str | None = None

    def __call__(self, *, config: str = "", command: str = "") -> int:
        measured_names(self.measures)
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.gin").write_text(config, encoding="utf-8")
        setting = self._setting()
        systems, found = {}, self._systems(setting, directory)
        for name, run in found.items():
            run = without_own(run) if self.without_own else run
            found[name] = run
            systems[name] = evaluate_queries(
                run, setting.judged.qrels, list(self.measures)
            )
        baseline = next(iter(systems))
        data = report.compare_systems(
            systems, self.measures[0], baseline=baseline, system=list(systems)[-1]
        )
        data |= {
            "title": f"{self.collection}: evaluation",
            "collection": self.collection,
            "ties": {
                name: dataclasses.asdict(
                    ties(run, setting.judged.qrels, [self.measures[0]])
                )
                for name, run in found.items()
            },
            "again": command,
            "notices": [*data["notices"], *setting.collection.notices],
        }
        if self.groups is not None:
            data["groups"] = _by_group(systems, self.groups)
        data["examples"] = report.examples(
            data,
            found,
            setting.judged.queries,
            setting.collection,
            setting.judged.qrels,
        )
        list(found.values())[-1].write(directory / "run.trec")
        page = report.publish(directory, data)
        print(report.summary(data))
        print(f"report: {page}")
        return 0

    def plan(self) -> int:
        setting = self._setting()
        systems = filter(None, (*self.runs, *self.checkpoints))
        print(
            f"{len(setting.judged.queries):,} queries, {len(setting.collection):,} "
            f"documents; systems: {', '.join(systems)}"
        )
        return 0

    def _setting(self) -> Setting:
        return open_setting(
            self.directory,
            self.collection,
            mesh=sharding.make_mesh(self.mesh),
            seed=self.seed,
            dev_share=0.0,
            test_split=self.split,
        )

    def _systems(self, setting: Setting, directory: Path) -> dict[str, Run]:
        found = {}
        for path in filter(None, self.runs):
            run = Run.read(path, collection=setting.collection)
            found[_name(path, found)] = run
        first = None
        for path in filter(None, self.checkpoints):
            model = weights.load(path)
            if model.spec.kind not in ranking.ENCODERS and first is None:
                first = self._first_stage(setting, directory)
                found = {"first_stage": first, **found}
            started = time.time()
            run = ranking.rank(
                model,
                setting.judged.queries,
                setting,
                first_stage=first,
                depth=self.depth,
                directory=directory / "vectors",
                index=self.index,
            )
            say(f"{path}: {len(run) / (time.time() - started):.1f} queries/s")
            name = _name(path, found)
            run.write(directory / f"{name}.trec")
            found[name] = run
        if not found:
            raise UserError(
                "nothing to evaluate", "give --gin.RUN=FILE or --gin.CHECKPOINT=PATH"
            )
        return found

    def _first_stage(self, setting: Setting, directory: Path) -> Run:
        return self.first_stage(
            Asked(
                setting=setting,
                queries=setting.judged.queries,
                student=None,  # type: ignore[arg-type]
                model=None,
                directory=directory,
            )
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
    name = Path(path).stem if path.endswith((".trec", ".txt", ".gz")) else path
    name = Path(name).name.removesuffix(".trec") or path
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Two or more ``MODEL_DIR`` in one page.

    Attributes:
        model_dirs: folders of finished jobs on one collection and split.
    """

    directory: str
    model_dirs: tuple[str, ...]

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
        names = _short(self.model_dirs)
        systems = {}
        measure = next(iter(reports.values()))["primary"]
        for path, found in reports.items():
            values = found["queries"]["values"]
            systems[names[path]] = {measure: values[found["system"]]}
        data = report.compare_systems(
            systems, measure, baseline=names[self.model_dirs[0]]
        )
        data |= {
            "title": "comparison",
            "collection": collections.pop(),
            "systems": {names[path]: _facts(path) for path in self.model_dirs},
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


def _short(paths: tuple[str, ...]) -> dict[str, str]:
    names = {path: Path(path).name for path in paths}
    return names if len(set(names.values())) == len(paths) else {p: p for p in paths}


def _facts(path: str) -> dict[str, Any]:
    """Size and speed of a model, measured where its folder tells."""
    folder, facts = Path(path), {}
    if (folder / "student").is_dir():
        model = weights.load(str(folder / "student"))
        from distill_jax.models.pretrained import flatten

        facts["parameters"] = int(
            sum(np.size(leaf) for leaf in flatten(model.params).values())
        )
        facts["kind"] = model.spec.kind
    vectors = folder / "vectors"
    if vectors.is_dir():
        newest = max(vectors.iterdir(), key=lambda p: p.stat().st_mtime, default=None)
        if newest is not None:
            files = [f for f in newest.rglob("*") if f.is_file()]
            facts["index_bytes"] = sum(f.stat().st_size for f in files)
    cost = read_json(folder / "report.json").get("cost", {})
    facts["seconds"] = cost.get("seconds")
    return facts
