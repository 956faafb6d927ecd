"""Near-duplicate documents: one text within another, after normalisation.

The rule of Tamber et al. 2025: texts are normalised, sorted, and compared with the
next 9 in sorted order, and again in the order of the reversed texts. So a text is
found that begins or ends like a longer one near it; it is not a full substring search.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import string
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.io import engine
from distill_jax.io.files import atomic_write
from distill_jax.io.strings import StringTable, StringTableWriter

_DROPPED = (string.digits + string.punctuation).encode()
_LOWER = bytes(range(256)).lower()
TOO_SHORT = -1
_SHARD = 8192  # texts


def normalise(text: str, limit: int = 2048) -> str:
    """What two texts must share to count as the same.

    Of the first ``limit`` characters: NFKC, no accents, lower case, no digits, no
    punctuation, line ends and tabs to blanks, single blanks.
    """
    text = text[:limit]
    if text.isascii():
        kept = text.encode().translate(_LOWER, _DROPPED)
        return b" ".join(kept.split()).decode()
    text = unicodedata.normalize("NFKC", text)
    text = unicodedata.normalize("NFD", text).lower()
    return " ".join("".join(filter(_kept, text)).split())


@functools.lru_cache(maxsize=1 << 16)
def _kept(character: str) -> bool:
    if character in string.punctuation:
        return False
    category = unicodedata.category(character)
    return category not in ("Mn", "Nd") and category[0] != "P"


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Documents to leave out.

    Attributes:
        rows: int64[X], ascending rows of the texts to remove.
        inside: int64[X], the row that holds each, or ``TOO_SHORT``.
    """

    rows: np.ndarray
    inside: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def kept(self, number: int) -> np.ndarray:
        """int64: the rows of ``number`` texts that remain."""
        return np.setdiff1d(np.arange(number), self.rows, assume_unique=True)

    def write(self, path: str | Path, ids: Sequence[str]) -> None:
        """One line a removed document: its id, and the id of the one that holds it
        (empty: too short)."""
        with atomic_write(path) as out:
            for row, holder in zip(self.rows.tolist(), self.inside.tolist()):
                out.write(f"{ids[row]}\t{'' if holder < 0 else ids[holder]}\n")


def near_duplicates(
    texts: Sequence[str],
    *,
    window: int = 9,
    minimum: int = 10,
    limit: int = 2048,
    directory: str | Path | None = None,
) -> Duplicates:
    """Finds texts that are too short, or inside one of their neighbours.

    Of equal texts the first stays. A removed text's holder may itself be removed, for
    another that holds it. Every removed text is contained in some kept text.

    Args:
        texts: M texts, read once; a memory-mapped table will do.
        window: neighbours that each text is compared with, in both orders.
        minimum: characters below which a normalised text counts as a duplicate.
        limit: characters of a text that are looked at.
        directory: holds the normalised texts temporarily (about twice their size);
            a temporary folder by default. Memory: about 40 bytes a text.
    """
    holders = np.full(len(texts), TOO_SHORT, np.int64)
    removed = np.zeros(len(texts), bool)
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        for name, reverse in (("forward", False), ("backward", True)):
            table = _table(texts, Path(folder), name, reverse, limit)
            short = _lengths(table) < minimum
            removed |= short
            for row, holder in _contained(table, short, window):
                if not removed[row]:
                    removed[row], holders[row] = True, holder
            del table
    rows = np.flatnonzero(removed)
    return Duplicates(rows, holders[rows])


def _table(texts, folder: Path, name: str, reverse: bool, limit: int) -> StringTable:
    writer = StringTableWriter(folder, name)
    work = functools.partial(_normalised, limit)
    for part in engine.over_shards(work, engine.shards_of(texts, _SHARD)):
        for text in part:
            writer.append(text[::-1] if reverse else text)
    writer.close()
    return StringTable.read(folder, name)


def _normalised(limit: int, texts: Sequence[str]) -> list[str]:
    return [normalise(text, limit) for text in texts]


def _lengths(table: StringTable) -> np.ndarray:
    import pyarrow.compute as pc

    lengths = pc.utf8_length(table.arrow())  # type: ignore[attr-defined]
    return lengths.to_numpy(zero_copy_only=False)


def _contained(
    table: StringTable, short: np.ndarray, window: int
) -> Iterator[tuple[int, int]]:
    """(row, row of a neighbour after it in sorted order that holds it)."""
    neighbours: collections.deque[tuple[int, bytes]] = collections.deque()
    for row, text in _descending(table, short):
        for other, longer in neighbours:
            if len(text) <= len(longer) and text in longer:
                yield row, other
                break
        neighbours.appendleft((row, text))
        if len(neighbours) > window:
            neighbours.pop()


def _descending(table: StringTable, short: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Scans from last to first in sorted order, so that a text sees those after it.

    The sort is stable, so the first row of equal texts is kept.
    """
    import pyarrow.compute as pc

    order = pc.array_sort_indices(  # type: ignore[attr-defined]
        table.arrow(), order="descending"
    ).to_numpy()
    order = order[~short[order]].astype(np.int64)
    blob = memoryview(table.blob)  # type: ignore[arg-type]
    for start in range(0, len(order), 1 << 16):
        rows = order[start : start + (1 << 16)]
        begins, ends = table.offsets[rows], table.offsets[rows + 1]
        for row, begin, end in zip(rows.tolist(), begins.tolist(), ends.tolist()):
            yield row, bytes(blob[begin:end])
