"""BM25 of a job's collection: built once, kept in ``MODEL_DIR/indexes``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_jax.io import sums
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record, write_record
from distill_jax.runtime import processes
from distill_jax.workspace.context import Workspace

if TYPE_CHECKING:
    from distill_jax.retrieval import BM25

_RECORD = "kept.json"


def bm25(workspace: Workspace, k1: float, b: float) -> BM25:
    """The index of all documents; one process writes, every later call reads.

    Raises:
        UserError: a kept index is damaged.
    """
    from distill_jax.retrieval import BM25

    key = digest("bm25", workspace.collection.digest, k1, b)[:16]
    if key in workspace.indexes:
        return workspace.indexes[key]
    folder = workspace.directory / "indexes" / key
    if (folder / _RECORD).is_file():
        todo = f"delete {folder}: it is built again"
        record = read_record(folder / _RECORD, todo, files=dict)
        sums.check(folder, record["files"], todo)
        index = BM25.load(folder, workspace.collection)
    else:
        index = BM25.build(workspace.collection, k1=k1, b=b)
        if processes.is_first():
            index.save(folder)
            write_record(folder / _RECORD, {"files": sums.take(folder)})
    return workspace.indexes.setdefault(key, index)
