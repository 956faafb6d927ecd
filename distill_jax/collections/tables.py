"""Documents in tables: CSV and TSV, JSON lines, Parquet, and datasets on disk.

The columns are found by their names (``ID_COLUMNS``, ``TITLE_COLUMNS``,
``TEXT_COLUMNS``), or named: ``csv:items.csv#id=sku,title=name,text=body``. A table
without a column of ids gets ids of the file's name and the row, from 1.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.collections.builder import Item, clean, collection_of, in_memory
from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import parsed_jsonl
from distill_jax.io.errors import UserError, near, whole
from distill_jax.io.reading import as_utf8, open_binary

ID_COLUMNS = ("_id", "id", "doc_id", "docid", "docno", "pid", "passage_id")
TITLE_COLUMNS = ("title", "name", "heading", "question")
TEXT_COLUMNS = ("text", "contents", "content", "body", "passage", "document", "answer")
_ROLES = {"id": ID_COLUMNS, "title": TITLE_COLUMNS, "text": TEXT_COLUMNS}


def holds_documents(where: str) -> bool:
    """Whether a file of JSON lines holds documents; a ``question`` field means no.

    Raises:
        UserError: no such file, or its first line is not a JSON object.
    """
    path = Path(where.partition("#")[0]).expanduser()
    first = next(_json_rows(path), None)
    return first is not None and "question" not in first[1]


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """A table of documents has no queries: every split is missing.

    Raises:
        UserError: always, with what to give.
    """
    raise UserError(
        f"{where}: a table of documents has no split {split!r}",
        "give queries with --gin.TRAIN_QUERIES=queries:FILE, or use a recipe that "
        "makes them, e.g. specialize.gin",
    )


def docs(where: str) -> Collection:
    """The documents of a table; the end of its name says its form.

    Raises:
        UserError: no such file, a column that it does not have, no column of texts, a
            row whose text is not a string, with file:line.
    """
    name, _, named = where.partition("#")
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such file", "check the path")
    columns = _named(path, named)
    kind = path.name.lower().removesuffix(".gz")
    if path.is_dir() or kind.endswith((".parquet", ".arrow")):
        rows = _arrow_rows
    elif kind.endswith((".jsonl", ".json", ".ndjson")):
        rows = _json_rows
    else:
        rows = _csv_rows
    stem = path.name.partition(".")[0]
    if path.is_dir():
        found = in_memory(path, _items(path, rows, columns, stem), stem)
    else:
        found = collection_of(path, lambda: _items(path, rows, columns, stem), stem)
    if not len(found):
        raise UserError(f"{path}: no documents", "check the file")
    return found


def _items(path: Path, rows: Any, columns: dict, stem: str) -> Iterator[Item]:
    # Rows of JSON may differ in their fields.
    known: dict[tuple[str, ...], dict[str, str]] = {}
    named: bool | None = None
    for line, row in rows(path):
        names = tuple(row)
        if names not in known:
            place = f"{path}:{line}" if known else str(path)
            known[names] = _roles(place, names, columns)
        roles = known[names]
        text = row[roles["text"]]
        title = row[roles["title"]] if "title" in roles else None
        title = str(title) if isinstance(title, int | float) else title
        doc_id = row[roles["id"]] if "id" in roles else None
        for role, value in (("text", text), ("title", "" if title is None else title)):
            if not isinstance(value, str):
                raise UserError(
                    f"{path}:{line}: {roles[role]} is a {type(value).__name__}, "
                    "not a text",
                    f"name another column: csv:PATH#{role}=COLUMN",
                )
        if named not in (None, doc_id is not None):
            raise UserError(
                f"{path}:{line}: {'no' if named else 'an'} id, unlike the lines before",
                "give every document one, or none",
            )
        named = doc_id is not None
        doc_id = f"{stem}-{line}" if doc_id is None else doc_id
        if isinstance(doc_id, bool) or not isinstance(doc_id, str | int):
            raise UserError(
                f"{path}:{line}: {roles['id']} is a {type(doc_id).__name__}, not an id",
                "name another column: csv:PATH#id=COLUMN",
            )
        yield clean(Item(line, str(doc_id), str(title or ""), text), path)


def _named(path: Path, named: str) -> dict[str, str]:
    """``id=sku,text=body`` as a dict."""
    columns = {}
    for part in filter(None, named.split(",")):
        role, equals, column = part.partition("=")
        if not equals or role not in _ROLES:
            raise UserError(
                f"{path}#{named}: {part!r} names no column{near(role, _ROLES)}",
                "write csv:PATH#id=COLUMN,title=COLUMN,text=COLUMN",
            )
        columns[role] = column
    return columns


def _roles(path: str, names: Sequence[str], named: Mapping[str, str]) -> dict:
    for role, column in named.items():
        if column not in names:
            raise UserError(
                f"{path}: no column {column!r}{near(column, names)} for the {role}",
                f"its columns: {', '.join(names)}",
            )
    lower = {name.lower(): name for name in reversed(names)}
    found = {
        role: named.get(role) or next((lower[c] for c in known if c in lower), None)
        for role, known in _ROLES.items()
    }
    if found["text"] is None:
        raise UserError(
            f"{path}: no column of texts among {', '.join(names) or 'none'}",
            "name it: csv:PATH#text=COLUMN",
        )
    return {role: column for role, column in found.items() if column is not None}


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    tab = path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab"))
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="") as file:
        # Strict: a quote that is not closed would make one text of all that follows.
        options = {"delimiter": "\t" if tab else ",", "strict": True}
        reader = csv.reader(_decoded(path, file), **options)
        try:
            yield from _csv_dicts(path, reader)
        except csv.Error as error:
            raise UserError(
                f"{path}:{reader.line_num}: {error}: a quote that is not closed, or in "
                "the midst of a field",
                'write a quote inside quotes twice ("")',
            ) from None


def _csv_dicts(path: Path, reader: Any) -> Iterator[tuple[int, dict]]:
    names = [name.strip() for name in next(reader, [])]
    if len(set(names)) < len(names):
        raise UserError(f"{path}:1: a column is named twice", "rename one")
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise UserError(
                f"{path}:{reader.line_num}: {len(row)} fields, but {len(names)} "
                "columns",
                "quote fields that hold the separator or a line end",
            )
        yield reader.line_num, dict(zip(names, row))


def _decoded(path: Path, file: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                raise UserError(
                    f"{path}:{number}: a NUL character",
                    "is the file damaged, or not a text? " + as_utf8(_first(path)),
                )
            yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number + 1}: not UTF-8 ({error.reason})", as_utf8(_first(path))
        ) from None


def _first(path: Path) -> bytes:
    with open_binary(path) as file:
        return file.read(16)


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    yield from parsed_jsonl(path, lambda line, record: (line, record), apart=True)


def _arrow_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Rows of Parquet files, or of a dataset that ``datasets`` saved to disk."""
    import pyarrow as pa
    from pyarrow import parquet

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    files = files or sorted(path.rglob("*.arrow"))
    if not files:
        raise UserError(f"{path}: no .parquet or .arrow file in it", "check the path")
    number = 0
    for file in files:
        with whole(f"{file}: cannot be read", "is it a whole Parquet or Arrow file?"):
            if file.suffix == ".parquet":
                batches = parquet.ParquetFile(file).iter_batches(1024)
            else:
                batches = pa.ipc.open_stream(pa.memory_map(str(file)))
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
