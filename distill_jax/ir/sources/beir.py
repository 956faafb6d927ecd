"""BEIR folders: corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv[.gz]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.ir.collection import Collection, Queries
from distill_jax.ir.errors import UserError, near
from distill_jax.ir.files import read_jsonl
from distill_jax.ir.qrels import Qrels
from distill_jax.ir.sources.building import Item, collection_of, queries_of


def load(where: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads one split of a BEIR folder.

    The queries are those the split's qrels judge, in the order of ``queries.jsonl``.
    A line's ``metadata`` (SciFact's holds the answers) reaches no text.

    Raises:
        UserError: a missing file or split, a malformed line, ids that do not fit.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give the folder of a BEIR set")
    corpus = _file(folder, "corpus.jsonl")
    query_path = _file(folder, "queries.jsonl")
    judgements = Qrels.read(_split(folder, split))
    name = f"{folder.resolve().name}/{split}"
    collection = collection_of(
        corpus, lambda: _items(corpus), folder.resolve().name, titles=True
    )
    every, notices = queries_of(query_path, _items(query_path), name)
    if not len(collection):
        raise UserError(f"{corpus}: no documents", "check the file")
    qrels = judgements.restrict(every, collection)
    queries = every.select([r for r, i in enumerate(every.ids) if i in qrels])
    lost = len(set(judgements.query_ids) & set(every.ids)) - len(queries)
    if lost:
        notices.append(f"{lost} queries have no judged document left: left out")
    return collection.with_notices(*notices, *qrels.notices), queries, qrels


def _file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{folder}: no {name} or {name}.gz",
        "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/",
    )


def _split(folder: Path, split: str) -> Path:
    found = {}
    for path in sorted((folder / "qrels").glob("*.tsv*")):
        if path.name.endswith((".tsv", ".tsv.gz")):
            found[path.name.removesuffix(".gz").removesuffix(".tsv")] = path
    if split not in found:
        raise UserError(
            f"{folder / 'qrels'}: no split {split!r}{near(split, found)}",
            f"the splits there are: {', '.join(found) or 'none'}",
        )
    return found[split]


def _items(path: Path) -> Iterator[Item]:
    for line, record in read_jsonl(path):
        item_id = record.get("_id")
        text = record.get("text")
        title = record.get("title") or ""
        for field, value in (("_id", item_id), ("text", text)):
            if value is None:
                raise UserError(
                    f'{path}:{line}: no "{field}"{near(field, record)}',
                    'each line is {"_id": ..., "title": ..., "text": ...}',
                )
        # Some sets write ids as numbers.
        if isinstance(item_id, int) and not isinstance(item_id, bool):
            item_id = str(item_id)
        for field, value in (("_id", item_id), ("title", title), ("text", text)):
            if not isinstance(value, str):
                raise UserError(
                    f'{path}:{line}: "{field}" is a {type(value).__name__}, '
                    "not a string",
                    "write it as a JSON string",
                )
        yield Item(line, item_id, title, text)  # type: ignore[arg-type]
