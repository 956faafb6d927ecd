"""The files of labels: Parquet shards, each whole or absent.

A folder holds ``shard-00000.parquet``, ... and, once everything is labelled, a
``complete.json`` that says what belongs to it. Columns of lists: ``query_id``,
``doc_ids``, ``scores``, ``kind``, ``failed``; of pairs, one line a pair:
``query_id``, ``first``, ``second``, ``probability`` (null when the teacher failed).
The provenance is JSON in each file's own metadata. pandas, DuckDB and Hugging Face
datasets read the shards as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io import mirror
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_record, write_record
from distill_jax.labels.ragged import rectangle, rows_of
from distill_jax.labels.shards import (
    RELABEL,
    Labels,
    check_lengths,
    column_names,
    read_metadata,
    read_table,
    rows_in,
    write_shard,
)

# What may differ between two shards of one teacher's labels.
VOLATILE = frozenset({"date", "cost", "seconds", "counts", "host", "versions"})

_SHARD = re.compile(r"shard-(\d{5,})\.parquet")
_COMPLETE = "complete.json"


class LabelWriter:
    """Appends shards to a folder and tracks its content, so that labelling can resume.

    Args:
      directory: the folder; created on the first write.
      provenance: of what will be written. Shards that are there already
        must have the same (but for dates, costs and counts).
      retry_failed: failed queries do not count as done; a later success takes the
        place of the stored failure.
      writes: False where another process writes the shards: nothing is put on the
        disk, and what is labelled counts as done.

    Raises:
      UserError: the folder holds labels of another teacher, template, ...
    """

    def __init__(
        self,
        directory: str | Path,
        provenance: Mapping[str, Any] | None = None,
        *,
        retry_failed: bool = False,
        writes: bool = True,
    ):
        self.directory = Path(directory)
        self.provenance = dict(provenance or {})
        self.done: set[str] = set()
        self._writes = writes
        for path in shards(self.directory):
            metadata = read_metadata(path)
            _refuse_other(
                metadata["provenance"], self.provenance, path, "what you ask for"
            )
            self.done |= _query_ids(path, metadata, retry_failed)

    def write(
        self, labels: Labels, counts: Mapping[str, float] | None = None
    ) -> Path | None:
        """One more shard, on the disk when this returns; None where none is written.

        Args:
          counts: calls, tokens and time spent, stored in the shard, so that sums over a
            folder (``stored_counts``) are those of all runs that it took to fill it.
        """
        self.done |= set(labels.query_ids)
        if not len(labels) or not self._writes:
            return None
        number = max(map(_number, shards(self.directory)), default=-1) + 1
        path = self.directory / f"shard-{number:05d}.parquet"
        labels.check(str(path))
        (self.directory / _COMPLETE).unlink(missing_ok=True)
        provenance = {**self.provenance, **({"counts": dict(counts)} if counts else {})}
        write_shard(path, labels, provenance)
        mirror.push(self.directory)
        return path

    def finish(self, counts: Mapping[str, Any] | None = None) -> Path:
        """Says that nothing is missing; readers then notice what is lost later.

        Args:
          counts: costs, seconds, repairs, ...: ``read`` puts them in the provenance.
        """
        path = self.directory / _COMPLETE
        if not self._writes:
            return path
        index = {path.name: rows_in(path) for path in shards(self.directory)}
        write_record(path, {"shards": index, "counts": dict(counts or {})})
        return path


def is_complete(directory: str | Path) -> bool:
    """Whether ``finish`` was called after the last shard."""
    return (Path(directory) / _COMPLETE).is_file()


def shards(directory: str | Path) -> list[Path]:
    """The shards of a folder in order; [] if there is no folder."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(
        (p for p in directory.iterdir() if _SHARD.fullmatch(p.name)), key=_number
    )


def stored_counts(directory: str | Path) -> Counter:
    """Sums of the counts of the shards that are there."""
    total: Counter = Counter()
    for path in shards(directory):
        # Not +=, which would drop what is negative.
        total.update(read_metadata(path)["provenance"].get("counts") or {})
    return total


def write_all(directory: str | Path, labels: Labels) -> Path:
    """Writes labels as a finished folder of one shard; what was there is replaced."""
    directory = Path(directory)
    labels.check(str(directory))
    (directory / _COMPLETE).unlink(missing_ok=True)
    for path in shards(directory)[1:]:
        path.unlink()
    path = directory / "shard-00000.parquet"
    write_shard(path, labels)
    index = {path.name: rows_in(path)}
    write_record(directory / _COMPLETE, {"shards": index, "counts": {}})
    return directory


def read_lists(
    directory: str | Path,
    collection: Any = None,
    expect: Mapping[str, Any] | None = None,
    unknown: str = "refuse",
) -> dict[str, Any]:
    """The fields of a TeacherLabels, from a folder of shards.

    ``rows`` are -1 where a document was dropped.

    Args:
      collection: gives the rows; without it ``doc_ids`` are the ids met.
      expect: provenance entries that must be so, e.g. ``{"candidates": run.digest}``.
      unknown: "refuse" docs that the collection does not have, or "drop" them.

    Raises:
      UserError: a shard is missing, cut or altered; shards or ``expect`` disagree on
        the provenance; scores are not finite, lengths differ, ids are unknown.
    """
    import pyarrow as pa

    tables, provenance, kinds = [], {}, set()
    for path, metadata in _checked_shards(directory, expect):
        columns = ["query_id", "doc_ids", "scores", "kind", "failed"]
        table = read_table(path, columns)
        check_lengths(path, table)
        kinds |= set(table["kind"].unique().to_pylist())
        provenance = {**metadata["provenance"], **provenance}
        tables.append(table)
    if len(kinds) > 1:
        raise UserError(f"{directory}: both scores and ranks in one folder", RELABEL)
    table = pa.concat_tables(tables).combine_chunks()
    table = table.take(_last_word(table["query_id"].to_pylist(), table["failed"]))
    docs, given = (table[name].combine_chunks() for name in ("doc_ids", "scores"))
    lengths = docs.value_lengths().to_numpy()
    failed = table["failed"].to_numpy()
    rows, doc_ids = rows_of(docs.flatten(), collection, unknown)
    scores = np.full(int(lengths.sum()), np.nan, np.float32)
    scores[np.repeat(~failed, lengths)] = given.flatten().to_numpy()
    return {
        "query_ids": tuple(table["query_id"].to_pylist()),
        "rows": rectangle(rows, lengths, -1, np.int32),
        "scores": rectangle(scores, lengths, np.nan, np.float32),
        "doc_ids": doc_ids,
        "kind": kinds.pop() if kinds else "score",
        "failed": failed,
        "provenance": _with_counts(directory, provenance),
    }


def read_pairs(
    directory: str | Path,
    collection: Any = None,
    expect: Mapping[str, Any] | None = None,
    unknown: str = "refuse",
) -> dict[str, Any]:
    """The fields of a PairLabels; arguments and errors as ``read_lists``."""
    import pyarrow as pa

    tables, provenance, empty = [], {}, []
    for path, metadata in _checked_shards(directory, expect):
        columns = ["query_id", "first", "second", "probability"]
        tables.append(read_table(path, columns))
        provenance = {**metadata["provenance"], **provenance}
        empty += metadata.get("without_pairs", [])
    table = pa.concat_tables(tables).combine_chunks()
    query = table["query_id"].combine_chunks().dictionary_encode()
    query_ids = query.dictionary.to_pylist()
    codes = query.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.argsort(codes, kind="stable")
    both = pa.concat_arrays(
        [table["first"].combine_chunks(), table["second"].combine_chunks()]
    )
    rows, doc_ids = rows_of(both, collection, unknown)
    first, second = rows.reshape(2, -1)
    kept = order[(first >= 0)[order] & (second >= 0)[order]]
    nulls = table["probability"].null_count
    probability = table["probability"].to_numpy()
    if np.isnan(probability).sum() != nulls:
        raise UserError(f"{directory}: a probability is nan", RELABEL)
    lengths = np.bincount(codes[kept], minlength=len(query_ids) + len(empty))
    return {
        "query_ids": (*query_ids, *empty),
        "first": rectangle(first[kept], lengths, -1, np.int32),
        "second": rectangle(second[kept], lengths, -1, np.int32),
        "probability": rectangle(probability[kept], lengths, np.nan, np.float32),
        "doc_ids": doc_ids,
        "provenance": _with_counts(directory, provenance),
    }


def _checked_shards(
    directory: str | Path, expect: Mapping[str, Any] | None
) -> Iterable[tuple[Path, dict[str, Any]]]:
    """Shards with their metadata; complete, agreeing and as expected, or UserError."""
    directory = Path(directory)
    paths = shards(directory)
    if not paths:
        raise UserError(
            f"{directory}: no labels (shard-*.parquet) here",
            "label first, or give the folder that holds the shards",
        )
    if is_complete(directory):
        index = read_record(directory / _COMPLETE, RELABEL, shards=dict)["shards"]
        present = {path.name for path in paths}
        for name, queries in index.items():
            if name not in present:
                raise UserError(
                    f"{directory / name}: the shard is missing",
                    "label again: only its queries are computed",
                )
            if rows_in(directory / name) != queries:
                raise UserError(
                    f"{directory / name}: {rows_in(directory / name)} lines, but"
                    f" {queries} were written",
                    RELABEL,
                )
    found, previous = [], None
    for path in paths:
        metadata = read_metadata(path)
        if expect:
            _refuse_unexpected(metadata["provenance"], expect, path)
        if previous is not None:
            _refuse_other(
                previous[1]["provenance"], metadata["provenance"], path,
                previous[0].name,
            )  # fmt: skip
        previous = (path, metadata)
        found.append(previous)
    return found


def _last_word(query_ids: list[str], failed: Any) -> np.ndarray:
    """One line a query: what succeeded takes the place of a failure."""
    failed, place = failed.to_pylist(), {}
    for i, query_id in enumerate(query_ids):
        before = place.get(query_id)
        if before is not None and not failed[before] and not failed[i]:
            raise UserError(f"query {query_id!r} is labelled in two shards", RELABEL)
        if before is None or failed[before]:
            place[query_id] = i
    return np.fromiter(place.values(), np.int64, len(place))


def _query_ids(path: Path, metadata: Mapping[str, Any], retry_failed: bool) -> set[str]:
    names = column_names(path)
    if "failed" in names and retry_failed:
        table = read_table(path, ["query_id", "failed"])
        table = table.filter([not failed for failed in table["failed"].to_pylist()])
    else:
        table = read_table(path, ["query_id"])
    ids = set(table["query_id"].unique().to_pylist())
    return ids | set(metadata.get("without_pairs", []))


def _refuse_other(
    provenance: Mapping[str, Any], other: Mapping[str, Any], path: Path, name: str
) -> None:
    for key in sorted({*provenance, *other} - VOLATILE):
        if provenance.get(key) != other.get(key):
            raise UserError(
                f"{path}: labels with {key} {provenance.get(key)!r} beside"
                f" {other.get(key)!r} of {name}",
                RELABEL,
            )


def _refuse_unexpected(
    provenance: Mapping[str, Any], expect: Mapping[str, Any], path: Path
) -> None:
    for key, wanted in expect.items():
        if provenance.get(key) != wanted:
            was = repr(provenance[key]) if key in provenance else "not recorded"
            raise UserError(
                f"{path}: the labels' {key} is {was}, but {wanted!r} is expected:"
                " they come from other inputs",
                RELABEL,
            )


def _with_counts(directory: str | Path, provenance: dict[str, Any]) -> dict[str, Any]:
    if not is_complete(directory):
        return provenance
    counts = read_record(Path(directory) / _COMPLETE, RELABEL).get("counts") or {}
    return {**provenance, "counts": counts} if counts else provenance


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("shard-"))
