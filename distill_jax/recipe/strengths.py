"""Pairwise judgements as a pointwise teacher: Bradley-Terry strengths of documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.values import Positive, Size
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.teachers import PairTeacher, Scores, Teacher
from distill_jax.runs.run import Run
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.describe import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """A document's label is the strength that explains its judged pairs best.

    Documents without a judged pair have none and are left out of the list.

    Attributes:
        pairwise: judges pairs of the first teacher's order.
        teacher: gives that order; the candidates' own scores by default.
        prior: weight of a draw against an average document, in pairs: what wins all of
            its pairs stays finite.
        iterations: most steps of the fit.
    """

    pairwise: PairTeacher
    teacher: Teacher = dataclasses.field(default_factory=Scores)
    prior: Positive = 0.1
    iterations: Size = 200

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        place = dataclasses.replace(
            context, directory=context.directory / "labels/order"
        )
        pairs = self.pairwise(place, self.teacher(place, run))
        labels = self.strengths(pairs, context.workspace.collection)
        folder = context.directory / "labels" / "strengths"
        inputs = {
            "teacher": describe(self),
            "pairs": labels.to_run().digest,
            "collection": context.workspace.collection.digest,
        }

        def make(folder: Path) -> None:
            labels.write(folder)

        part(folder, inputs, make, what="strengths")
        return TeacherLabels.read(folder, collection=context.workspace.collection)

    def estimate(self, context: Context) -> str:
        """What the pairwise teacher takes, for ``--plan``."""
        said = getattr(self.pairwise, "estimate", None)
        return "pairs of documents to judge" if said is None else said(context)

    def strengths(self, pairs: PairLabels, collection: Any = None) -> TeacherLabels:
        """The strengths of each query's documents, in logits.

        Raises:
            UserError: no pair was judged.
        """
        from distill_jax.teaching.pairs import bradley_terry

        lists: dict[str, list[tuple[str, float]]] = {}
        for query_id, judged in pairs.by_query().items():
            if not judged:
                continue
            first, second, wins = (np.asarray(column) for column in zip(*judged))
            rows, places = np.unique([first, second], return_inverse=True)
            one, other = places.reshape(2, -1)
            found = bradley_terry(
                wins,
                one,
                other,
                len(rows),
                prior=self.prior,
                iterations=self.iterations,
            )
            ids: list[str] = [str(pairs.doc_ids[row]) for row in rows.tolist()]
            strengths: list[float] = found.tolist()
            lists[query_id] = list(zip(ids, strengths))
        if not lists:
            raise UserError(
                "no pair of documents was judged", "look at the pairwise teacher"
            )
        provenance = {**pairs.provenance, "strengths": describe(self)}
        return TeacherLabels.from_lists(
            lists, lists.values(), provenance=provenance, collection=collection
        )
