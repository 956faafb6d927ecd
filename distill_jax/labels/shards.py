"""One Parquet shard of labels: its columns, its metadata, what can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.labels.labels import PairLabels, TeacherLabels

RELABEL = "label again into another MODEL_DIR, or delete this folder"

Labels = TeacherLabels | PairLabels

_METADATA = b"distill_jax"


def write_shard(path: Path, labels: Labels) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata: dict[str, Any] = {"format": 1, "provenance": labels.provenance}
    if isinstance(labels, PairLabels):
        there = labels.first >= 0
        counts = there.sum(axis=1)
        probability = labels.probability[there]
        columns = {
            "query_id": pa.array(
                np.repeat(np.asarray(labels.query_ids, object), counts), pa.string()
            ),
            "first": _ids(labels.doc_ids, labels.first[there]),
            "second": _ids(labels.doc_ids, labels.second[there]),
            "probability": pa.array(
                probability, pa.float32(), mask=np.isnan(probability)
            ),
        }
        metadata["without_pairs"] = [
            query_id for query_id, n in zip(labels.query_ids, counts) if n == 0
        ]
    else:
        there = labels.rows >= 0
        scored = there & ~labels.failed[:, None]
        columns = {
            "query_id": pa.array(labels.query_ids, pa.string()),
            "doc_ids": _ragged(
                _ids(labels.doc_ids, labels.rows[there]), there.sum(axis=1)
            ),
            "scores": _ragged(
                pa.array(labels.scores[scored], pa.float32()), scored.sum(axis=1)
            ),
            "kind": pa.array([labels.kind] * len(labels), pa.string()),
            "failed": pa.array(labels.failed, pa.bool_()),
        }
    text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    table = pa.table(columns).replace_schema_metadata({_METADATA: text.encode()})
    with atomic_write(path, "wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _ids(doc_ids: Any, rows: np.ndarray) -> Any:
    import pyarrow as pa

    used, codes = np.unique(rows, return_inverse=True)
    met = pa.array([doc_ids[int(row)] for row in used], pa.string())
    return met.take(pa.array(codes.reshape(-1)))


def _ragged(flat: Any, lengths: np.ndarray) -> Any:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def read_metadata(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
        loaded = json.loads(metadata.get(_METADATA, b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if not isinstance(loaded, dict):
        raise _damaged(path, ValueError("its metadata is not an object"))
    return {"provenance": {}, **loaded}


def read_table(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "doc_ids": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "failed": pa.bool_(),
        "probability": pa.float32(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in columns])
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r}; it has"
                f" {', '.join(pq.read_schema(path).names)}",
                f"labels have the columns {', '.join(columns)}",
            )
        return table.select(columns).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, error) from None


def check_lengths(path: Path, table: Any) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise UserError(f"{path}: column {name!r} has empty cells", RELABEL)
    docs = table["doc_ids"].combine_chunks().value_lengths().to_numpy()
    scores = table["scores"].combine_chunks().value_lengths().to_numpy()
    wrong = scores != np.where(table["failed"].to_numpy(), 0, docs)
    if wrong.any():
        i = int(wrong.argmax())
        raise UserError(
            f"{path}: query {table['query_id'][i].as_py()!r} has {docs[i]} docs and"
            f" {scores[i]} scores",
            "a usable list has one score a doc, a failed one has none",
        )


def rows_in(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return UserError(
        f"{path}: the shard cannot be read ({reason})",
        "delete it and label again: only its queries are computed",
    )
