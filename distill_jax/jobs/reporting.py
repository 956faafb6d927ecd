"""The end of a job: the table, ``run.trec``, ``report.json`` and ``report.html``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from distill_jax.ir.files import write_json
from distill_jax.ir.measures import evaluate_queries
from distill_jax.ir.run import Run
from distill_jax.jobs.console import say


@dataclasses.dataclass
class Table:
    """Measures per query of every system of a job, in the order they were made."""

    job: Any
    setting: Any
    command: str = ""
    started: float = 0.0
    best_round: int = 1
    values: dict[str, dict[str, dict[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    trips: list = dataclasses.field(default_factory=list)
    rounds: dict[str, int] = dataclasses.field(default_factory=dict)

    def add(self, name: str, run: Run, round_number: int | None = None) -> None:
        """Measures a system's run on the test judgements."""
        self.values[name] = evaluate_queries(
            run, self.setting.test.qrels, list(self.job.measures)
        )
        self.runs[name] = run
        if round_number is not None:
            self.rounds[name] = round_number
        shown = "  ".join(f"{m} {v:.4f}" for m, v in self.means()[name].items())
        say(f"{name}: {shown}")

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each measure of each system; a missing query counts as 0."""
        count = max(len(self.setting.test.qrels.query_ids), 1)
        return {
            name: {m: sum(per.values()) / count for m, per in measures.items()}
            for name, measures in self.values.items()
        }

    def finish(self, best: Any, export: dict | None) -> None:
        directory = Path(self.job.directory)
        self.runs[list(self.runs)[-1]].write(directory / "run.trec")
        report = {
            "collection": self.job.collection,
            "measures": self.means(),
            "cost": {"seconds": time.time() - self.started},
        }
        write_json(directory / "report.json", report)
