"""What a training learns from: the lists of one collection, or of several together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distill_jax.inputs.feed import Featurizer, Feed
from distill_jax.inputs.mixing import MixedFeed, mixing_rates
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.inputs.vectors import VectorFeaturizer
from distill_jax.io.errors import UserError
from distill_jax.io.values import NotNegative, Positive
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import query_adapter, query_side, selection
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.training import Training, known_stream

Evaluate = Callable[[Any, int], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What is learnt from of one collection: its lists, and what their rows are of.

    Attributes:
        dev: lists that the loss is measured on; None where another measure chooses.
        vectors: float[M, E] that ``doc_rows`` are rows of, in place of documents.
        first_row: of the collection's queries in the table of an adapter's queries.
    """

    lists: Lists
    context: Context
    dev: Lists | None = None
    vectors: Any = None
    first_row: int = 0

    def held_out(self, training: Training) -> Material:
        """The material without the lists that the loss is measured on."""
        lists, dev = selection.held_out(training, self.lists, self.context)
        return dataclasses.replace(self, lists=lists, dev=dev)

    def featurizer(self, training: Training, student: Pretrained) -> Any:
        """From row numbers to the student's batch."""
        made: Any
        if training.trained == "adapter":
            made = query_adapter.RowFeaturizer(self.first_row)
        else:
            made = make_featurizer(
                cut(student, training), self.context, training.lengths
            )
        if self.vectors is None:
            return made
        return VectorFeaturizer(made, self.vectors, self.context.workspace.mesh)

    def feed(self, training: Training, featurizer: Any) -> Feed:
        """The training batches."""
        return Feed(
            lists=self.lists,
            featurizer=featurizer,
            stream=stream_of(training.stream),
            batch_size=training.batch_size,
            directory=self.context.directory / "records",
            seed=self.context.workspace.seed,
            host=jax.process_index(),
            hosts=jax.process_count(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """How often a batch is of which collection.

    Attributes:
        rates, temperature: see ``inputs.mixing.mixing_rates``.
    """

    rates: tuple[NotNegative, ...] = ()
    temperature: Positive = 1.0

    def feed(
        self,
        training: Training,
        materials: Sequence[Material],
        featurizers: Sequence[Any],
    ) -> Callable[[int], Any]:
        """The batches of all collections; of one alone they are its own.

        Raises:
            UserError: rates that are not one a collection, or a SeqIO task by its name:
                its rows are of one collection.
        """
        feeds = [
            material.feed(training, featurizer)
            for material, featurizer in zip(materials, featurizers, strict=True)
        ]
        if len(feeds) == 1:
            return feeds[0]
        if getattr(stream_of(training.stream), "name", None) is not None:
            raise UserError(
                f"{training.stream} has rows of one collection, and there are several",
                "leave STREAM out: COLLECTIONS are mixed by RATES",
            )
        sizes = [len(material.lists) for material in materials]
        rates = mixing_rates(sizes, self.rates, self.temperature)
        seed = materials[0].context.workspace.seed
        return MixedFeed(feeds=tuple(feeds), rates=tuple(rates.tolist()), seed=seed)


def frozen_vectors(
    materials: Sequence[Material], whole: Pretrained
) -> tuple[list[Material], dict[str, Any]]:
    """Materials with the document vectors of a student whose documents stay as they
    are, and the digest of these vectors (of several collections a list of them)."""
    found = [
        dataclasses.replace(each, vectors=query_side.doc_vectors(whole, each.context))
        for each in materials
    ]
    digests = [query_side.vectors_digest(each.vectors) for each in found]
    kept = digests[0] if len(digests) == 1 else digests
    return found, {"document_vectors": kept}


def on_vectors(
    materials: Sequence[Material], student: Pretrained
) -> tuple[list[Material], Pretrained]:
    """The student of an adapter on the queries of all materials, and their rows in it.

    Args:
        student: of ``query_adapter.with_adapter``, as it reads in training.
    """
    tables = [
        query_adapter.on_vectors(student, each.context, each.context.queries)
        for each in materials
    ]
    table, rows = query_adapter.joined(tables)
    return [
        dataclasses.replace(each, first_row=row)
        for each, row in zip(materials, rows, strict=True)
    ], table


def evaluation(
    training: Training,
    student: Pretrained,
    materials: Sequence[Material],
    featurizers: Sequence[Any],
    searcher: Any,
) -> Evaluate | None:
    """The mean of what each collection's dev queries or held-out lists measure.

    None where nothing is measured. A collection without them has no part in the mean.

    Args:
        searcher: of ``selection.evaluation`` with ``vectors``; None where documents are
            encoded again.
    """
    made = [
        selection.evaluation(
            training,
            student,
            material.context,
            featurizer,
            material.dev,
            searcher=None
            if searcher is None
            else functools.partial(searcher, vectors=material.vectors),
        )
        for material, featurizer in zip(materials, featurizers, strict=True)
    ]
    found = [each for each in made if each is not None]
    if len(found) < 2:
        return found[0] if found else None

    def mean(params: Any, step: int) -> dict[str, float]:
        values = [each(params, step) for each in found]
        return {
            name: float(np.mean([value[name] for value in values]))
            for name in values[0]
        }

    return mean


def cut(student: Pretrained, training: Training) -> Pretrained:
    """The student as it reads in training."""
    wanted = {"query_length": training.query_length, "doc_length": training.doc_length}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return student.replace(spec=dataclasses.replace(student.spec, **changes))


def stream_of(name: str) -> SeqioStream | ArrayStream:
    """The stream that a recipe names.

    Raises:
        UserError: no such stream.
    """
    kind, _, task = known_stream(name).partition(":")
    return SeqioStream(name=task or None) if kind == "seqio" else ArrayStream()


def make_featurizer(
    student: Pretrained, context: Context, lengths: tuple[int, ...]
) -> Featurizer:
    """The student's path from row numbers to tokens."""
    documents, workspace = student.spec.documents, context.workspace
    pad_id = student.tokenizer.pad_id or 0
    if not documents:
        return Featurizer(
            documents=0,
            pad_id=pad_id,
            query=workspace.query_features(student, context.queries),
            doc=workspace.doc_features(student),
            buckets=lengths,
        )
    pair = workspace.pair_features(student, context.queries)
    return Featurizer(documents=documents, pad_id=pad_id, pair=pair, buckets=lengths)
