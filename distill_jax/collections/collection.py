"""Documents and queries: ids and texts, addressed by row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from distill_jax.io.errors import UserError, clip, near
from distill_jax.io.files import digest, digest_texts
from distill_jax.io.strings import StringTable, arrow_strings, int_list

NO_DOCUMENTS = "questions and answers, no documents"
"""The notice of a collection that came with questions only."""

_DICT_ROWS = 2_000_000
# Up to this many ids are looked up one by one; more of them in one pass over all.
_SEARCHED = 10_000


class _Rows:
    """Ids to row numbers, for anything that has ``ids``, ``name`` and ``_what``."""

    ids: Sequence[str]
    name: str
    _what = "id"

    @functools.cached_property
    def _row_of(self) -> Mapping[str, int]:
        if len(self.ids) <= _DICT_ROWS:
            return {i: row for row, i in enumerate(self.ids)}
        return _SortedIds(self.ids)

    def row(self, item_id: str) -> int:
        """The position of an id.

        Raises:
            UserError: no item has this id.
        """
        try:
            return self._row_of[item_id]
        except KeyError:
            some = [self.ids[i] for i in range(min(1000, len(self.ids)))]
            raise UserError(
                f"{self.name or 'the collection'}: no {self._what} "
                f"{clip(str(item_id))}{near(str(item_id), some)}",
                "check that ids come from the same collection",
            ) from None

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """int32[M]: positions of ids, -1 for the unknown ones."""
        ids = list(ids)
        if len(self.ids) <= _DICT_ROWS or len(ids) <= _SEARCHED:
            get = self._row_of.get
            return np.fromiter((get(i, -1) for i in ids), np.int32, len(ids))
        import pyarrow as pa

        return self.rows_of_arrow(pa.array(ids, pa.large_string()))

    def rows_of_arrow(self, ids: Any) -> np.ndarray:
        """As ``rows``, for a pyarrow array of strings: one pass, no Python objects."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(  # type: ignore[attr-defined]
            ids.cast(pa.large_string()), value_set=self._arrow_ids
        )
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)

    @functools.cached_property
    def _arrow_ids(self) -> Any:
        return arrow_strings(self.ids)


class _SortedIds(Mapping):
    """id -> row by binary search: 4 bytes an id instead of a dict's 150."""

    def __init__(self, ids: Sequence[str]):
        import pyarrow.compute as pc

        self._ids = ids
        order = pc.array_sort_indices(arrow_strings(ids))  # type: ignore[attr-defined]
        self._order = order.to_numpy().astype(np.int32)

    def __getitem__(self, item_id: str) -> int:
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if self._ids[int(self._order[middle])] < item_id:
                low = middle + 1
            else:
                high = middle
        if low < len(self._order) and self._ids[int(self._order[low])] == item_id:
            return int(self._order[low])
        raise KeyError(item_id)

    def __iter__(self):
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Collection(_Rows):
    """Documents.

    Attributes:
        ids: D document ids, all different.
        texts: D texts, without the titles.
        titles: D titles, or None when the collection has none.
        name: for messages and reports.
        notices: what was odd when it was loaded, in sentences with counts.
        known_digest: the digest when it is known already.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    titles: Sequence[str] | None = None
    name: str = ""
    notices: tuple[str, ...] = ()
    known_digest: str | None = dataclasses.field(default=None, repr=False)

    _what = "document"

    def __post_init__(self):
        _check_lengths(self.name, len(self.ids), texts=self.texts, titles=self.titles)
        if self.known_digest is None:
            _check_unique(self.name, self._what, self)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {len(self)} documents)"

    def title(self, row: int) -> str:
        """The title of a row, ``""`` when it has none."""
        return "" if self.titles is None else self.titles[row]

    def text(self, row: int) -> str:
        """The text of a row, without its title."""
        return self.texts[row]

    def full_text(self, row: int) -> str:
        """``title text``, joined by one blank; just one of them when one is empty."""
        return _join(self.title(row), self.texts[row])

    def full_texts(self, rows: Any = None) -> Sequence[str]:
        """Full texts of rows int[M], of all documents by default.

        A large collection's texts are joined when they are looked at.
        """
        if rows is not None:
            return [self.full_text(row) for row in int_list(rows)]
        if isinstance(self.texts, StringTable):
            return _FullTexts(self)
        if self.titles is None:
            return list(self.texts)
        return [_join(title, text) for title, text in zip(self.titles, self.texts)]

    @functools.cached_property
    def digest(self) -> str:
        """Of every id, title and text."""
        if self.known_digest is not None:
            return self.known_digest
        titles = None if self.titles is None else digest_texts(self.titles)
        ids, texts = digest_texts(self.ids), digest_texts(self.texts)
        return collection_digest(ids, titles, texts)

    def select(self, rows: Any) -> Collection:
        """The documents of rows int[M], as a collection of its own."""
        at = int_list(rows)
        titles = None if self.titles is None else [self.titles[r] for r in at]
        return Collection(
            [self.ids[r] for r in at],
            [self.texts[r] for r in at],
            titles,
            self.name,
        )

    def with_notices(self, *notices: str) -> Collection:
        """The same documents with more notices."""
        return dataclasses.replace(
            self, notices=(*self.notices, *notices), known_digest=self.digest
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Queries(_Rows):
    """Queries.

    Attributes:
        ids: Q query ids, all different.
        texts: Q texts.
        name: for messages and reports.
        answers: accepted answers of each query, where the source has them.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    name: str = ""
    answers: Sequence[Sequence[str]] | None = None

    _what = "query"

    def __post_init__(self):
        _check_lengths(self.name, len(self.ids), texts=self.texts, answers=self.answers)
        _check_unique(self.name, self._what, self)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Queries({self.name!r}, {len(self)} queries)"

    def text(self, row: int) -> str:
        return self.texts[row]

    @functools.cached_property
    def digest(self) -> str:
        """Of every id and text."""
        return digest("queries", digest_texts(self.ids), digest_texts(self.texts))

    def select(self, rows: Any) -> Queries:
        """The queries of rows int[M]."""
        at = int_list(rows)
        return Queries(
            [self.ids[r] for r in at],
            [self.texts[r] for r in at],
            self.name,
            None if self.answers is None else [self.answers[r] for r in at],
        )


Documents: TypeAlias = Callable[[], Collection]
"""Parses a source's documents when it is first called; the same ones ever after."""


class _FullTexts(Sequence[str]):
    """``collection.full_text`` of every row, joined on demand."""

    def __init__(self, collection: Collection):
        self._collection = collection

    def __len__(self) -> int:
        return len(self._collection)

    def __getitem__(self, row):
        if not isinstance(row, slice):
            return self._collection.full_text(row)
        texts = self._collection.texts[row]
        if self._collection.titles is None:
            return texts
        return [_join(a, b) for a, b in zip(self._collection.titles[row], texts)]

    def __iter__(self):
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]


def collection_digest(ids: str, titles: str | None, texts: str) -> str:
    """A collection's digest from its columns' digests."""
    return digest("collection", ids, titles, texts)


def _join(title: str, text: str) -> str:
    return f"{title} {text}" if title and text else title or text


def _check_lengths(name: str, count: int, **columns: Any) -> None:
    for column, values in columns.items():
        if values is not None and len(values) != count:
            raise UserError(
                f"{name or 'collection'}: {count} ids but {len(values)} {column}",
                "give one of each for every id",
            )


def _check_unique(name: str, what: str, rows: _Rows) -> None:
    if len(rows.ids) <= _DICT_ROWS and len(rows._row_of) != len(rows.ids):
        seen: set[str] = set()
        for item_id in rows.ids:
            if item_id in seen:
                raise UserError(
                    f"{name or 'collection'}: duplicate {what} id {clip(item_id)}",
                    "make the ids unique",
                )
            seen.add(item_id)
