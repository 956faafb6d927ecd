"""The end of a job: the table, ``run.trec``, ``report.json`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.evaluation import diagnostics
from distill_jax.evaluation.measures import evaluate_queries, ties
from distill_jax.evaluation.significance import compare, p_text
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record
from distill_jax.jobs import beside, unjudged
from distill_jax.labels.labels import TeacherLabels
from distill_jax.runs.run import Run
from distill_jax.workspace import cached_step
from distill_jax.workspace.console import print_at_end, say

WITH = ", "
"""Between a student's row and what it is fused or followed with."""

LEVEL = 0.05
VERSIONED = ("distill_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass
class Table:
    """Measures per query of every system of a job, in the order they were measured.

    Attributes:
        job, workspace: what is reported on.
        runs: the ranking of each system.
        values: ``{system: {measure: {query: value}}}``.
        trips: (round, ``StageResult``) of each stage that was run.
    """

    job: Any
    workspace: Any
    command: str = ""
    started: float = 0.0
    best_round: int = 1
    values: dict = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    trips: list = dataclasses.field(default_factory=list)
    rounds: list[dict] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)
    calibration: dict[str, Any] | None = None
    elsewhere: dict[str, Any] | None = None

    def add(self, name: str, run: Run, round_number: int | None = None) -> None:
        """Measures a system's run on the test judgements, where there are any."""
        if not len(self.workspace.judged.qrels):
            self.runs[name] = run
            say(f"{name}: ranked; no judgements to measure it by")
            return
        measured = evaluate_queries(
            run, self.workspace.judged.qrels, list(self.job.measures)
        )
        self.values[name], self.runs[name] = measured, run
        means = self.means()[name]
        if round_number is not None:
            self.rounds.append({"round": round_number, "measures": means, "name": name})
        say(f"{name}: " + "  ".join(f"{m} {v:.4f}" for m, v in means.items()))

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each measure of each system over the judged queries."""
        return {
            name: {m: float(np.mean(list(per.values()))) for m, per in found.items()}
            for name, found in self.values.items()
        }

    def check_parts(self) -> None:
        """Compares what the table was made of with its records.

        Raises:
            UserError: a file of a finished part is damaged or gone.
        """
        for _, trip in self.trips:
            cached_step.check(trip.directory)

    def finish(self, best: Any, export: dict | None, shown: bool = True) -> None:
        """Writes every form of the report, and prints the table with its verdict.

        Args:
            shown: False writes alone.
        """
        directory = Path(self.job.directory)
        system = "after" if "after" in self.runs else list(self.runs)[-1]
        self.runs[system].write(directory / "run.trec")
        data = self._compared(system)
        data |= {
            "title": f"{self.job.collection}: {best.student.spec.kind}",
            "collection": self.job.collection,
            "rounds": self.rounds if len(self.rounds) > 1 else None,
            "teacher": self._teacher(best),
            "mining": self._mining(best),
            "ties": self._ties(system) if self.values else None,
            "cost": self._cost(),
            "calibration": self.calibration,
            "elsewhere": self.elsewhere,
            "export": export_entry(export),
            "again": self.command,
            "provenance": self._provenance(best),
        }
        data["notices"] = [
            *data.get("notices", ()),
            *self.notices,
            *self._beside(),
            *self.workspace.collection.notices,
        ]
        if self.values:
            data["examples"] = report.examples(
                data,
                self.runs,
                self.workspace.judged.queries,
                self.workspace.collection,
                self.workspace.judged.qrels,
            )
        data = {name: value for name, value in data.items() if value not in (None, {})}
        logs = [trip.directory / "metrics.jsonl" for _, trip in self.trips]
        page = report.publish(directory, data, logs)
        if not shown:
            return
        print(report.summary(data), flush=True)
        print(f"report: {page}")
        if export is not None:
            print(f"export: {export['directory']} ({export['format']})")
        print_at_end(decision(data))

    def _compared(self, system: str) -> dict[str, Any]:
        """Measures, tests and verdicts; fused rows are not among the tests."""
        if not self.values:
            judged = self.workspace.judged
            return unjudged.report(self.runs, judged.queries, self.workspace.collection)
        primary = self.job.measures[0]
        alone = {name: v for name, v in self.values.items() if WITH not in name}
        data = report.compare_systems(alone, primary=primary, system=system)
        means = self.means()
        data["measures"] = {name: means[name] for name in self.values}
        data["queries"]["values"] |= {
            name: dict(values[primary])
            for name, values in self.values.items()
            if WITH in name
        }
        data["free"] = beside_free(self.values, primary)
        if data["free"]:
            data["verdict"] += "\n" + data["free"]["verdict"]
        return data

    def add_fused(self, name: str) -> None:
        """The first stage fused with a retriever, as one could serve it."""
        pair = [self.runs["first_stage"], self.runs[name]]
        fused = Run.combine(pair, normalise="zscore", depth=self.job.depth)
        self.add(f"{name}{WITH}fused with first stage", fused)

    def _beside(self) -> list[str]:
        """Sentences on the gains of the rows beside the student."""
        if not (self.job.beside and self.values):
            return []
        found = beside.sentences(
            self.values, tuple(self.job.beside), self.job.measures[0]
        )
        for sentence in found:
            say(sentence)
        return found

    def _teacher(self, best: Any) -> dict | None:
        """The teacher's figures, and those of the first stage."""
        folder = best.directory / "labels"
        if not list(folder.glob("*.parquet")):
            return None
        labels = TeacherLabels.read(folder, collection=self.workspace.collection)
        train = self.workspace.train
        known = [q for q in labels.query_ids if train is not None and q in train.qrels]
        found = diagnostics.teacher_report(
            labels, qrels=train.qrels if train is not None and known else None
        )
        for warning in found["warnings"]:
            say(f"teacher: {warning}")
        counts = labels.provenance.get("counts", {})
        return {**found, "counts": counts}

    def _mining(self, best: Any) -> dict | None:
        made = best.made.get("candidates", {}).get("funnel")
        if not made:
            return None
        found: dict[str, Any] = {}
        negatives = best.directory / "negatives.json"
        if negatives.is_file():
            todo = f"delete {best.directory / 'lists'}: both are made again"
            record = read_record(negatives, todo, funnel=dict, suspects=list)
            steps = record["funnel"]
            made |= {k: n for k, n in steps.items() if k.startswith("after")}
            found["suspects"] = record["suspects"]
        sources = best.directory / "sources.json"
        if sources.is_file():
            todo = f"delete {best.directory / 'candidates'}: both are made again"
            found["intersection"] = read_record(sources, todo)
        lists = best.made["lists"]
        made = {**made, "in lists": round(lists["lists"] * lists["docs_per_list"])}
        return {"funnel": report.funnel(**made), **found}

    def _ties(self, system: str) -> dict[str, Any]:
        found = ties(
            self.runs[system], self.workspace.judged.qrels, [self.job.measures[0]]
        )
        return {system: dataclasses.asdict(found)}

    def _cost(self) -> dict[str, Any]:
        parts: dict[str, float] = {}
        for number, trip in self.trips:
            prefix = f"round {number} " if self.job.rounds > 1 else ""
            prefix += f"{trip.name} " if len(self.job.stages) > 1 else ""
            for name, made in (*trip.made.items(), ("training", trip.fit)):
                parts[prefix + name] = made.get("seconds", 0.0)
        # Of all runs that the job took: what was there already was paid for before.
        seconds = max(time.monotonic() - self.started, sum(parts.values()))
        return {"seconds": round(seconds, 1), "parts": parts}

    def _provenance(self, best: Any) -> dict[str, Any]:
        import jax

        return {
            "student": best.student.digest,
            "best round": self.best_round,
            "started from": self.job.student.checkpoint or self.job.student.backbone,
            "collection digest": self.workspace.collection.digest,
            "test split": self.job.test_split,
            "test queries digest": self.workspace.judged.digest,
            "seed": self.job.seed,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "python": platform.python_version(),
            "versions": digest_versions(),
            "lists": best.made.get("lists", {}).get("lists"),
            "document vectors": best.fit.get("document_vectors"),
            "training": {k: best.fit.get(k) for k in ("step", "best_step", "finished")},
        }


def beside_free(values: Mapping[str, Any], measure: str) -> dict[str, Any] | None:
    """Compares the best system that training gave with the best that needs none.

    Args:
        values: ``{system: {measure: {query: value}}}``.

    Returns:
        ``{"system", "baseline", "difference", "p", "verdict"}``; None where one side
        has no system.
    """

    mean = {
        name: float(np.mean(list(v[measure].values()))) for name, v in values.items()
    }

    def best(*rows: str) -> str | None:
        found = [name for name in values if name.split(WITH)[0] in rows]
        return max(found, key=mean.__getitem__, default=None)

    trained, free = best("after"), best("first_stage", "before")
    if trained is None or free is None:
        return None
    found = compare(
        values[free][measure],
        values[trained][measure],
        measure=measure,
        baseline=free.replace("_", " "),
        system=trained.replace("_", " "),
    )
    if found.p_t is None or found.p_t >= LEVEL:
        says = "is not shown to differ from"
    else:
        says = "beats" if found.difference > 0 else "is worse than"
    verdict = (
        f"{found.system} {says} the best that needs no training ({found.baseline}): "
        f"{found.difference:+.3f} {measure}, {p_text(found.p_t)}"
    )
    return {
        "system": trained,
        "baseline": free,
        "difference": found.difference,
        "p": found.p_t,
        "verdict": verdict[:1].upper() + verdict[1:],
    }


def decision(data: Mapping[str, Any]) -> str:
    """The last line of a job, for programs: ``VERDICT: WIN nDCG@10 0.513 0.559 0.001``.

    The words are WIN, NO_DIFFERENCE, LOSS (p < 0.05, Holm) or NOT_MEASURED; then the
    measure, its means before and after, and p.
    """
    primary, system, baseline = (data.get(k) for k in ("primary", "system", "baseline"))
    found = [
        test
        for test in data.get("significance", ())
        if (test["system"], test["measure"]) == (system, primary)
    ]
    if not found:
        return "VERDICT: NOT_MEASURED"
    (test,) = found
    p = test["p_holm"]
    word = "NO_DIFFERENCE"
    if p is not None and p < LEVEL:
        word = "WIN" if test["difference"] > 0 else "LOSS"
    before, after = (data["measures"][name][primary] for name in (baseline, system))
    shown = "nan" if p is None else f"{p:.4g}"
    return f"VERDICT: {word} {primary} {before:.4f} {after:.4f} {shown}"


def digest_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return {**found, "digest": digest(found)}


def export_entry(export: dict | None) -> dict | None:
    """The report's entry for an export: place, format, verifying library."""
    if export is None:
        return None
    directory = str(export["directory"])
    readers = [reader.get("reader", reader.get("name")) for reader in export["readers"]]
    return {
        "directory": export["directory"],
        "format": export["format"],
        "code": f"import distill_jax\nmodel = distill_jax.load({directory!r})",
        "verified": ", ".join(str(reader) for reader in readers),
    }
