"""Items of a file to a Collection or Queries: ids checked, oddities counted.

Small files become lists. Large ones become string tables in the cache folder, made
once for each state (path, size, change time) of the file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill_jax.collections.collection import Collection, Queries, collection_digest
from distill_jax.io import bad_lines
from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import digest_texts, staging, sweep
from distill_jax.io.reading import file_fingerprint, read_json, write_json
from distill_jax.io.strings import StringTable, StringTableWriter, arrow_strings
from distill_jax.text.vocabulary import without_surrogates

LARGE_BYTES = 256 << 20
"""Files above it are memory-mapped; ``.gz`` files count four times."""

_FORMAT = 1


class Item(NamedTuple):
    """One line: where it is, and what it says."""

    line: int
    id: str
    title: str
    text: str


def collection_of(
    path: Path, items: Callable[[], Iterable[Item]], name: str, titles: bool = True
) -> Collection:
    """The documents of a file.

    Args:
        path: the file, for messages and the cache key.
        items: reads the file again; its texts are already ``clean``.
        name: of the collection.
        titles: False for formats that have none.

    Raises:
        UserError: two documents under one id.
    """
    size = path.stat().st_size * (4 if path.suffix == ".gz" else 1)
    if size > LARGE_BYTES:
        return _large(path, items, name, titles)
    return in_memory(path, items(), name, titles)


def in_memory(
    path: Path, items: Iterable[Item], name: str, titles: bool = True
) -> Collection:
    """The documents of any source, as lists, from clean items."""
    kept, notices = _unique(path, items, "document")
    titled = titles and any(item.title for item in kept)
    return Collection(
        [item.id for item in kept],
        [item.text for item in kept],
        [item.title for item in kept] if titled else None,
        name,
        (*notices, *_empty_notice(sum(1 for i in kept if _empty(i)), len(kept))),
    )


def queries_of(
    path: Path, items: Iterable[Item], name: str
) -> tuple[Queries, list[str]]:
    """The queries of a source from clean items, and notices about them."""
    kept, notices = _unique(path, items, "query")
    empty = sum(1 for item in kept if not item.text.strip())
    if empty:
        notices.append(f"{empty} of {len(kept)} queries are empty")
    return Queries([i.id for i in kept], [i.text for i in kept], name), notices


def clean(item: Item, path: Path) -> Item:
    """Refuses ids that result files cannot hold; lone surrogates become U+FFFD."""
    bad = next((c for c in item.id if c in "\t\n\r\v\f\0\x85\u2028\u2029"), None)
    if bad is not None or not item.id or "\ud800" <= max(item.id) <= "\udfff":
        what = "an empty id" if not item.id else f"the id {clip(item.id)}"
        raise UserError(
            f"{path}:{item.line}: {what} cannot be written to qrels and run files",
            "ids must be non-empty, without tabs, line ends and NUL",
        )
    return Item(
        item.line,
        without_surrogates(item.id),
        without_surrogates(item.title),
        without_surrogates(item.text),
    )


def _unique(
    path: Path, items: Iterable[Item], what: str
) -> tuple[list[Item], list[str]]:
    kept: dict[str, Item] = {}
    same = 0
    for item in items:
        before = kept.setdefault(item.id, item)
        if before is not item:
            _require_same(path, what, before, item)
            same += 1
    notices = [f"{same} {what} ids given twice with the same text"] if same else []
    return list(kept.values()), notices


def _require_same(path: Path, what: str, first: Item, second: Item) -> None:
    if first[2:] != second[2:]:
        raise UserError(
            f"{path}:{second.line}: {what} id {clip(second.id)} is already on line "
            f"{first.line}, with a different text",
            "give one of them another id",
        )


def _empty(item: Item) -> bool:
    return not (item.text.strip() or item.title.strip())


def _empty_notice(empty: int, total: int) -> list[str]:
    return [f"{empty} of {total} documents are empty (kept)"] if empty else []


def _large(path, items, name, titles) -> Collection:
    folder = cache_dir() / "collections" / file_fingerprint(path)
    if not _whole(folder):
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder.parent, folder.name)
        aside = staging(folder.parent, folder.name)
        try:
            _write_large(aside, path, items, titles)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(aside, folder)
        except OSError as error:
            if not _whole(folder):
                raise UserError(
                    f"{folder}: the collection's cache cannot be written ({error})",
                    "free some space, or set DISTILL_JAX_CACHE to another disk",
                ) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    record = read_json(folder / "collection.json")
    ids, texts = StringTable.read(folder, "ids"), StringTable.read(folder, "texts")
    return Collection(
        ids,
        texts,
        StringTable.read(folder, "titles") if record["titled"] else None,
        name,
        tuple(record["notices"]),
        record["digest"],
    )


def _whole(folder: Path) -> bool:
    """Whether the cached folder can replace its file.

    Not if the file has bad lines: they are reported, or refused, on every run.
    """
    record = folder / "collection.json"
    if not record.exists():
        return False
    found = read_json(record)
    return found.get("format") == _FORMAT and not found.get("rejected")


def _write_large(folder: Path, path: Path, items, titles: bool) -> None:
    skip: set[int] = set()
    count, empty, titled, lines = _write_tables(folder, path, items, skip)
    repeats = _repeated_rows(StringTable.read(folder, "ids"))
    if repeats:
        ids, title, text = (
            StringTable.read(folder, n) for n in ("ids", "titles", "texts")
        )
        for first, second in repeats:
            a, b = (
                Item(int(lines[r]), ids[r], title[r], text[r]) for r in (first, second)
            )
            _require_same(path, "document", a, b)
            skip.add(second)
        count, empty, titled, lines = _write_tables(folder, path, items, skip)
    notices = []
    if skip:
        notices.append(f"{len(skip)} document ids given twice with the same text")
    notices += _empty_notice(empty, count)
    titled = titled and titles
    columns = {
        n: digest_texts(StringTable.read(folder, n)) for n in ("ids", "titles", "texts")
    }
    write_json(
        folder / "collection.json",
        {
            "format": _FORMAT,
            "source": str(path),
            "documents": count,
            "titled": titled,
            "notices": notices,
            "rejected": bad_lines.rejected(path),
            "digest": collection_digest(
                columns["ids"], columns["titles"] if titled else None, columns["texts"]
            ),
        },
    )


def _write_tables(folder: Path, path: Path, items, skip: set[int]):
    writers = [StringTableWriter(folder, n) for n in ("ids", "titles", "texts")]
    lines, empty, titled = [], 0, False
    try:
        for row, item in enumerate(items()):
            if row in skip:
                continue
            for writer, value in zip(writers, item[1:]):
                writer.append(value)
            lines.append(item.line)
            empty += _empty(item)
            titled = titled or bool(item.title)
    finally:
        for writer in writers:
            writer.close()
    return len(lines), empty, titled, np.asarray(lines, np.int64)


def _repeated_rows(ids: StringTable) -> list[tuple[int, int]]:
    """(first row, later row) of every id that occurs again."""
    import pyarrow.compute as pc

    array = arrow_strings(ids)
    if pc.count_distinct(array).as_py() == len(ids):  # type: ignore[attr-defined]
        return []
    first: dict[str, int] = {}
    repeats = []
    for row, item_id in enumerate(ids):
        if first.setdefault(item_id, row) != row:
            repeats.append((first[item_id], row))
    return repeats
