"""MS MARCO folders: collection.tsv, queries.SPLIT.tsv, qrels.SPLIT.tsv; .gz too."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections.builder import Item, clean, collection_of, queries_of
from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError, near
from distill_jax.io.named_columns import Columns, Texts
from distill_jax.io.reading import read_lines


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads one split of an MS MARCO folder.

    ``collection.tsv`` holds ``pid<tab>text`` or ``pid<tab>title<tab>text``, or what its
    header says. The split
    ``dev`` finds ``queries.dev.small.tsv`` as well, and ``train`` finds
    ``queries.train.tsv``. Unjudged queries stay: they can be labelled by a
    teacher, and count in no measure.

    Raises:
        UserError: a missing file or split, or a malformed line.
    """
    folder = _folder(where)
    splits = _splits(folder)
    chosen = _choose(splits, split)
    if chosen is None:
        raise UserError(
            f"{folder}: no split {split!r}{near(split, splits)}",
            f"available splits: {', '.join(splits) or 'none'} "
            "(each queries.SPLIT.tsv and qrels.SPLIT.tsv)",
        )
    name = folder.resolve().name
    collection = documents()
    query_path, qrels_path = splits[chosen]
    queries, notices = queries_of(
        query_path, _items(query_path, titled=False), f"{name}/{chosen}"
    )
    qrels = Qrels.read(qrels_path).restrict(queries, collection)
    unjudged = sum(1 for query in queries.ids if query not in qrels)
    if unjudged:
        notices.append(f"{unjudged} of {len(queries)} queries are not judged (kept)")
    return collection.with_notices(*notices, *qrels.notices), queries, qrels


def docs(where: str) -> Collection:
    """The documents of an MS MARCO folder; queries and judgements may be absent.

    Raises:
        UserError: as ``load``, for the collection.
    """
    folder = _folder(where)
    path = next(
        (
            folder / n
            for n in ("collection.tsv", "collection.tsv.gz")
            if (folder / n).is_file()
        ),
        None,
    )
    if path is None:
        raise UserError(f"{folder}: no collection.tsv[.gz]", "check the folder")
    notices = _order_of_columns(path)
    collection = collection_of(
        path, lambda: _items(path, titled=True), folder.resolve().name
    )
    if not len(collection):
        raise UserError(f"{path}: no documents", "check the file")
    return collection.with_notices(*notices)


def _folder(where: str) -> Path:
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give MS MARCO's folder")
    return folder


def _splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Split names that have queries and qrels."""
    found: dict[str, dict[str, Path]] = {"queries": {}, "qrels": {}}
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".gz")
        kind, _, rest = name.partition(".")
        if kind in found and rest.endswith(".tsv"):
            found[kind].setdefault(rest.removesuffix(".tsv"), path)
    queries, qrels = found["queries"], found["qrels"]
    return {name: (queries[name], qrels[name]) for name in queries if name in qrels}


def _choose(splits: dict[str, tuple[Path, Path]], split: str) -> str | None:
    if split in splits:
        return split
    # The set's own test judgements are not public: dev is what papers report.
    return next((name for name in splits if name.startswith(f"{split}.")), None)


_DOCS = {2: ("id", "text"), 3: ("id", "title", "text")}
_QUERIES = {2: ("id", "text")}


def _items(path: Path, titled: bool) -> Iterator[Item]:
    form = "'id<tab>text'" + (" or 'id<tab>title<tab>text'" if titled else "")
    columns = Columns(path, _DOCS if titled else _QUERIES, ("id", "text"), form)
    texts = Texts(path)

    def parse(number: int, line: str) -> Item | None:
        if not line.strip():
            return None
        found = columns.read(number, line.split("\t"))
        if found is None:
            return None
        if "\0" in line:
            raise UserError(
                f"{path}:{number}:{line.index(chr(0)) + 1}: a NUL character",
                "is the file damaged, or not UTF-8?",
            )
        texts.see(number, found["text"])
        item = Item(number, found["id"], found.get("title", ""), found["text"])
        return clean(item, path)

    yield from parsed(path, parse)
    texts.check()


def _order_of_columns(path: Path) -> list[str]:
    """How three columns without a header are read, by their first lines.

    ColBERT's and DPR's files are ``pid text title``.

    Raises:
        UserError: the second column is the longer one: it is hardly the title.
    """
    columns = Columns(path, _DOCS, ("id", "text"), "'id<tab>title<tab>text'")
    titles = texts = 0
    for number, line in itertools.islice(read_lines(path), _LOOK):
        found = columns.read(number, line.split("\t")) if line.strip() else None
        if columns.headed or len(columns.roles) == 2:
            return []
        if found is not None:
            titles, texts = titles + len(found["title"]), texts + len(found["text"])
    if titles > texts:
        raise UserError(
            f"{path}: the second of its three columns is longer than the third, which"
            " is read as the text after its title",
            "begin the file with a header: id<tab>text<tab>title",
        )
    return [f"{path.name}: three columns without a header: id, title, text"]


_LOOK = 100  # lines
