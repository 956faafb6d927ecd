"""From row numbers to batches of tokens: the one path of training's input.

``Feed(start)`` yields the host's share of global batch ``start``, ``start + 1``, ...
Tokens are gathered from memory-mapped stores and padded to one of a few lengths, so
that the number of compiled shapes is small and known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.batches import Batch, DualBatch, DuoBatch, PairBatch, Targets
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.ir.buckets import bucket_of
from distill_jax.ir.errors import UserError
from distill_jax.ir.lists import FIELDS, Lists
from distill_jax.ir.templates import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Featurizer:
    """Row numbers of a batch to the student's batch of tokens.

    Attributes:
        kind: the student's kind: ``reranker``, ``duo``, ``generator``, or an encoder's.
        pad_id: the padding token.
        pair: joined query and document(s), for rerankers.
        query, doc: the sides apart, for encoders and for generators.
        buckets: allowed sequence lengths, ascending.
    """

    kind: str
    pad_id: int = 0
    pair: Features | None = None
    query: Features | None = None
    doc: Features | None = None
    buckets: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 384, 512)

    def __call__(self, rows: dict[str, Any]) -> Batch:
        targets = _targets(rows)
        if self.kind == "duo":
            return self._duo(rows, targets)
        docs = rows["doc_rows"]
        if self.kind == "reranker":
            assert self.pair is not None
            queries = np.repeat(rows["query_rows"][:, None], docs.shape[1], axis=1)
            tokens = self._join(self.pair, docs >= 0, query=queries, document=docs)
            return PairBatch(tokens=tokens, targets=targets)
        assert self.query is not None
        assert self.doc is not None
        query_rows = rows["query_rows"]
        return DualBatch(
            query_tokens=self._join(self.query, query_rows >= 0, text=query_rows),
            doc_tokens=self._join(self.doc, docs >= 0, text=docs),
            targets=targets,
        )

    def _duo(self, rows: dict[str, Any], targets: Targets) -> DuoBatch:
        assert self.pair is not None
        first, second = rows["first"], rows["second"]
        where = (first >= 0) & (second >= 0)
        docs = rows["doc_rows"]
        tokens = self._join(
            self.pair,
            where,
            query=np.repeat(rows["query_rows"][:, None], first.shape[1], axis=1),
            document0=np.take_along_axis(docs, np.maximum(first, 0), 1),
            document1=np.take_along_axis(docs, np.maximum(second, 0), 1),
        )
        return DuoBatch(
            tokens=tokens,
            targets=Targets(
                labels=rows["probability"].astype(np.float32),
                where=where,
                query_rows=targets.query_rows,
            ),
        )

    def _join(self, features: Features, where: np.ndarray, **rows) -> Any:
        """Tokens of every place of a rectangle; places that pad are all padding."""
        # A row of -1 in any field is padding, and its own text is never looked at.
        flat = {key: np.where(where, value, -1).ravel() for key, value in rows.items()}
        lengths = features.lengths(**flat)
        longest = int(lengths[where.ravel()].max(initial=1))
        length = bucket_of(longest, self.buckets)
        tokens = features.tokens(length, **flat)
        tokens[~where.ravel()] = self.pad_id
        return tokens.reshape(*where.shape, length)


def _targets(rows: dict[str, Any]) -> Targets:
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
        featurizer: row numbers to tokens.
        stream: ``SeqioStream`` or ``ArrayStream``: the order of the lists.
        batch_size: lists in a global batch (B).
        host, hosts: which share of each batch this process reads.
    """

    lists: Lists
    featurizer: Callable[[dict[str, Any]], Any]
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
            mine = batch[self.host * share : (self.host + 1) * share]
            yield self.featurizer(
                {name: np.stack([example[name] for example in mine]) for name in FIELDS}
            )
