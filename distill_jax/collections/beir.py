"""BEIR folders: corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv[.gz]."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections.builder import Item, clean, collection_of, queries_of
from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.jsonl import checked_answers, with_answers
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import parsed_jsonl
from distill_jax.io.errors import UserError, near


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads one split of a BEIR folder.

    The queries are those the split's qrels judge, in the order of ``queries.jsonl``,
    with their ``answers`` where lines have that field. Queries that no file of qrels
    names belong to ``train``: a teacher can label them, and they count in no measure.
    A line's ``metadata`` (SciFact's holds the answers) reaches no text.

    Raises:
        UserError: a missing file or split, a malformed line, ids that do not fit.
    """
    folder = _folder(where)
    query_path = _file(folder, "queries.jsonl")
    splits = _splits(folder)
    if split not in splits and split != "train":
        raise _no_split(folder, split, splits)
    answers: dict[str, list[str]] = {}
    name = f"{folder.resolve().name}/{split}"
    every, notices = queries_of(query_path, _items(query_path, answers), name)
    if answers:
        every = with_answers(every, answers)
    named = _named(splits) if split == "train" else set(every.ids)
    unjudged = [query for query in every.ids if query not in named]
    if split not in splits and not unjudged:
        raise _no_split(folder, split, splits)
    collection = documents()
    qrels, lost = Qrels({}), 0
    if split in splits:
        judgements = Qrels.read(splits[split])
        qrels = judgements.restrict(every, collection)
        lost = len(set(judgements.query_ids) & set(every.ids)) - len(qrels.query_ids)
    kept = {*qrels.query_ids, *unjudged}
    queries = every.select([r for r, i in enumerate(every.ids) if i in kept])
    if lost:
        notices.append(f"{lost} queries have no judged document left: left out")
    if unjudged:
        notices.append(
            f"{len(unjudged)} of {len(queries)} training queries are not judged (kept)"
        )
    return collection.with_notices(*notices, *qrels.notices), queries, qrels


def docs(where: str) -> Collection:
    """The documents of a BEIR folder; queries and judgements may be absent.

    Raises:
        UserError: as ``load``, for the corpus.
    """
    folder = _folder(where)
    corpus = _file(folder, "corpus.jsonl")
    collection = collection_of(corpus, lambda: _items(corpus), folder.resolve().name)
    if not len(collection):
        raise UserError(f"{corpus}: no documents", "check the file")
    return collection


def _folder(where: str) -> Path:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give the folder of a BEIR set")
    return folder


def _file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{folder}: no {name} or {name}.gz",
        "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/",
    )


def _splits(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((folder / "qrels").glob("*.tsv*")):
        if path.name.endswith((".tsv", ".tsv.gz")):
            found[path.name.removesuffix(".gz").removesuffix(".tsv")] = path
    return found


def _no_split(folder: Path, split: str, splits: dict[str, Path]) -> UserError:
    return UserError(
        f"{folder / 'qrels'}: no split {split!r}{near(split, splits)}",
        f"available splits: {', '.join(splits) or 'none'}",
    )


def _named(splits: dict[str, Path]) -> set[str]:
    """The queries that any file of judgements names."""
    return {query for path in splits.values() for query in Qrels.read(path).query_ids}


def _items(path: Path, answers: dict[str, list[str]] | None = None) -> Iterator[Item]:
    """The items of a file; the answers that lines have go into ``answers``."""

    def parse(line: int, record: dict) -> Item:
        item = clean(_item(path, line, record), path)
        found = None if answers is None else checked_answers(path, line, record)
        if answers is not None and found is not None:
            answers.setdefault(item.id, found)
        return item

    return parsed_jsonl(path, parse, apart=answers is None)


def _item(path: Path, line: int, record: dict) -> Item:
    item_id, text = record.get("_id"), record.get("text")
    title = record.get("title")
    title = "" if title is None else title
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
                f'{path}:{line}: "{field}" is a {type(value).__name__}, not a string',
                "write it as a JSON string",
            )
    return Item(line, item_id, title, text)  # type: ignore[arg-type]
