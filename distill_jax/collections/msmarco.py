"""MS MARCO folders: collection.tsv, queries.SPLIT.tsv, qrels.SPLIT.tsv; .gz too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections.builder import Item, clean, collection_of, queries_of
from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import columns, parsed
from distill_jax.io.errors import UserError, clip, near


def load(where: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads one split of an MS MARCO folder.

    ``collection.tsv`` holds ``pid<tab>text`` or ``pid<tab>title<tab>text``. The split
    ``dev`` finds ``queries.dev.small.tsv`` as well, and ``train`` finds
    ``queries.train.tsv``. Queries that nobody judged stay: they can be labelled by a
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
            f"the splits there are: {', '.join(splits) or 'none'} "
            "(each queries.SPLIT.tsv and qrels.SPLIT.tsv)",
        )
    name = folder.resolve().name
    collection = docs(where)
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
    collection = collection_of(
        path, lambda: _items(path, titled=True), folder.resolve().name
    )
    if not len(collection):
        raise UserError(f"{path}: no documents", "check the file")
    return collection


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


def _items(path: Path, titled: bool) -> Iterator[Item]:
    fit = columns(path)

    def parse(number: int, line: str) -> Item | None:
        if not line.strip():
            return None
        fields = line.split("\t")
        if len(fields) not in ((2, 3) if titled else (2,)):
            raise UserError(
                f"{path}:{number}: {len(fields)} columns in {clip(line)}",
                "write 'id<tab>text'"
                + (" or 'id<tab>title<tab>text'" if titled else ""),
            )
        if "\0" in line:
            raise UserError(
                f"{path}:{number}:{line.index(chr(0)) + 1}: a NUL character",
                "is the file damaged, or not UTF-8?",
            )
        title = fields[1] if fit(number, fields) == 3 else ""
        return clean(Item(number, fields[0], title, fields[-1]), path)

    return parsed(path, parse)
