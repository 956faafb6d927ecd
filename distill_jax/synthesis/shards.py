"""Work on documents in shards that survive a kill: atomic files, written once.

A shard is a fixed run of documents and one JSON-lines file, which appears under its
name when it is complete. A rerun reads the finished ones and makes the rest, so a kill
costs the shard in flight. ``manifest.json`` says what the shards are of; a folder of
other work is refused.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write, digest
from distill_jax.io.reading import read_json, read_jsonl, write_json
from distill_jax.synthesis.synthetic import SyntheticQueries

Record = tuple[int, str, int, str]
"""Document row, kind, sample number, query."""

Make = Callable[[np.ndarray], tuple[Iterable[Record], Mapping[str, int]]]
"""Rows of one shard to its records and what was dropped, by reason."""


def run(
    collection: Collection,
    rows: Any,
    make: Make,
    *,
    directory: str | Path | None,
    manifest: Mapping[str, Any],
    shard_size: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticQueries:
    """Generates the queries of ``rows``, or reads those of an earlier call.

    Args:
        collection: the documents.
        rows: int[R], the documents to make queries of.
        make: makes one shard; a function of its rows and of nothing that differs
            between machines or calls.
        directory: the folder of the shards; None keeps them in memory.
        manifest: everything that decides the result, JSON-able.
        shard_size: documents a shard.
        progress: called with (documents done, documents).

    Raises:
        UserError: the directory holds shards of other work.
    """
    rows = np.asarray(rows, np.int64)
    folder = None if directory is None else Path(directory)
    if folder is not None:
        _claim(folder, manifest, collection, rows, shard_size)
    records: list[Record] = []
    dropped: collections.Counter[str] = collections.Counter()
    for number, start in enumerate(range(0, len(rows), shard_size)):
        part = rows[start : start + shard_size]
        path = None if folder is None else folder / f"shard-{number:05d}.jsonl"
        if path is None or not path.exists():
            found, lost = make(part)
            found, lost = list(found), dict(lost)
            if path is not None:
                _write(path, found, lost, collection)
        else:
            found, lost = _read(path, collection)
        records += found
        dropped.update(lost)
        if progress is not None:
            progress(start + len(part), len(rows))
    return SyntheticQueries.of(records, collection.ids, dropped)


def _claim(folder, manifest, collection, rows, shard_size) -> None:
    wanted = {
        **manifest,
        "collection": collection.digest,
        "rows": digest("rows", rows),
        "shard_size": shard_size,
    }
    wanted = json.loads(json.dumps(wanted))
    path = folder / "manifest.json"
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_json(path)
    differing = sorted(
        key for key in {*wanted, *found} if wanted.get(key) != found.get(key)
    )
    if differing:
        raise UserError(
            f"{folder} holds queries made otherwise: {', '.join(differing)} differ",
            "choose another folder, or delete this one to make them again",
        )


def _write(path: Path, records, dropped, collection: Collection) -> None:
    with atomic_write(path) as out:
        for row, kind, sample, text in records:
            line = {"doc": collection.ids[row], "kind": kind, "sample": sample}
            out.write(json.dumps({**line, "text": text}, ensure_ascii=False) + "\n")
        out.write(json.dumps({"dropped": dropped}) + "\n")


def _read(path: Path, collection: Collection) -> tuple[list[Record], dict[str, int]]:
    records, dropped = [], None
    for _, record in read_jsonl(path):
        if "dropped" in record:
            dropped = record["dropped"]
        else:
            row = collection.row(record["doc"])
            records.append((row, record["kind"], record["sample"], record["text"]))
    if dropped is None:
        raise UserError(f"{path}: the shard is cut short", "delete it; it is remade")
    return records, dropped
