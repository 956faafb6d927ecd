"""Queries alone: a file of JSON lines, of ``id<tab>text``, or of one text a line.

JSON lines are those of ``jsonl:`` (``question`` or ``text``, perhaps ``_id`` and
``answers``). Nothing is judged: a teacher labels what is found for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections import jsonl
from distill_jax.collections.builder import Item, clean, queries_of
from distill_jax.collections.collection import NO_DOCUMENTS, Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import columns, parsed
from distill_jax.io.errors import UserError, clip

_JSON = (".jsonl", ".json", ".ndjson")


def load(where: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads the queries of a file, which is itself the split.

    Raises:
        UserError: with file:line, for malformed lines; a file without queries.
    """
    path = Path(where).expanduser()
    if path.name.removesuffix(".gz").endswith(_JSON):
        return jsonl.load(where, split)
    queries, notices = queries_of(path, _items(path), path.stem)
    if not len(queries):
        raise UserError(f"{path}: no queries", "check the file")
    collection = Collection([], [], None, path.stem, (NO_DOCUMENTS, *notices))
    return collection, queries, Qrels({})


def _items(path: Path) -> Iterator[Item]:
    fit = columns(path)

    def parse(number: int, line: str) -> Item | None:
        if not line.strip():
            return None
        fields = line.split("\t")
        if fit(number, fields) > 2:
            raise UserError(
                f"{path}:{number}: {len(fields)} columns in {clip(line)}",
                "write 'id<tab>text', or one text a line",
            )
        query_id = fields[0] if len(fields) == 2 else f"{path.stem}-{number}"
        return clean(Item(number, query_id, "", fields[-1]), path)

    return parsed(path, parse)
