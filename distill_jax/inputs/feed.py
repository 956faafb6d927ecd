"""From row numbers to batches of tokens: the one path of training's input.

``Feed(start)`` yields the host's share of global batch ``start``, ``start + 1``, ...
Tokens are gathered from memory-mapped stores and padded to one of a few lengths, so
that the number of compiled shapes is small and known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.batches import Batch, DualBatch, DuoBatch, PairBatch, Targets
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.io.errors import UserError
from distill_jax.lists.lists import FIELDS, Lists, empty_lists
from distill_jax.text.buckets import bucket_of
from distill_jax.text.features import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Featurizer:
    """Row numbers of a batch to the student's batch of tokens.

    Attributes:
        documents: how many are joined with the query: 1 of a reranker, 2 of a duo, 0
            where the sides are read apart.
        pad_id: the padding token.
        pair: joined query and document(s), for rerankers.
        query, doc: the sides apart, for encoders and for generators.
        buckets: allowed sequence lengths, ascending.
    """

    documents: int
    pad_id: int = 0
    pair: Features | None = None
    query: Features | None = None
    doc: Features | None = None
    buckets: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 384, 512)

    def __call__(self, rows: dict[str, Any], mine: slice = slice(None)) -> Batch:
        """The lists ``mine`` of a batch, padded to the lengths of the whole batch.

        Processes that share a batch all read the row numbers of all of it: each makes
        its own part, and the parts have one shape.
        """
        if self.documents == 2:
            return self._duo(rows, mine)
        targets = targets_of(rows, mine)
        docs = rows["doc_rows"]
        if self.documents == 1:
            assert self.pair is not None
            queries = np.repeat(rows["query_rows"][:, None], docs.shape[1], axis=1)
            tokens = self._join(
                self.pair, docs >= 0, mine, query=queries, document=docs
            )
            return PairBatch(tokens=tokens, targets=targets)
        assert self.doc is not None
        query_tokens, targets = self.queries(rows, mine)
        return DualBatch(
            query_tokens=query_tokens,
            doc_tokens=self._join(self.doc, docs >= 0, mine, text=docs),
            targets=targets,
        )

    def queries(self, rows: dict[str, Any], mine: slice) -> tuple[Any, Targets]:
        """The queries' tokens [B, Lq] and the targets, without a document's token."""
        assert self.query is not None
        at = rows["query_rows"]
        return self._join(self.query, at >= 0, mine, text=at), targets_of(rows, mine)

    def _duo(self, rows: dict[str, Any], mine: slice) -> DuoBatch:
        assert self.pair is not None
        first, second = rows["first"], rows["second"]
        where = (first >= 0) & (second >= 0)
        docs = rows["doc_rows"]
        tokens = self._join(
            self.pair,
            where,
            mine,
            query=np.repeat(rows["query_rows"][:, None], first.shape[1], axis=1),
            document0=np.take_along_axis(docs, np.maximum(first, 0), 1),
            document1=np.take_along_axis(docs, np.maximum(second, 0), 1),
        )
        return DuoBatch(
            tokens=tokens,
            targets=Targets(
                labels=rows["probability"][mine].astype(np.float32),
                where=where[mine],
                query_rows=rows["query_rows"][mine].astype(np.int32),
            ),
        )

    def _join(self, features: Features, where: np.ndarray, mine: slice, **rows) -> Any:
        """Tokens of the places ``mine`` of a rectangle; those that pad are padding."""
        # A row of -1 in any field is padding, and its own text is never looked at.
        rows = {key: np.where(where, value, -1) for key, value in rows.items()}
        lengths = features.lengths(
            **{key: value.ravel() for key, value in rows.items()}
        )
        longest = int(lengths[where.ravel()].max(initial=1))
        length = bucket_of(longest, self.buckets)
        there = where[mine]
        taken = {key: value[mine].ravel() for key, value in rows.items()}
        tokens = features.tokens(length, **taken)
        tokens[~there.ravel()] = self.pad_id
        return tokens.reshape(*there.shape, length)


def targets_of(rows: dict[str, Any], mine: slice) -> Targets:
    """The targets of the lists ``mine`` of a batch."""
    rows = {name: value[mine] for name, value in rows.items()}
    has_pairs = rows["first"].shape[1] > 0
    pair_where: Any = (rows["first"] >= 0) & (rows["second"] >= 0)
    return Targets(
        labels=rows["labels"].astype(np.float32),
        where=rows["doc_rows"] >= 0,
        doc_rows=rows["doc_rows"].astype(np.int32),
        labelled=rows["labelled"].astype(bool),
        first=np.maximum(rows["first"], 0).astype(np.int32) if has_pairs else None,
        second=np.maximum(rows["second"], 0).astype(np.int32) if has_pairs else None,
        probability=rows["probability"].astype(np.float32) if has_pairs else None,
        pair_where=pair_where if has_pairs else None,
        query_rows=rows["query_rows"].astype(np.int32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """The training batches of a stage, from any step on.

    Attributes:
        lists: what is streamed.
        featurizer: the row numbers of a batch, and which lists of it are this host's,
            to tokens.
        stream: ``SeqioStream`` or ``ArrayStream``: the order of the lists.
        batch_size: lists in a global batch (B).
        host, hosts: which share of each batch this process reads.
    """

    lists: Lists
    featurizer: Callable[[dict[str, Any], slice], Any]
    stream: SeqioStream | ArrayStream
    batch_size: int
    directory: Path
    seed: int = 0
    host: int = 0
    hosts: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.hosts:
            raise UserError(
                f"BATCH_SIZE {self.batch_size} does not divide over {self.hosts} hosts",
                f"set --gin.BATCH_SIZE to a multiple of {self.hosts}",
            )

    def __call__(self, start: int) -> Iterator[Batch]:
        share = self.batch_size // self.hosts
        examples = self.stream.rows(
            self.lists, self.directory, self.seed, start * self.batch_size
        )
        while True:
            batch = [next(examples) for _ in range(self.batch_size)]
            yield self.featurizer(
                {
                    name: np.stack([example[name] for example in batch])
                    for name in FIELDS
                },
                slice(self.host * share, (self.host + 1) * share),
            )


def validation_batches(
    lists: Lists,
    featurizer: Callable[[dict[str, Any], slice], Any],
    batch_size: int,
    *,
    multiple_of: int = 1,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[Batch]:
    """Every list once, in order: a host's share of batches that all have one size.

    Empty lists (no doc, query row -1) fill the last batch: devices share it out as they
    do the others, and its step is theirs.

    Args:
        featurizer: as of ``Feed``.
        batch_size: lists in a global batch; where there are fewer, a divisor of it.
        multiple_of: devices that share a batch, if they divide ``batch_size``.
        host, hosts: which share of each batch this process reads.
    """
    even = math.lcm(multiple_of, hosts)
    sizes = range(max(1, min(len(lists), batch_size)), batch_size)
    fitting = (n for n in sizes if batch_size % n == 0 and n % even == 0)
    size = next(fitting, batch_size)
    share = size // hosts
    for start in range(0, len(lists), size):
        part = lists.take(np.arange(start, min(start + size, len(lists))))
        shape = part.doc_rows.shape[1], part.first.shape[1]
        rows = empty_lists(size, *shape) | {"query_rows": np.full(size, -1, np.int32)}
        for name in FIELDS:
            rows[name][: len(part)] = getattr(part, name)
        yield featurizer(rows, slice(host * share, (host + 1) * share))
