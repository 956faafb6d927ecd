"""Synthetic queries, each with its source document."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import write_json
from distill_jax.synthesis import seeds


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticQueries:
    """Q synthetic queries.

    Attributes:
        ids: Q ids, all different: ``docid|kind|sample``.
        texts: Q queries.
        sources: int64[Q], rows of their source documents.
        kinds: Q names of the method of each: "crop", "t5", "questions", ...
        doc_ids: what ``sources`` index, normally ``collection.ids``.
        dropped: number of discarded queries, by reason.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    sources: np.ndarray
    kinds: Sequence[str]
    doc_ids: Sequence[str]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        records: Iterable[tuple[int, str, int, str]],
        doc_ids: Sequence[str],
        dropped: Mapping[str, int] | None = None,
    ) -> SyntheticQueries:
        """From (document row, kind, sample number, text)."""
        records = list(records)
        return cls(
            [f"{doc_ids[row]}|{kind}|{sample}" for row, kind, sample, _ in records],
            [text for *_, text in records],
            np.asarray([row for row, *_ in records], np.int64),
            [kind for _, kind, *_ in records],
            doc_ids,
            dict(dropped or {}),
        )

    @classmethod
    def join(cls, parts: Sequence[SyntheticQueries]) -> SyntheticQueries:
        """The queries of several makers over one collection."""
        dropped: dict[str, int] = {}
        for part in parts:
            for reason, number in part.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + number
        return cls(
            [query_id for part in parts for query_id in part.ids],
            [text for part in parts for text in part.texts],
            np.concatenate([part.sources for part in parts]),
            [kind for part in parts for kind in part.kinds],
            parts[0].doc_ids,
            dropped,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def queries(self) -> Queries:
        return Queries(list(self.ids), list(self.texts), "synthetic")

    @property
    def qrels(self) -> Qrels:
        """The source document of each query is relevant."""
        return Qrels(
            {
                query_id: {self.doc_ids[int(row)]: 1}
                for query_id, row in zip(self.ids, self.sources.tolist())
            }
        )

    def select(self, keep: Any) -> SyntheticQueries:
        """The queries where ``keep`` bool[Q] is True."""
        at = np.flatnonzero(np.asarray(keep)).tolist()
        return dataclasses.replace(
            self,
            ids=[self.ids[i] for i in at],
            texts=[self.texts[i] for i in at],
            sources=self.sources[at],
            kinds=[self.kinds[i] for i in at],
        )

    def splits(
        self, fractions: Mapping[str, float] | None = None, seed: int = 0
    ) -> list[str]:
        """The split of each query, by its document's id (train 0.9, dev 0.1)."""
        fractions = fractions or {"train": 0.9, "dev": 0.1}
        doc_ids = [self.doc_ids[int(row)] for row in self.sources]
        return seeds.splits(doc_ids, fractions, seed)

    def write(
        self,
        directory: str | Path,
        collection: Collection,
        *,
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """A BEIR folder that ``beir:DIRECTORY`` loads: corpus, queries, qrels/SPLIT.

        Every query's record also names its kind; ``synthesis.json`` says how they were
        made.
        """
        directory = Path(directory)
        with atomic_write(directory / "corpus.jsonl.gz") as out:
            for row, doc_id in enumerate(collection.ids):
                title, text = collection.title(row), collection.text(row)
                _line(out, {"_id": doc_id, "title": title, "text": text})
        with atomic_write(directory / "queries.jsonl") as out:
            for query_id, text, kind in zip(self.ids, self.texts, self.kinds):
                record = {"_id": query_id, "text": text, "metadata": {"kind": kind}}
                _line(out, record)
        names = list(fractions or {"train": 0.9, "dev": 0.1})
        split_of = self.splits(fractions, seed)
        for name in names:
            with atomic_write(directory / "qrels" / f"{name}.tsv") as out:
                out.write("query-id\tcorpus-id\tscore\n")
                for i, query_id in enumerate(self.ids):
                    if split_of[i] == name:
                        out.write(f"{query_id}\t{self.doc_ids[self.sources[i]]}\t1\n")
        write_json(
            directory / "synthesis.json",
            {
                "queries": len(self),
                "splits": {name: split_of.count(name) for name in names},
                "dropped": dict(self.dropped),
                "collection": collection.digest,
                **(provenance or {}),
            },
        )


def _line(out: Any, record: Mapping[str, Any]) -> None:
    out.write(json.dumps(record, ensure_ascii=False) + "\n")
