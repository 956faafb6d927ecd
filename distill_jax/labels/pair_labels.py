"""What pairwise teachers say: the probability that one doc beats another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.labels.ragged import first_twice, translate
from distill_jax.labels.shards import id_column
from distill_jax.labels.store import read_pairs, write_all


@dataclass(frozen=True, eq=False)
class PairLabels:
    """A teacher's probabilities that one doc beats another.

    Attributes:
      query_ids: Q ids, each once.
      first, second: int32[Q, P], positions in ``doc_ids``; -1 pads.
      probability: float32[Q, P], P(first over second) in [0, 1]; nan where padded and
        where the teacher failed.
      doc_ids, provenance: as in TeacherLabels.
    """

    query_ids: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    probability: np.ndarray
    doc_ids: Sequence[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        set_("query_ids", tuple(self.query_ids))
        set_("first", np.asarray(self.first, np.int32))
        set_("second", np.asarray(self.second, np.int32))
        set_("probability", np.asarray(self.probability, np.float32))
        shape = self.first.shape
        if (
            len(shape) != 2
            or shape[0] != len(self.query_ids)
            or self.second.shape != shape
            or self.probability.shape != shape
        ):
            raise UserError(
                f"pair labels of {len(self.query_ids)} queries with shapes {shape},"
                f" {self.second.shape}, {self.probability.shape}",
                "first, second and probability are [Q, P]",
            )

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def where(self) -> np.ndarray:
        """bool[Q, P]: a pair is there and the teacher has judged it."""
        return (self.first >= 0) & np.isfinite(self.probability)

    def by_query(self) -> dict[str, list[tuple[int, int, float]]]:
        """{query id: [(first row, second row, probability), ...]}, judged pairs."""
        where = self.where
        return {
            query_id: [
                (int(first), int(second), float(probability))
                for first, second, probability in zip(
                    self.first[i, where[i]],
                    self.second[i, where[i]],
                    self.probability[i, where[i]],
                )
            ]
            for i, query_id in enumerate(self.query_ids)
        }

    def on(self, collection: Any, unknown: str = "refuse") -> PairLabels:
        """The same pairs with the rows of another collection."""
        if self.doc_ids is collection.ids:
            return self
        first, doc_ids = translate(self.first, self.doc_ids, collection, unknown)
        second, _ = translate(self.second, self.doc_ids, collection, unknown)
        lost = (first < 0) | (second < 0)
        return replace(
            self,
            first=np.where(lost, -1, first),
            second=np.where(lost, -1, second),
            probability=np.where(lost, np.nan, self.probability),
            doc_ids=doc_ids,
        )

    def check(self, place: str = "pair labels") -> None:
        """Raises UserError on the first pair that is invalid for training."""
        if len(set(self.query_ids)) != len(self.query_ids):
            twice = first_twice(self.query_ids)
            raise UserError(f"{place}: query {twice!r} occurs twice", "keep one of it")
        with np.errstate(invalid="ignore"):
            bad = self.where & ~((self.probability >= 0) & (self.probability <= 1))
        bad |= (self.first >= 0) & np.isinf(self.probability)
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise UserError(
                f"{place}: query {self.query_ids[i]!r} has the probability"
                f" {self.probability[i, j]}",
                "store P(first over second), between 0 and 1",
            )
        bad = (self.first >= 0) & (self.first == self.second)
        bad |= (self.first >= 0) != (self.second >= 0)
        if bad.any():
            query_id = self.query_ids[int(np.argwhere(bad)[0][0])]
            raise UserError(
                f"{place}: query {query_id!r} has a pair that is not of two docs",
                "a pair is two different docs of the collection",
            )
        top = max(self.first.max(initial=-1), self.second.max(initial=-1))
        if top >= len(self.doc_ids):
            raise UserError(
                f"{place}: row {top} of {len(self.doc_ids)} docs",
                "the labels belong to another collection",
            )

    def write(self, directory: str | Path) -> Path:
        """Replaces what ``directory`` holds by these labels, as one finished folder."""
        return write_all(directory, self)

    @classmethod
    def read(
        cls,
        directory: str | Path,
        collection: Any = None,
        expect: Mapping[str, Any] | None = None,
        unknown: str = "refuse",
    ) -> PairLabels:
        """Loads and validates; arguments and errors as ``TeacherLabels.read``."""
        labels = cls(**read_pairs(directory, collection, expect, unknown))
        labels.check(str(directory))
        return labels

    def columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Arrow columns of a shard, one line a pair, and the queries without."""
        import pyarrow as pa

        there = self.first >= 0
        counts = there.sum(axis=1)
        probability = self.probability[there]
        columns = {
            "query_id": pa.array(
                np.repeat(np.asarray(self.query_ids, object), counts), pa.string()
            ),
            "first": id_column(self.doc_ids, self.first[there]),
            "second": id_column(self.doc_ids, self.second[there]),
            "probability": pa.array(
                probability, pa.float32(), mask=np.isnan(probability)
            ),
        }
        without = [query for query, n in zip(self.query_ids, counts) if n == 0]
        return columns, {"without_pairs": without}
