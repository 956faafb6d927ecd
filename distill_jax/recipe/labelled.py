"""Labels of other projects, used whole: their queries, lists and pairs.

A stage with such labels retrieves nothing and asks no teacher. Documents that the file
holds and the collection lacks are trained on as the file has them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.values import Name, UserPath
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.readers import read_labels
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.examples import FromTeacher
from distill_jax.runs.run import Run
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split, Workspace
from distill_jax.workspace.dependencies import of_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A file or folder of labels, for ``Stage.labels``.

    Attributes:
        path: MODEL_DIR of a label job, a folder of shards, or a file of another
            project (see ``labels.readers``).
        format: of a file, one of ``labels.readers.FORMATS``; None looks at it.
        permutations: RankGPT's second file.
        kind: of runs and tables: "rank" or "score".
        pairs: a folder or file of pair labels; None takes those beside the labels.
        first_stage: the run that was labelled, for ``FromTeacher.depth``, which counts
            its ranks. None takes ``run.trec`` beside the labels of a label job.
    """

    path: UserPath
    format: Name | None = None
    permutations: UserPath | None = None
    kind: Literal["rank", "score"] | None = None
    pairs: UserPath | None = None
    first_stage: UserPath | None = None

    def open(self, context: Context) -> Labelled:
        """Reads the labels, and the queries and documents that belong to them.

        Raises:
            UserError: as ``read_labels``; or none of the queries is in the collection.
        """
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return self._folder(folder, context)
        found = read_labels(
            self.path,
            form=self.format,
            permutations=self.permutations,
            kind=self.kind,  # type: ignore[arg-type]
        )
        for notice in found.notices:
            say(f"note: {notice}")
        workspace = context.workspace
        if found.collection is not None and not _holds(workspace, found.collection):
            workspace = dataclasses.replace(workspace, collection=found.collection)
            say(
                f"{self.path} holds {len(found.collection):,} documents of its own: "
                "they are trained on"
            )
        split = _named(context, found.labels.query_ids)
        if found.queries is not None:
            split = Split(queries=found.queries, qrels=Qrels({}))
        return self._labelled(workspace, split, found.labels, found.pairs)

    def _folder(self, folder: Path, context: Context) -> Labelled:
        labels = folder / "labels" if (folder / "labels").is_dir() else folder
        first = folder / "run.trec"
        beside = labels / "pairs"
        pairs = None
        if beside.is_dir() and self.pairs is None:
            pairs = PairLabels.read(beside)
        found = TeacherLabels.read(labels)
        split = _named(context, found.query_ids)
        source = self
        if self.first_stage is None and first.is_file():
            source = dataclasses.replace(self, first_stage=str(first))
        return source._labelled(context.workspace, split, found, pairs)

    def _labelled(
        self,
        workspace: Workspace,
        split: Split | None,
        labels: TeacherLabels,
        pairs: PairLabels | None,
    ) -> Labelled:
        if split is None or not len(split.queries):
            raise UserError(
                f"{self.path}: none of its {len(labels):,} queries is a training query "
                f"of {workspace.collection.name}, e.g. {labels.query_ids[0]!r}",
                "give the queries too: --gin.TRAIN_QUERIES=queries:FILE",
            )
        collection = workspace.collection
        labels = labels.select(
            [q for q in labels.query_ids if q in set(split.queries.ids)]
        )
        before = int(labels.where.sum())
        labels = labels.on(collection, unknown="drop")
        left = int(labels.where.sum())
        if left < before:
            say(
                f"note: {before - left:,} of {before:,} labels are of unknown documents"
            )
        if not left:
            raise UserError(
                f"{self.path}: none of its documents is in {collection.name}",
                "give the collection that the labels are of as COLLECTION",
            )
        if self.pairs is not None:
            pairs = _pairs(self.pairs, self.format)
        if pairs is not None:
            pairs = pairs.on(collection, unknown="drop")
        run = labels.to_run()
        if self.first_stage is not None:
            run = Run.read(self.first_stage, collection=collection)
            run = run.select(labels.query_ids)
        return Labelled(
            workspace=workspace,
            split=split,
            run=run,
            labels=labels,
            pairs=pairs,
            ranked=self.first_stage is not None,
            digest=str(of_path(self.path)),
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """What a file of labels holds, on the collection that it is trained with.

    Attributes:
        run: the candidates that were labelled, in the first stage's order where
            ``ranked``, else in the teacher's.
    """

    workspace: Workspace
    split: Split
    run: Run
    labels: TeacherLabels
    pairs: PairLabels | None
    ranked: bool
    digest: str

    def taught(self, examples: Any) -> Any:
        """``examples`` that learn from these labels in place of their teachers'.

        Raises:
            UserError: they learn from judgements, or want what the labels lack.
        """
        if not isinstance(examples, FromTeacher):
            raise UserError(
                f"examples.{type(examples).__name__} learns from judgements",
                "take LABELS out, or use a recipe that learns from a teacher",
            )
        if examples.depth is not None and not self.ranked:
            raise UserError(
                "a depth counts first-stage ranks, and the labels come without them",
                "name the run that was labelled (LabelFile.first_stage)",
            )
        if examples.pairwise is not None and self.pairs is None:
            raise UserError(
                "the labels come without pairs, and a term of the loss reads pairs",
                "name a file of pairs (LabelFile.pairs), or take the term out",
            )
        pairwise = None
        if examples.pairwise is not None:
            pairwise = Given(digest=self.digest, found=self.pairs)
        return dataclasses.replace(
            examples,
            teacher=Given(digest=self.digest, found=self.labels),
            pairwise=pairwise,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """Stored labels in the place of a teacher or a pairwise teacher."""

    digest: str
    found: Any = free()

    def __call__(self, context: Context, run: Any) -> Any:
        del context, run
        return self.found


def source(labels: Any) -> LabelFile:
    """The file that a path, or a ``LabelFile``, names."""
    return labels if isinstance(labels, LabelFile) else LabelFile(path=str(labels))


def _named(context: Context, query_ids: tuple[str, ...]) -> Split | None:
    """The training queries among these."""
    train = context.workspace.train
    if train is None:
        return None
    known = set(query_ids)
    return train.take(np.asarray([query in known for query in train.queries.ids], bool))


def _holds(workspace: Workspace, documents: Collection) -> bool:
    """Whether the collection has all of these documents, under their ids."""
    return bool((workspace.collection.rows(documents.ids) >= 0).all())


def _pairs(path: str, form: str | None) -> PairLabels:
    folder = Path(path).expanduser()
    if folder.is_dir():
        beside = folder / "labels" / "pairs"
        return PairLabels.read(beside if beside.is_dir() else folder)
    found = read_labels(path, form=form).pairs
    if found is None:
        raise UserError(f"{path}: no pairs in it", "give a file of judged pairs")
    return found
