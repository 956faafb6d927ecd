"""TREC run files, streamed: hundreds of millions of lines in arrays, not dicts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import atomic_write
from distill_jax.io.named_columns import Columns, number_of, rank_of
from distill_jax.io.reading import open_binary, read_lines
from distill_jax.io.strings import int_list
from distill_jax.runs.order import Lists, padded

ENCODED = ";ids=percent-encoded"
"""Ends the tag of a file whose ids are percent-encoded."""

_BLOCK_BYTES = 32 << 20
_WRITE_CELLS = 1 << 20
_BLANK = re.compile(r"[\s\x00-\x1f\x7f\x85\ufeff]")
# What any reader might split at (ASCII or Unicode blanks, controls), and the escape.
_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f\x85%\ufeff]")


def write_run(run: Lists, path: str | Path, tag: str) -> None:
    """See ``Run.write``."""
    if not tag or tag.split() != [tag] or tag.endswith(ENCODED):
        raise UserError(f"the run tag {clip(tag)} is empty or has blanks", "rename it")
    import pyarrow as pa
    import pyarrow.compute as pc

    if not np.isfinite(run.scores[run.where]).all():
        raise UserError(
            f"{path}: the run has scores that are infinite or NaN",
            "an order needs finite numbers",
        )
    used = np.unique(run.rows[run.where])
    ids = [run.doc_ids[row] for row in int_list(used)]
    names = list(run.query_ids)
    if "" in names or "" in ids:
        raise UserError("a run file cannot hold an empty id", "rename it")
    if any(_BLANK.search(name) for name in (*names, *ids)):
        tag += ENCODED
        ids, names = [_escape(i) for i in ids], [_escape(n) for n in names]
    docs = pa.array(ids, pa.large_string())
    queries = pa.array(names, pa.large_string())
    step = max(1, _WRITE_CELLS // max(run.rows.shape[1], 1))
    with atomic_write(path, "wb") as out:
        for start in range(0, len(run.rows), step):
            rows, scores = run.rows[start : start + step], run.scores[start:][:step]
            query, column = np.nonzero(rows >= 0)
            at = np.searchsorted(used, rows[query, column])
            lines = pc.binary_join_element_wise(  # type: ignore[attr-defined]
                queries.take(pa.array(query + start)),
                _text("Q0"),
                docs.take(pa.array(at)),
                pa.array(column + 1).cast(pa.large_string()),
                # Arrow prints the fewest digits that give the float32 back.
                pa.array(scores[query, column]).cast(pa.large_string()),
                _text(f"{tag}\n"),
                _text(" "),
            )
            # The lines lie end to end in the array's buffer: it is the file.
            data = lines.buffers()[2]
            if data is not None and len(lines):
                ends = np.frombuffer(lines.buffers()[1], np.int64)
                out.write(memoryview(data)[: int(ends[len(lines)])])


def _text(value: str) -> Any:
    import pyarrow as pa

    return pa.scalar(value, pa.large_string())


def _escape(item_id: str) -> str:
    def replace(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match.group().encode())

    return _UNSAFE.sub(replace, item_id)


def read_run(path: str | Path, collection: Collection | None) -> Lists:
    """The lists of a run file in any order; see ``Run.read``."""
    try:
        entries = _Entries(path, collection)
        for block in _arrow_blocks(path):
            entries.add(*block)
    except _NotPlain:
        # Runs of blanks, other columns, or a fault: the slow parser finds out which.
        entries = _Entries(path, collection)
        for block in _line_blocks(path):
            entries.add(*block)
    query, rows, scores = entries.arrays()
    entries.check_known()
    if entries.ranked and (_repeated(query, scores) or _falls(query, -scores)):
        for _ in _line_blocks(path):  # says on which lines
            pass
    return padded(list(entries.queries), query, rows, scores, entries.doc_ids)


_FORM = "'qid Q0 docid rank score tag', or 'qid<tab>pid<tab>rank'"
_LAYOUTS = {
    6: ("query", "zero", "doc", "rank", "score", "tag"),
    3: ("query", "doc", "rank"),
}


class _NotPlain(Exception):
    """The file is not what the fast reader reads."""


class _Lines:
    """A file for Arrow, which ends lines at lone carriage returns too: there are none.

    Raises:
        _NotPlain: there is one.
    """

    closed = False

    def __init__(self, file: IO[bytes]):
        self._file, self._last = file, b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        seen = self._last + data
        # One at the end may have its line feed in what is read next.
        lone = seen.count(b"\r") - seen.count(b"\r\n") - seen.endswith(b"\r")
        if data and lone:
            raise _NotPlain
        self._last = data[-1:]
        return data

    def close(self) -> None:
        self._file.close()


class _Entries:
    """Lines gathered as arrays: query positions, rows, scores."""

    def __init__(self, path: str | Path, collection: Collection | None):
        self._path, self._collection = path, collection
        self.queries: dict[str, int] = {}
        self._docs: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._unknown: list[str] = []
        self._unknown_count = 0
        self.ranked = False

    def add(self, queries: Any, docs: Any, scores: np.ndarray, decode: bool) -> None:
        """Adds columns: two pyarrow dictionary arrays and float32[E]."""
        names = queries.dictionary.to_pylist()
        if decode:
            names = [self._decoded(name) for name in names]
        seen = np.asarray(
            [self.queries.setdefault(name, len(self.queries)) for name in names],
            np.int32,
        )
        query = seen[queries.indices.to_numpy()] if len(seen) else np.zeros(0, np.int32)
        ids = docs.dictionary
        if self._collection is None or decode:
            texts = ids.to_pylist()
            if decode:
                texts = [self._decoded(text) for text in texts]
            if self._collection is None:
                table = self._docs
                found = [table.setdefault(text, len(table)) for text in texts]
                known = np.asarray(found, np.int32)
            else:
                known = self._collection.rows(texts)
        else:
            known = self._collection.rows_of_arrow(ids)
        if (known < 0).any():
            missing = np.flatnonzero(known < 0)
            self._unknown_count += len(missing)
            self._unknown.append(ids[int(missing[0])].as_py())
        rows = known[docs.indices.to_numpy()] if len(known) else np.zeros(0, np.int32)
        self._parts.append((query, rows, scores))
        # Ranks are kept negated; scores may be negative too, and are only read once more.
        self.ranked |= bool(len(scores)) and bool((scores <= -1).all())

    def _decoded(self, name: str) -> str:
        try:
            return unquote(name, errors="strict")
        except UnicodeDecodeError:
            raise UserError(
                f"{self._path}: the id {clip(name)} is not percent-encoded UTF-8,"
                " which the run's tag says",
                "write the run again, or rename its tag",
            ) from None

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self._parts:
            empty = np.zeros(0, np.int32)
            return empty, empty, np.zeros(0, np.float32)
        query, rows, scores = (np.concatenate(column) for column in zip(*self._parts))
        self._parts = []
        return query, rows, scores

    def check_known(self) -> None:
        if self._unknown:
            name = self._collection.name if self._collection is not None else ""
            raise UserError(
                f"{self._path}: at least {self._unknown_count} documents are not in "
                f"{name or 'the collection'}, e.g. {clip(self._unknown[0])}",
                "use a run of this collection",
            )

    @property
    def doc_ids(self):
        return list(self._docs) if self._collection is None else self._collection.ids


def _repeated(query: np.ndarray, scores: np.ndarray) -> bool:
    """Whether a query has a score twice."""
    order = np.lexsort((scores, query))
    query, scores = query[order], scores[order]
    return bool(((query[1:] == query[:-1]) & (scores[1:] == scores[:-1])).any())


def _falls(query: np.ndarray, ranks: np.ndarray) -> bool:
    """Whether what is read as ranks looks like scores: none is 1, or all lists fall."""
    if not len(ranks) or ranks.min() > 1:
        return len(ranks) > 0
    order = np.argsort(query, kind="stable")
    inside = query[order][1:] == query[order][:-1]
    steps = np.diff(ranks[order])[inside]
    # Two documents may be in any order.
    return int(np.bincount(query).max()) > 2 and bool((steps < 0).all())


def _arrow_blocks(path: str | Path) -> Iterator[tuple[Any, Any, np.ndarray, bool]]:
    """Blocks of a file that has one tab or one blank between its columns."""
    import pyarrow as pa
    import pyarrow.csv as csv

    first = next((line for _, line in read_lines(path) if line.strip()), None)
    if first is None:
        return
    columns, delimiter = _layout(first)
    try:
        reader = csv.open_csv(
            pa.PythonFile(_Lines(open_binary(path)), "r"),
            read_options=csv.ReadOptions(
                column_names=columns, block_size=_BLOCK_BYTES, use_threads=True
            ),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, quote_char=False, escape_char=False
            ),
            convert_options=csv.ConvertOptions(
                column_types={
                    "query": pa.string(),
                    "doc": pa.string(),
                    "score": pa.float64(),
                    "tag": pa.string(),
                },
                include_columns=["query", "doc", "score"]
                + (["tag"] if "tag" in columns else []),
                strings_can_be_null=False,
                null_values=[],
            ),
        )
        for batch in reader:
            scores = batch.column("score").to_numpy(zero_copy_only=False)
            with np.errstate(over="ignore"):
                if not np.isfinite(scores.astype(np.float32)).all():
                    raise _NotPlain
            if "tag" not in columns:
                if (scores != np.floor(scores)).any() or (scores < 1).any():
                    raise _NotPlain
                scores = -scores
            decode = False
            if "tag" in columns and len(batch):
                decode = batch.column("tag")[0].as_py().endswith(ENCODED)
            query = batch.column("query").dictionary_encode()
            doc = batch.column("doc").dictionary_encode()
            if "" in query.dictionary.to_pylist()[:1]:
                raise _NotPlain
            if _holds_nul(query.dictionary) or _holds_nul(doc.dictionary):
                raise _NotPlain
            yield query, doc, scores.astype(np.float32), decode
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error, UnicodeError) as error:
        raise _NotPlain(str(error)) from None


def _holds_nul(ids: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring(ids, "\0")).as_py())  # type: ignore[attr-defined]


def _layout(line: str) -> tuple[list[str], str]:
    for delimiter in ("\t", " "):
        fields = line.split(delimiter)
        if len(fields) == 6 and all(fields):
            return ["query", "q0", "doc", "rank", "score", "tag"], delimiter
        if len(fields) == 3 and all(fields) and delimiter == "\t":
            return ["query", "doc", "score"], delimiter
    raise _NotPlain


def _line_blocks(path: str | Path) -> Iterator[tuple[Any, Any, np.ndarray, bool]]:
    """The same by lines: any blanks between columns, faults with their line."""
    import pyarrow as pa

    queries: list[str] = []
    docs: list[str] = []
    scores: list[float] = []
    decode = False
    columns = Columns(path, _LAYOUTS, ("query", "doc"), _FORM)
    # The line of each rank of a query, where ranks are what orders.
    ranks: dict[tuple[str, int], int] = {}

    def block():
        return (
            pa.array(queries, pa.string()).dictionary_encode(),
            pa.array(docs, pa.string()).dictionary_encode(),
            np.asarray(scores, np.float32),
            decode,
        )

    def parse(number: int, line: str) -> tuple[str, str, float] | None:
        nonlocal decode
        fields = line.split()
        if not fields:
            return None
        found = columns.read(number, fields)
        if found is None:
            if not {"score", "rank"} & set(columns.roles):
                raise UserError(
                    f"{path}:{number}: the header names no score and no rank",
                    f"write {_FORM}",
                )
            return None
        query, doc = found["query"], found["doc"]
        decode = found.get("tag", "").endswith(ENCODED)
        what = f"query {clip(query)}, document {clip(doc)}"
        if "\0" in line:
            raise UserError(f"{path}:{number}: a NUL character", "is it damaged?")
        if "score" in found:
            return query, doc, number_of(path, number, found["score"], what, _FORM)
        rank = rank_of(path, number, found["rank"], what, _FORM)
        first = ranks.setdefault((query, rank), number)
        if first != number:
            raise UserError(
                f"{path}:{number}: rank {rank} of query {clip(query)} stands on line "
                f"{first} as well",
                f"is the column a score? write {_FORM}",
            )
        return query, doc, float(-rank)

    for query, doc, value in parsed(path, parse):
        queries.append(query)
        docs.append(doc)
        scores.append(value)
        if len(queries) >= 1 << 18:
            yield block()
            queries, docs, scores = [], [], []
    if queries:
        yield block()
    if ranks and not columns.headed:
        place: dict[str, int] = {}
        of = [place.setdefault(query, len(place)) for query, _ in ranks]
        if _falls(np.asarray(of), np.asarray([float(rank) for _, rank in ranks])):
            raise UserError(
                f"{path}: its third column is not a rank: there is no 1, or all lists decrease",
                f"is the column a score? write {_FORM}, or a header",
            )
