"""The heart: measure, then retrieve, label, train, again; and say whether it helped.

One command trains a teacher from judgements, a student from a teacher, or both in
rounds: the difference is which stages a recipe names. Killed anywhere, the same command
goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from distill_jax.collections.schemes import load_collection
from distill_jax.io.errors import UserError
from distill_jax.io.values import Name, NotNegative, Rate, Seed, Share, Size, UserPath
from distill_jax.jobs import elsewhere, reporting, unjudged
from distill_jax.jobs.export import AUTO, Format, exported
from distill_jax.jobs.names import CollectionName, Measure, Measures
from distill_jax.jobs.plan import plan
from distill_jax.jobs.rankings import Rankings
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import Source
from distill_jax.recipe.fitting import Stopped
from distill_jax.recipe.models import Models
from distill_jax.recipe.stage import Stage, StageResult, run_stage
from distill_jax.recipe.students import Student
from distill_jax.runs.run import Run
from distill_jax.runtime import sharding
from distill_jax.workspace import cached_step, compact, ranking
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace, open_workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Trains a student in stages and rounds, measured before and after.

    Attributes:
        directory: ``MODEL_DIR``; it holds all files of the job.
        collection: see ``ir.load_collection``.
        student: what the first stage starts from.
        stages: in sequence; each starts from the student of the one before, unless it
            names another.
        rounds: how often the stages are repeated. Round r starts with the student
            of round r - 1.
        measures: the first is the one that the verdict is about.
        depth: documents that a reranker reorders, and that a ranking keeps.
        first_stage: what rerankers reorder, and the first row of the table; None is
            BM25's first ``depth``, or 100 where that is less.
        second_stage: another source that rerankers are measured over as well, before
            and after; None for none.
        stop_measure: rounds end when this measure on dev no longer grows by
            ``min_gain``; the best round is what is kept. The last one is where this is
            None or no dev query is judged.
        keep_base: what the job started from is kept where no round is better by
            ``stop_measure``.
        compact: forms of a dual encoder's vectors that are measured as well: numbers of
            dimensions, "int8", "binary", "rescored" (see ``workspace.compact``).
        beside: sources by name, each measured with the student before and after: a
            fusion with BM25, feedback. What needs no training is so in the table.
        elsewhere: other collections whose test queries the first measure is taken on
            before and after: what training lost there.
        most_risk: scores are calibrated on judged dev queries, and the threshold is
            suggested at which this share of first documents is not relevant; it is
            exported with them. None calibrates nothing.
        export: a format of ``export.write``, "auto" for the student's own, None for
            none.
        mesh: e.g. "data=4,model=2"; None puts all devices on the data axis.
        dev_share: of the judged training queries, where the collection has no dev split
            and dev queries choose a checkpoint or a round; else none is held out.
        train_queries: ``queries:PATH`` or any collection's name: its training queries
            in place of this one's.
        titles: whether a document's title is read before its text.
        shared: folder of what other jobs on this collection may use as well: vectors,
            tokens, scores, replies of an LLM; None is ``directory``.
    """

    directory: UserPath
    collection: CollectionName
    student: Student
    stages: tuple[Stage, ...]
    rounds: Size = 1
    seed: Seed = 0
    mesh: Name | None = None
    measures: Measures = ("nDCG@10", "RR@10", "R@100")
    depth: Size = 100
    first_stage: Source | None = None
    second_stage: Source | None = None
    index: ranking.Index = "exact"
    stop_measure: Measure | None = None
    min_gain: NotNegative = 0.0
    keep_base: bool = False
    compact: tuple[Size | Name, ...] = ()
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    elsewhere: tuple[CollectionName, ...] = ()
    most_risk: Share | None = None
    export: Format | None = AUTO
    dev_share: Rate = 0.1
    test_split: Name = "test"
    max_train_queries: Size | None = None
    max_test_queries: Size | None = None
    train_queries: CollectionName | None = None
    titles: bool = True
    shared: UserPath | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise UserError(f"stages need names of their own, but have {names}")
        if self.test_split == "train":
            raise UserError(
                "the test split is the training split",
                "name another: what is trained on cannot be tested on",
            )

    def __call__(self, *, config: str = "", command: str = "") -> int:
        """Runs the job; returns the exit status (143 after SIGTERM)."""
        started = time.monotonic()
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        workspace = self.workspace()
        if config and jax.process_index() == 0:
            (directory / "config.gin").write_text(config, encoding="utf-8")
        models = Models(self, workspace)
        student = models.initial()
        self._check_trainable(student)
        compact.check(student, self.compact)
        known = self._elsewhere(student, "before", workspace)
        rankings = Rankings(self, workspace, models)
        table = reporting.Table(self, workspace, command=command, started=started)
        first = rankings.first_stage(student)
        table.add("first_stage", first)
        table.add("before", rankings.of(student, "before", first))
        if (sentence := rankings.lead(student)) is not None:
            say(sentence)
            table.notices.append(sentence)
        rankings.add(table, "before", student)
        try:
            best = self._rounds(student, rankings, table, first)
        except Stopped as stopped:
            say("stopped; the same command goes on from here")
            return stopped.status
        rankings.add(table, "after", best.student)
        rankings.add_second(table, student, best.student)
        if not len(workspace.judged.qrels):
            rankings.add_teacher(table, student)
        others = self._elsewhere(best.student, "after", workspace)
        table.elsewhere = elsewhere.compared(known, others, self.measures[0])
        table.calibration = rankings.calibration(best.student)
        if jax.process_index() == 0:
            self._keep(best)
            export = exported(
                best.student,
                workspace,
                self.export,
                table.means(),
                directory,
                table.calibration,
            )
            table.finish(best, export=export)
        return 0

    def _keep(self, best: StageResult) -> None:
        """Writes ``student/``, unless the training of one stage put just that there.

        It may have put another: the base is kept, or a stage changed what it trained.
        """
        folder = Path(self.directory) / "student"
        trained = cached_step.record_of(folder) is not None
        if trained and Pretrained.read(folder).digest == best.student.digest:
            return
        cached_step.replace(folder, best.student.save)

    def workspace(self) -> Workspace:
        workspace = open_workspace(
            self.shared or self.directory,
            self.collection,
            need=(),
            mesh=sharding.make_mesh(self.mesh),
            seed=self.seed,
            dev_share=self.dev_share if self._looks_at_dev() else 0.0,
            test_split=self.test_split,
            max_train_queries=self.max_train_queries,
            max_test_queries=self.max_test_queries,
            train_queries=self.train_queries,
            titles=self.titles,
        )
        if workspace.test is not None:
            return workspace
        known = [
            split for split in (workspace.train, workspace.dev) if split is not None
        ]
        if any(len(split.qrels) for split in known):
            # Judged queries are there: this says which splits there are.
            load_collection(self.collection, self.test_split)
        return unjudged.with_probes(workspace)

    def _check_trainable(self, student: Pretrained) -> None:
        """Before a teacher is called, and paid for."""
        for stage in self.stages:
            if not isinstance(stage, Stage) or stage.student is not None:
                return  # it makes what it trains
            stage.training.check(student)

    def _looks_at_dev(self) -> bool:
        """Whether dev queries choose anything: a round, or a stage's checkpoint."""
        measures = {stage.training.measure for stage in self.stages}
        chosen = self.stop_measure is not None or self.most_risk is not None
        return chosen or bool(measures - {None, "loss"})

    def plan(self) -> int:
        """Sizes, steps, shapes, memory and cost, without training."""
        return plan(self)

    def _rounds(
        self,
        student: Pretrained,
        rankings: Rankings,
        table: reporting.Table,
        first: Run,
    ) -> StageResult:
        workspace, models = rankings.workspace, rankings.models
        best: StageResult | None = None
        best_value, best_row = -float("inf"), "after"
        if self.keep_base and rankings.judges_dev:
            best_value, best_row = rankings.dev_value(student, 0), "before"
            best = StageResult(
                name="before",
                directory=Path(self.directory),
                student=student,
                fit={},
                made={},
            )
            table.best_round = 0
        if self.stop_measure and self.rounds > 1 and not rankings.judges_dev:
            sentence = (
                "no dev query is judged: all rounds are run, the last round is kept"
            )
            say(sentence)
            table.notices.append(sentence)
        for number in range(1, self.rounds + 1):
            trip = None
            for stage in self.stages:
                if stage.student is not None:
                    student = models.made(stage.student)
                place = self.place(number, stage)
                if place != Path(self.directory):
                    say(f"round {number} of {self.rounds}: stage {stage.name}")
                trip = run_stage(stage, student, workspace, place, models.load, number)
                models.trained[stage.name], student = trip, trip.student
                table.trips.append((number, trip))
                name = self.row(number, stage)
                run = rankings.of(student, name, first, place)
                table.add(name, run, round_number=number)
            assert trip is not None
            row = self.row(number, self.stages[-1])
            value = rankings.dev_value(student, number)
            if best is None or not rankings.judges_dev or value > best_value:
                gain = value - best_value
                best, best_value, table.best_round = trip, value, number
                best_row = row
                if rankings.judges_dev and number > 1 and gain <= self.min_gain:
                    say(f"round {number} gained {gain:+.4f}: no further round")
                    break
            elif rankings.judges_dev:
                better = f"round {table.best_round}" if table.best_round else "before"
                say(f"round {number} is no better than {better}: stop")
                break
        assert best is not None
        if best_row != "after":
            table.add("after", table.runs[best_row])
        if best.name == "before" and not best.made:
            self._say_kept(table)
        return best

    def _say_kept(self, table: reporting.Table) -> None:
        sentence = (
            f"training gained nothing on dev queries ({self.stop_measure}): the model "
            "that the job started from is kept"
        )
        say(sentence)
        table.notices.append(sentence)

    def row(self, number: int, stage: Stage) -> str:
        """Name of a stage's row in the table; of one round the last is ``after``."""
        last = stage is self.stages[-1]
        if self.rounds == 1:
            return "after" if last else stage.name
        return f"round {number}" + ("" if last else f" {stage.name}")

    def place(self, number: int, stage: Stage) -> Path:
        """Folder of a stage: the job's own where there is just one."""
        directory = Path(self.directory)
        if self.rounds == 1 and len(self.stages) == 1:
            return directory
        directory = directory / "rounds" / str(number)
        return directory / stage.name if len(self.stages) > 1 else directory

    def _elsewhere(
        self, student: Pretrained, when: str, workspace: Workspace
    ) -> dict[str, dict[str, float]]:
        return elsewhere.measured(self, self.elsewhere, student, when, workspace.mesh)
