"""Indexes of a job's collection: built once, kept in ``MODEL_DIR/indexes``.

A folder is named by the digest of what the index depends on: the documents (BM25) or
their vectors (ScaNN, late interaction), and its settings. Later searches, rounds and
calls read it, memory-mapped where its form allows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_jax.io import sums
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record, write_record
from distill_jax.runtime import processes
from distill_jax.workspace.context import Workspace

if TYPE_CHECKING:
    from distill_jax.retrieval import BM25

_RECORD = "kept.json"


def bm25(workspace: Workspace, k1: float, b: float) -> BM25:
    """The index of all documents.

    Raises:
        UserError: a kept index is damaged.
    """
    from distill_jax.retrieval import BM25

    docs = workspace.collection
    key = digest("bm25", docs.digest, k1, b)[:16]
    return kept(
        workspace,
        key,
        load=lambda folder: BM25.load(folder, docs),
        build=lambda _: BM25.build(docs, k1=k1, b=b),
        slot=f"bm25 {key}",
    )


def kept(
    workspace: Workspace,
    key: str,
    *,
    load: Callable[[Path], Any],
    build: Callable[[Any], Any],
    slot: str,
    read: Callable[[], Any] = lambda: None,
) -> Any:
    """An index by its key; of several processes the first builds and writes it.

    Args:
        load: reads the folder that the index's ``save`` wrote.
        build: makes the index of what was read; it has ``save(folder)``. It runs in one
            process: what all compute together belongs in ``read``.
        read: makes what the index is of, in every process.
        slot: of the indexes with the same slot, the last one stays open.

    Raises:
        UserError: a kept index is damaged.
    """
    if slot in workspace.indexes and workspace.indexes[slot][0] == key:
        return workspace.indexes[slot][1]
    folder = workspace.directory / "indexes" / key
    if not processes.agreed((folder / _RECORD).is_file()):
        given = read()
        if processes.is_first():
            build(given).save(folder)
            write_record(folder / _RECORD, {"files": sums.take(folder)})
        processes.meet("the index is written")
    todo = f"delete {folder}: it is built again"
    sums.check(folder, read_record(folder / _RECORD, todo, files=dict)["files"], todo)
    workspace.indexes[slot] = key, load(folder)
    return workspace.indexes[slot][1]
