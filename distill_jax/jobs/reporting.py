"""The end of a job: the table, ``run.trec``, ``report.json`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax import report
from distill_jax.evaluation import diagnostics
from distill_jax.evaluation.measures import evaluate_queries, ties
from distill_jax.io.files import digest, read_json
from distill_jax.jobs import beside
from distill_jax.labels.labels import TeacherLabels
from distill_jax.runs.run import Run
from distill_jax.workspace.console import say

VERSIONED = ("distill_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass
class Table:
    """Measures per query of every system of a job, in the order they were made.

    Attributes:
        job, setting: what is reported on.
        runs: the ranking of each system.
        values: ``{system: {measure: {query: value}}}``.
        trips: (round, ``Trip``) of each stage that was run.
    """

    job: Any
    setting: Any
    command: str = ""
    started: float = 0.0
    best_round: int = 1
    values: dict = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    trips: list = dataclasses.field(default_factory=list)
    rounds: list[dict] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, run: Run, round_number: int | None = None) -> None:
        """Measures a system's run on the test judgements."""
        measured = evaluate_queries(
            run, self.setting.judged.qrels, list(self.job.measures)
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

    def finish(self, best: Any, export: dict | None) -> None:
        """Writes every form of the report, and prints the table with its verdict."""
        directory = Path(self.job.directory)
        system = "after" if "after" in self.runs else list(self.runs)[-1]
        self.runs[system].write(directory / "run.trec")
        data = report.compare_systems(
            self.values, primary=self.job.measures[0], system=system
        )
        data |= {
            "title": f"{self.job.collection}: {best.student.spec.kind}",
            "collection": self.job.collection,
            "rounds": self.rounds if len(self.rounds) > 1 else None,
            "teacher": self._teacher(best),
            "mining": self._mining(best),
            "ties": self._ties(system),
            "cost": self._cost(),
            "export": export_entry(export),
            "again": self.command,
            "provenance": self._provenance(best),
        }
        data["notices"] = [
            *data.get("notices", ()),
            *self.notices,
            *self._beside(),
            *self.setting.collection.notices,
        ]
        data["examples"] = report.examples(
            data,
            self.runs,
            self.setting.judged.queries,
            self.setting.collection,
            self.setting.judged.qrels,
        )
        data = {name: value for name, value in data.items() if value not in (None, {})}
        logs = [trip.directory / "metrics.jsonl" for _, trip in self.trips]
        page = report.publish(directory, data, logs)
        print(report.summary(data), flush=True)
        print(f"report: {page}")
        if export is not None:
            print(f"export: {export['directory']} ({export['format']})")

    def _beside(self) -> list[str]:
        """What the sources beside the student gained, in sentences."""
        if not self.job.beside:
            return []
        found = beside.sentences(
            self.values, tuple(self.job.beside), self.job.measures[0]
        )
        for sentence in found:
            say(sentence)
        return found

    def _teacher(self, best: Any) -> dict | None:
        """The teacher's figures, beside those of what it must beat."""
        folder = best.directory / "labels"
        if not list(folder.glob("*.parquet")):
            return None
        labels = TeacherLabels.read(folder, collection=self.setting.collection)
        train = self.setting.train
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
            record = read_json(negatives)
            steps = record["funnel"]
            made |= {k: n for k, n in steps.items() if k.startswith("after")}
            found["suspects"] = record["suspects"]
        sources = best.directory / "sources.json"
        if sources.is_file():
            found["intersection"] = read_json(sources)
        lists = best.made["lists"]
        made = {**made, "in lists": round(lists["lists"] * lists["docs_per_list"])}
        return {"funnel": report.funnel(**made), **found}

    def _ties(self, system: str) -> dict[str, Any]:
        found = ties(
            self.runs[system], self.setting.judged.qrels, [self.job.measures[0]]
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
            "collection digest": self.setting.collection.digest,
            "test split": self.job.test_split,
            "test queries digest": self.setting.judged.digest,
            "seed": self.job.seed,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "python": platform.python_version(),
            "versions": digest_versions(),
            "lists": best.made.get("lists", {}).get("lists"),
            "document vectors": best.fit.get("document_vectors"),
            "training": {k: best.fit.get(k) for k in ("step", "best_step", "finished")},
        }


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
    """What a report says of an export: where, in which format, who verified it."""
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
