"""Trains a T5 query generator: document in, query out; measured by retrieval.

A generated query is good for training a retriever if it leads back to its document.
The job says how often BM25 goes that way for documents that the generator never saw,
compared with sentences cropped from the same documents and with people's questions.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.io.reading import read_json, write_json
from distill_jax.io.values import Name, NotNegative, Rate, Seed, Size, UserPath
from distill_jax.jobs.export import AUTO, Format, exported
from distill_jax.jobs.names import CollectionName
from distill_jax.jobs.plan import plan_generator
from distill_jax.jobs.reporting import digest_versions, export_entry
from distill_jax.lists.building import lists_from_judgements
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.fitting import Stopped, train
from distill_jax.recipe.models import Models
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training
from distill_jax.runs.run import Run
from distill_jax.runtime import sharding
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.context import Split, Workspace, open_workspace

SYSTEMS = ("cropped", "generated", "human")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainGenerator:
    """Trains on judged (document, query) pairs, then asks of unseen documents.

    Attributes:
        directory: ``MODEL_DIR``; ``queries.Generated`` takes it as its checkpoint.
        student: of kind "generator".
        training: its objective is ``losses.Listwise(loss=losses.query_likelihood)``.
        per_query: maximum number of documents of a query; None takes all.
        unseen: judged documents of the test split (else dev) that no training query
            has: the most that get a query.
        depth: a query counts if BM25 ranks its document within this depth.
        max_new_tokens, top_k, temperature: how queries are sampled.
        export: a format of ``export.write``, "auto" for transformers', None for none.
    """

    directory: UserPath
    collection: CollectionName
    student: Student
    training: Training
    per_query: Size | None = 4
    unseen: Size = 300
    depth: Size = 20
    max_new_tokens: Size = 48
    top_k: Size | None = 10
    temperature: NotNegative = 1.0
    export: Format | None = AUTO
    seed: Seed = 0
    mesh: Name | None = None
    dev_share: Rate = 0.1
    max_train_queries: Size | None = None
    max_test_queries: Size | None = None

    def __post_init__(self) -> None:
        if self.training.measure not in (None, "loss"):
            raise UserError(
                f"a query generator ranks nothing: no {self.training.measure} for it",
                "set --gin.MEASURE=loss, or None for the last checkpoint",
            )

    def __call__(self, *, config: str = "", command: str = "") -> int:
        """Runs the job; returns the exit status (143 after SIGTERM)."""
        started = time.monotonic()
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        if config and jax.process_index() == 0:
            (directory / "config.gin").write_text(config, encoding="utf-8")
        workspace = self.workspace()
        split, unseen = self.pairs(workspace), self.unseen_rows(workspace)
        student = Models(self, workspace).initial()
        context = Context(
            workspace=workspace,
            queries=split.queries,
            qrels=split.qrels,
            student=student,
            model=None,
            directory=directory,
        )
        lists = self.lists(workspace, split)
        say(f"{len(lists):,} (document, query) pairs to learn from")
        try:
            trained, fit = train(self.training, lists, student, context)
        except Stopped as stopped:
            say("stopped; the same command goes on from here")
            return stopped.status
        found = self.measured(trained, workspace, unseen)
        if jax.process_index() == 0:
            self._publish(workspace, trained, fit, found, command, started)
        return 0

    def plan(self) -> int:
        """Sizes, steps, shapes and memory, without training."""
        return plan_generator(self)

    def workspace(self) -> Workspace:
        return open_workspace(
            self.directory,
            self.collection,
            mesh=sharding.make_mesh(self.mesh),
            seed=self.seed,
            dev_share=self.dev_share,
            max_train_queries=self.max_train_queries,
            max_test_queries=self.max_test_queries,
            need=("train",),
        )

    def pairs(self, workspace: Workspace) -> Split:
        if workspace.train is None or not len(workspace.train.qrels):
            raise UserError(
                "this collection has no training judgements to train a generator on",
                "use a published generator, e.g. --gin.GENERATOR=hf:NAME in synthesize",
            )
        return workspace.train

    def lists(self, workspace: Workspace, split: Split) -> Any:
        """Lists of a single document, the one that was judged relevant."""
        count = len(split.queries)
        nothing = Run(
            tuple(split.queries.ids),
            np.full((count, 1), -1, np.int32),
            np.full((count, 1), -np.inf, np.float32),
            workspace.collection.ids,
        )
        return lists_from_judgements(
            nothing,
            split.qrels,
            split.queries,
            workspace.collection,
            size=1,
            seed=self.seed,
            per_query=self.per_query,
        )

    def unseen_rows(self, workspace: Workspace) -> dict[int, str]:
        """Document rows that were not trained on, each with a query of people's."""
        from distill_jax.synthesis.crop import sampled

        held_out = [
            split for split in (workspace.test, workspace.dev) if split is not None
        ]
        if not held_out:
            raise UserError(
                "there are no test or dev judgements, so no unseen documents",
                "add qrels/test.tsv, or set DEV_SHARE above 0",
            )
        trained = _documents(workspace.train)
        pairs = [
            (doc_id, text)
            for judged in held_out
            for query_id, text in zip(judged.queries.ids, judged.queries.texts)
            for doc_id in judged.qrels.relevant(query_id)
            if doc_id not in trained
        ]
        replied: dict[int, str] = {}
        rows = workspace.collection.rows([doc_id for doc_id, _ in pairs]).tolist()
        for row, (_, text) in zip(rows, pairs):
            if row >= 0:
                replied.setdefault(row, text)
        if not replied:
            raise UserError(
                "every judged document of the test and dev splits is also in training",
                "split the judgements by documents",
            )
        rows = np.asarray(sorted(replied))
        kept = sampled(workspace.collection, rows, self.unseen, self.seed)
        return {row: replied[row] for row in kept.tolist()}

    def measured(
        self, student: Pretrained, workspace: Workspace, unseen: dict[int, str]
    ) -> dict[str, Any]:
        """``{"ranks": {system: {doc id: rank or 0}}, "samples": [...]}``, as a part."""
        rows = np.asarray(list(unseen))
        sampling = {
            "max_new_tokens": self.max_new_tokens,
            "top_k": self.top_k,
            "temperature": self.temperature,
        }
        folder = Path(self.directory) / "evaluation"

        def make(folder: Path) -> None:
            made = self._made(student, workspace, unseen, rows, sampling, folder)
            write_json(folder / "round_trip.json", self._ranks(made, workspace))

        inputs = {
            "student": student.digest,
            "collection": workspace.collection.digest,
            "documents": digest(rows, list(unseen.values())),
            "sampling": sampling,
            "seed": self.seed,
        }
        part(folder, inputs, make, what="round trips")
        return read_json(folder / "round_trip.json")

    def _made(
        self, student, workspace, unseen, rows, sampling, folder
    ) -> dict[str, Any]:
        from distill_jax.synthesis import t5
        from distill_jax.synthesis.crop import crop
        from distill_jax.synthesis.synthetic import SyntheticQueries

        docs = workspace.collection
        with Counter("generating", len(rows), "documents") as counter:
            generated = t5.generate(
                student,
                docs,
                rows,
                seed=self.seed,
                mesh=workspace.mesh,
                directory=folder / "generated",
                progress=counter,
                **sampling,
            )
        human = [(row, "human", 0, text) for row, text in unseen.items()]
        return {
            "cropped": crop(docs, rows, seed=self.seed),
            "generated": generated,
            "human": SyntheticQueries.of(human, docs.ids),
        }

    def _ranks(self, made: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
        from distill_jax.retrieval import BM25
        from distill_jax.synthesis.filter import source_ranks

        docs = workspace.collection
        index = BM25.build(docs)
        depth = max(self.depth, 100)
        ids = [str(docs.ids[row]) for row in made["human"].sources.tolist()]
        ranks = {}
        texts: dict[str, dict[str, str]] = {doc: {} for doc in ids}
        for name in SYSTEMS:
            queries = made[name]
            # A document without a generated query counts as not found.
            ranks[name] = dict.fromkeys(ids, 0)
            if not len(queries):
                continue
            found = source_ranks(queries, index.search(queries.queries, depth))
            for row, rank, text in zip(queries.sources, found, queries.texts):
                ranks[name][str(docs.ids[int(row)])] = int(rank)
                texts[str(docs.ids[int(row)])][name] = text
        counts = {name: len(made[name]) for name in SYSTEMS}
        samples = [{"document": doc, **texts[doc]} for doc in ids[:12]]
        return {"ranks": ranks, "samples": samples, "queries": counts}

    def _publish(self, workspace, student, fit, found, command, started) -> None:
        from distill_jax import report

        measure = f"Success@{self.depth}"
        values = {
            name: {
                measure: {
                    doc: float(0 < rank <= self.depth) for doc, rank in ranks.items()
                }
            }
            for name, ranks in found["ranks"].items()
        }
        values = {name: values[name] for name in SYSTEMS}
        data = report.compare_systems(
            values, measure, baseline="cropped", system="generated"
        )
        rates = {name: means[measure] for name, means in data["measures"].items()}
        data |= {
            "title": f"{self.collection}: query generator",
            "collection": self.collection,
            "round_trip": {
                "depth": self.depth,
                "documents": len(found["ranks"]["human"]),
                "queries": found["queries"],
                "rates": rates,
            },
            "samples": found["samples"],
            "cost": {"seconds": round(time.monotonic() - started, 1)},
            "again": command,
            "provenance": {
                "student": student.digest,
                "started from": self.student.checkpoint or self.student.backbone,
                "collection digest": workspace.collection.digest,
                "seed": self.seed,
                "training": {k: fit.get(k) for k in ("step", "best_step", "finished")},
                "versions": digest_versions(),
            },
            "notices": [*data["notices"], *workspace.collection.notices],
        }
        export = exported(
            student, workspace, self.export, data["measures"], self.directory
        )
        if export is not None:
            data["export"] = export_entry(export)
        page = report.publish(self.directory, data)
        print(report.summary(data), flush=True)
        for sample in found["samples"][:5]:
            print(f"{sample['document']}")
            for name in SYSTEMS:
                print(f"  {name:9} {sample.get(name, '(none)')[:100]}")
        print(f"report: {page}")
        if export is not None:
            print(f"export: {export['directory']} ({export['format']})")


def _documents(split: Split | None) -> set[str]:
    """Ids of the documents that are relevant for a query of a split."""
    if split is None:
        return set()
    return {
        doc for query in split.qrels.query_ids for doc in split.qrels.relevant(query)
    }
