"""Any collection of ``ir_datasets`` by its name; it downloads on first use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_jax.collections.builder import Item, clean, in_memory, queries_of
from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.jsonl import with_answers
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError, near


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads ``NAME/SPLIT``, or ``NAME`` itself, which is one split.

    A name with none of the usual splits below it is ``train`` or ``dev`` if a part of
    it says so, else ``test``. Unjudged queries belong to ``train``.

    Raises:
        UserError: ir_datasets is not installed, an unknown name, no such split (those
            that exist are listed), or a failed download.
    """
    ir_datasets = _library()
    dataset, name = _find(ir_datasets, where, split)
    with _told(name):
        if where.strip("/") in _names(ir_datasets):
            collection = documents()
        else:
            collection = in_memory(*_docs(dataset, where), where)
        answers: dict[str, list[str]] = {}
        queries, notices = queries_of(*_queries(dataset, name, answers), name)
        judged: dict[str, dict[str, int]] = {}
        for qrel in dataset.qrels_iter() if dataset.has("qrels") else ():
            judged.setdefault(qrel.query_id, {})[qrel.doc_id] = int(qrel.relevance)
    if answers:
        queries = with_answers(queries, answers)
    qrels = Qrels(judged).restrict(queries, collection) if judged else Qrels({})
    unjudged = [r for r, query in enumerate(queries.ids) if query not in qrels]
    if unjudged and split == "train":
        notices.append(
            f"{len(unjudged)} of {len(queries)} queries are not judged (kept)"
        )
    elif unjudged:
        queries = queries.select([r for r, i in enumerate(queries.ids) if i in qrels])
    return collection.with_notices(*notices, *qrels.notices), queries, qrels


def docs(where: str) -> Collection:
    """The documents of a set, which needs neither queries nor judgements.

    Raises:
        UserError: as ``load``.
    """
    ir_datasets, name = _library(), where.strip("/")
    known = _names(ir_datasets)
    # The splits of a set have its documents, where the set itself has no entry.
    for entry in (name, *(f"{name}/{part}" for part in _below(known, name))):
        try:
            dataset = ir_datasets.load(entry)
        except KeyError:
            continue
        if dataset.has("docs"):
            with _told(name):
                return in_memory(*_docs(dataset, name), name)
    raise UserError(
        f"irds:{name}: ir_datasets has no such set" + near(name, known),
        "see https://ir-datasets.com for the names",
    )


def _library() -> Any:
    try:
        import ir_datasets
    except ImportError:
        raise UserError(
            "irds: collections need the ir_datasets library",
            "pip install 'distill_jax[irds]'",
        ) from None
    return ir_datasets


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns the download errors of ir_datasets into a two-line UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"irds:{name}: {type(error).__name__}: {error}",
            "check the network, or download the set and use beir: or msmarco:",
        ) from None


_SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev"}
"""Parts of a name that say which split a set is."""


def _find(ir_datasets: Any, where: str, split: str) -> tuple[Any, str]:
    where = where.strip("/")
    known = _names(ir_datasets)
    names = [f"{where}/{split}"]
    if split == "dev":
        names.append(f"{where}/validation")
    below = _below(known, where)
    parts = {name.split("/")[0] for name in below}
    one = not parts & {*_SPLITS, "test"}
    for name in (*names, where):
        try:
            dataset = ir_datasets.load(name)
        except KeyError:
            continue
        if not (dataset.has("docs") and dataset.has("queries")):
            continue
        judged = dataset.has("qrels")
        if name != where:
            if judged or split == "train":
                return dataset, name
        elif one:
            own = _own_split(where) if judged else "train"
            if split == own:
                return dataset, name
            raise UserError(
                f"irds:{where}: no split {split!r}, the set is one split",
                f"use the split it is: {own} (--gin.SPLIT={own})",
            )
    if below:
        raise UserError(
            f"irds:{where}: no split {split!r}{near(split, below)}",
            f"available splits: {', '.join(below)}",
        )
    raise UserError(
        f"irds:{where}: ir_datasets has no set of that name with queries and qrels"
        + near(where, known),
        "see https://ir-datasets.com for the names",
    )


def _own_split(name: str) -> str:
    """Which split a set without splits below it is, by the parts of its name."""
    found = [_SPLITS[part] for part in name.split("/") if part in _SPLITS]
    return found[-1] if found else "test"


def _names(ir_datasets: Any) -> list[str]:
    return list(getattr(ir_datasets.registry, "_registered", {}))


def _below(known: list[str], where: str) -> list[str]:
    return [n.removeprefix(f"{where}/") for n in known if n.startswith(f"{where}/")]


def _docs(dataset: Any, name: str) -> tuple[Path, Iterator[Item]]:
    source = Path(f"irds:{name}")

    def items() -> Iterator[Item]:
        for number, doc in enumerate(dataset.docs_iter(), 1):
            title = getattr(doc, "title", "") or ""
            text = getattr(doc, "text", None)
            if text is None:
                text, title = doc.default_text(), ""
            yield clean(Item(number, doc.doc_id, title, text), source)

    return source, items()


def _queries(
    dataset: Any, name: str, answers: dict[str, list[str]]
) -> tuple[Path, Iterator[Item]]:
    source = Path(f"irds:{name}")

    def items() -> Iterator[Item]:
        for number, query in enumerate(dataset.queries_iter(), 1):
            text = getattr(query, "text", None)
            if text is None:
                text = query.default_text()
            if getattr(query, "answers", None):
                answers[query.query_id] = list(query.answers)
            yield clean(Item(number, query.query_id, "", text), source)

    return source, items()
