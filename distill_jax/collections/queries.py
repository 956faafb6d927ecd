"""Queries alone: a file of JSON lines, of ``id<tab>text``, or of one text a line.

JSON lines are those of ``jsonl:`` (``question`` or ``text``, perhaps ``_id`` and
``answers``). Nothing is judged: a teacher labels what is found for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections import jsonl
from distill_jax.collections.builder import Item, clean, queries_of
from distill_jax.collections.collection import (
    NO_DOCUMENTS,
    Collection,
    Documents,
    Queries,
)
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError
from distill_jax.io.named_columns import Columns, Texts

_JSON = (".jsonl", ".json", ".ndjson")


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads the queries of a file, which is itself the split.

    Raises:
        UserError: with file:line, for malformed lines; a file without queries.
    """
    path = Path(where).expanduser()
    if path.name.removesuffix(".gz").endswith(_JSON):
        return jsonl.load(where, split, documents)
    if path.name.removesuffix(".gz").endswith((".csv", ".parquet")):
        raise UserError(f"{path}: queries in a table", f"write {_FORM}, or JSON lines")
    queries, notices = queries_of(path, _items(path), path.stem)
    if not len(queries):
        raise UserError(f"{path}: no queries", "check the file")
    collection = Collection([], [], None, path.stem, (NO_DOCUMENTS, *notices))
    return collection, queries, Qrels({})


def _items(path: Path) -> Iterator[Item]:
    columns = Columns(path, _LAYOUTS, ("id", "text"), _FORM)
    texts = Texts(path)

    def parse(number: int, line: str) -> Item | None:
        if not line.strip():
            return None
        found = columns.read(number, line.split("\t"))
        if found is None:
            return None
        query_id = found.get("id", f"{path.stem}-{number}")
        if "id" in found:
            texts.see(number, found["text"])
        return clean(Item(number, query_id, "", found["text"]), path)

    yield from parsed(path, parse)
    texts.check()


_LAYOUTS = {1: ("text",), 2: ("id", "text")}
_FORM = "'id<tab>text', or one text a line"
