"""One Parquet shard of labels: its columns, its metadata, what can be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill_jax.io.errors import UserError, whole
from distill_jax.io.files import atomic_write

RELABEL = "label again into another MODEL_DIR, or delete this folder"

_METADATA = b"distill_jax"


class Labels(Protocol):
    """Labels of lists or of pairs, as shards store them."""

    @property
    def query_ids(self) -> tuple[str, ...]: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def check(self, place: str = ...) -> None:
        """Raises UserError on the first label that is invalid for training."""
        ...

    def columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Arrow columns of a shard, and its own part of the metadata."""
        ...


def write_shard(
    path: Path, labels: Labels, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes one shard atomically.

    Args:
      provenance: what its metadata say, by default what the labels say.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, metadata = labels.columns()
    provenance = labels.provenance if provenance is None else provenance
    text = json.dumps(
        {"format": 1, "provenance": provenance, **metadata},
        sort_keys=True,
        allow_nan=False,
    )
    table = pa.table(columns).replace_schema_metadata({_METADATA: text.encode()})
    with atomic_write(path, "wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def id_column(doc_ids: Sequence[str], rows: np.ndarray) -> Any:
    """The ids of rows int[M] as an Arrow column; each id is looked up once."""
    import pyarrow as pa

    used, codes = np.unique(rows, return_inverse=True)
    met = pa.array([doc_ids[int(row)] for row in used], pa.string())
    return met.take(pa.array(codes.reshape(-1)))


def list_column(flat: Any, lengths: np.ndarray) -> Any:
    """Flat values as an Arrow column of lists of these lengths."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def read_metadata(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    with _whole(path):
        metadata = pq.read_schema(path).metadata or {}
        loaded = json.loads(metadata.get(_METADATA, b"{}"))
        if not isinstance(loaded, dict):
            raise ValueError("its metadata is not an object")
    return {"provenance": {}, **loaded}


def column_names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    with _whole(path):
        return pq.read_schema(path).names


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
    with _whole(path):
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r}; it has"
                f" {', '.join(column_names(path))}",
                f"labels have the columns {', '.join(columns)}",
            )
        table = table.select(columns).cast(schema)
        table.validate(full=True)  # text that is not UTF-8
        return table


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
    import pyarrow.parquet as pq

    with _whole(path):
        return pq.read_metadata(path).num_rows


def _whole(path: Path) -> AbstractContextManager[None]:
    return whole(
        f"{path}: the shard cannot be read",
        "delete it and label again: only its queries are computed",
    )
