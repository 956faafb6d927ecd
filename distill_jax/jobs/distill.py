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
from distill_jax.jobs import budget, elsewhere, several, unjudged
from distill_jax.jobs.budget import BudgetText
from distill_jax.jobs.export import AUTO, Format, exported
from distill_jax.jobs.names import CollectionName, Measure, Measures
from distill_jax.jobs.plan import plan
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import Source
from distill_jax.recipe.fitting import Stopped
from distill_jax.recipe.materials import Mixing
from distill_jax.recipe.models import Models
from distill_jax.recipe.stage import Stage, StageResult, run_stage
from distill_jax.recipe.students import Student
from distill_jax.runtime import sharding
from distill_jax.workspace import cached_step, compact, ranking
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Workspace, open_workspace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Trains a student in stages and rounds, measured before and after.

    Attributes:
        directory: ``MODEL_DIR``; it holds all files of the job.
        collection: see ``collections.schemes.load_collection``.
        collections: in place of ``collection``, several: one student learns from all of
            them, and early stopping and rounds look at the mean over them.
        mixing: how often a batch is of which of them.
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
        budget: e.g. "50 MB, 5 ms": the best form of a dual encoder's vectors within it
            is named, see ``jobs.budget``; None for none.
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
    collection: CollectionName | None = None
    student: Student
    stages: tuple[Stage, ...]
    collections: tuple[CollectionName, ...] = ()
    mixing: Mixing = dataclasses.field(default_factory=Mixing)
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
    budget: BudgetText | None = None
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
        jobs = several.jobs_of(self)
        workspaces = [job.workspace() for job in jobs]
        if config and jax.process_index() == 0:
            (directory / "config.gin").write_text(config, encoding="utf-8")
        models = Models(self, workspaces[0])
        student = models.initial()
        self._check_trainable(student)
        compact.check(student, self.compact)
        if self.budget is not None:
            compact.check(student, compact.FORMS)
        known = self._elsewhere(student, "before", workspaces[0])
        parts = [
            several.Part.begin(
                job, workspace, models, student, command=command, started=started
            )
            for job, workspace in zip(jobs, workspaces, strict=True)
        ]
        try:
            best = self._rounds(student, parts, models)
        except Stopped as stopped:
            say("stopped; the same command goes on from here")
            return stopped.status
        after, table = best[0].student, parts[0].table
        for part in parts:
            part.end(student, after)
        if self.budget is not None:
            for sentence in budget.sentences(
                after, workspaces[0], self.budget, self.measures[0], self.depth
            ):
                parts[0].note(sentence)
        others = self._elsewhere(after, "after", workspaces[0])
        table.elsewhere = elsewhere.compared(known, others, self.measures[0])
        if jax.process_index() == 0:
            for part in parts:
                part.table.check_parts()
            self._keep(after)
            export = exported(
                after,
                workspaces[0],
                self.export,
                several.means(parts),
                directory,
                table.calibration,
            )
            if len(parts) == 1:
                table.finish(best[0], export=export)
            else:
                several.publish(self, parts, best, export, command)
        return 0

    def _keep(self, student: Pretrained) -> None:
        """Writes ``student/``, unless the training of one stage put just that there.

        It may have put another: the base is kept, or a stage changed what it trained.
        """
        folder = Path(self.directory) / "student"
        trained = cached_step.record_of(folder) is not None
        if trained and Pretrained.read(folder).digest == student.digest:
            return
        cached_step.replace(folder, student.save)

    def workspace(self) -> Workspace:
        assert self.collection is not None  # of several, each job has its own
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
        known: dict[str, Any] = {}
        for job in several.jobs_of(self):
            if self.collections:
                print(f"\n== {job.collection} (one training learns from all)")
            plan(job, known)
        return 0

    def _rounds(
        self, student: Pretrained, parts: list[several.Part], models: Models
    ) -> list[StageResult]:
        """The best round's results, one a collection."""
        best: list[StageResult] = []
        best_value, best_row, best_round = -float("inf"), "after", 1
        judges_dev = any(part.rankings.judges_dev for part in parts)
        if self.keep_base and judges_dev:
            best_value, best_row = several.dev_value(parts, student, 0), "before"
            best = [
                StageResult(
                    name="before",
                    directory=Path(part.job.directory),
                    student=student,
                    fit={},
                    made={},
                )
                for part in parts
            ]
            best_round = 0
        if self.stop_measure and self.rounds > 1 and not judges_dev:
            self._note(
                parts,
                "no dev query is judged: all rounds are run, the last round is kept",
            )
        for number in range(1, self.rounds + 1):
            trips: list[StageResult] = []
            for stage in self.stages:
                if stage.student is not None:
                    student = models.made(stage.student)
                place = self.place(number, stage)
                if place != Path(self.directory):
                    say(f"round {number} of {self.rounds}: stage {stage.name}")
                places = [(p.workspace, p.job.place(number, stage)) for p in parts]
                trips = run_stage(
                    stage, student, places, place, models.load, number, self.mixing
                )
                student = trips[0].student
                models.trained[stage.name] = dataclasses.replace(
                    trips[0], directory=place
                )
                name = self.row(number, stage)
                for part, trip in zip(parts, trips, strict=True):
                    part.table.trips.append((number, trip))
                    run = part.rankings.of(student, name, part.first, trip.directory)
                    part.table.add(name, run, round_number=number)
            assert trips
            row = self.row(number, self.stages[-1])
            value = several.dev_value(parts, student, number)
            if not best or not judges_dev or value > best_value:
                gain = value - best_value
                best, best_value, best_round, best_row = trips, value, number, row
                if judges_dev and number > 1 and gain <= self.min_gain:
                    say(f"round {number} gained {gain:+.4f}: no further round")
                    break
            elif judges_dev:
                better = f"round {best_round}" if best_round else "before"
                say(f"round {number} is no better than {better}: stop")
                break
        for part in parts:
            part.table.best_round = best_round
            if best_row != "after":
                part.table.add("after", part.table.runs[best_row])
        if best[0].name == "before" and not best[0].made:
            self._note(
                parts,
                f"training gained nothing on dev queries ({self.stop_measure}): the "
                "model that the job started from is kept",
            )
        return best

    def _note(self, parts: list[several.Part], sentence: str) -> None:
        say(sentence)
        for part in parts:
            part.table.notices.append(sentence)

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
