"""Foreign labels in columns: TREC runs, Parquet tables and GPL's margins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError, clip, whole
from distill_jax.io.named_columns import Columns, number_of, reversed_ranks
from distill_jax.labels.labels import Kind
from distill_jax.labels.records import RECORDS, Record, as_id, as_number


def reader(form: str | None, path: Path) -> Callable[[str, Any], Record]:
    """Reads one value of a file, called with its place: ``file:line``.

    Args:
      form: a key of ``RECORDS``; None takes the first that fits.
      path: for messages.

    The reading raises UserError with the place, for a value of another format and for a
    field of another type.
    """

    def read(place: str, value: Any) -> Record:
        known = [RECORDS[form]] if form else list(RECORDS.values())
        known = [one for one in known if one.fits(value)]
        if not known:
            what = f"not a record of format {form!r}" if form else "no known labels"
            fields = f"; it has {', '.join(map(str, value))[:200]}" if (
                isinstance(value, dict)
            ) else ""  # fmt: skip
            raise UserError(
                f"{place}: {what}{fields}", f"formats: {', '.join(RECORDS)}, gpl, run"
            )
        try:
            record = known[0].read(value)
        except UserError as error:
            raise UserError(f"{place}: {error.what}", "correct or delete it") from None
        record.place = place
        return record

    return read


_RUN = "'qid Q0 docid rank score tag'"
_RUN_COLUMNS = {6: ("query", "zero", "doc", "rank", "score", "tag")}


def trec(path: Path, kind: Kind, notices: list[str]) -> Iterator[Record]:
    """A run whose scores are the teacher's; several lists a query are an error."""
    columns = Columns(path, _RUN_COLUMNS, ("query", "doc", "score"), _RUN)

    def parse(number: int, line: str) -> tuple[str, tuple[float, int, str]] | None:
        found = columns.read(number, line.split()) if line.strip() else None
        if found is None:
            return None
        what = f"query {clip(found['query'])}, document {clip(found['doc'])}"
        query, doc = (_id(path, number, found[role]) for role in ("query", "doc"))
        score = number_of(path, number, found["score"], what, _RUN)
        # Runs of pools number all ranks 0, or -1: only equal scores look at them.
        rank = number_of(path, number, found.get("rank", "0"), what, _RUN)
        return query, (score, int(rank), doc)

    runs: dict[str, list[tuple[float, int, str]]] = {}
    for query_id, entry in parsed(path, parse):
        runs.setdefault(query_id, []).append(entry)
    notices += filter(None, [_of_distances(path, runs.values())])
    yield from (_from_run(query_id, docs, kind) for query_id, docs in runs.items())


def _id(path: Path, number: int, text: str) -> str:
    try:
        return as_id(text, "an id")
    except UserError as error:
        raise UserError(
            f"{path}:{number}: {error.what}", "correct or delete the line"
        ) from None


def _of_distances(path: Path, lists: Iterable[list[tuple[float, int, str]]]) -> str:
    """A sentence for a file whose ranks say the opposite of its scores; or ""."""
    long = [[entry[:2] for entry in entries] for entries in lists if len(entries) > 2]
    if not long or not all(map(reversed_ranks, long)):
        return ""
    return (
        f"{path.name}: in every list the score rises with the rank; the highest score "
        "is taken for the best document: of distances, write them negated"
    )


def _from_run(query_id: str, docs: list[tuple[float, int, str]], kind: Kind) -> Record:
    # By score; the file's own ranks decide where scores are equal.
    docs = sorted(docs, key=lambda entry: (-entry[0], entry[1]))
    return Record(
        query_id=query_id,
        doc_ids=[doc_id for _, _, doc_id in docs],
        scores=None if kind == "rank" else [score for score, _, _ in docs],
        source="order" if kind == "rank" else "score",
    )


def parquet(path: Path, kind: Kind | None, notices: list[str]) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with whole(f"{path}: not a Parquet file", "write it again"):
        table = pq.read_table(path)
        table.validate(full=True)  # text that is not UTF-8
        names = set(table.column_names)
    if {"query_id", "doc_id", "score"} <= names:
        runs: dict[str, list[tuple[float, int, str]]] = {}
        for i, row in enumerate(table.to_pylist()):
            place = f"{path}, row {i}"
            try:
                query, doc = (
                    as_id(row["query_id"], "an id"),
                    as_id(row["doc_id"], "an id"),
                )
                what = f"of query {clip(query)}, document {clip(doc)}"
                score = as_number(row["score"], f"the score {what}")
                rank = as_number(row.get("rank") or 0, f"the rank {what}")
            except UserError as error:
                raise UserError(
                    f"{place}: {error.what}", "correct or delete the row"
                ) from None
            runs.setdefault(query, []).append((score, int(rank), doc))
        notices += filter(None, [_of_distances(path, runs.values())])
        for query_id, docs in runs.items():
            yield _from_run(query_id, docs, kind or "rank")
        return
    read = reader(None, path)
    for i, row in enumerate(table.to_pylist()):
        yield read(f"{path}, row {i}", row)


_GPL = ("query", "positive", "negative", "margin")
_GPL_FORM = "four columns, tab between: query id, positive, negative, margin"


def holds_margins(path: Path, fields: list[str]) -> bool:
    """Whether the first line of a table is one of GPL's, or a header of such."""
    try:
        Columns(path, {4: _GPL}, _GPL, _GPL_FORM).read(1, fields)
    except UserError:
        return False
    return True


def gpl(path: Path, notices: list[str]) -> Iterator[Record]:
    """``qid pos neg margin``: margins of one query to scores, up to a constant.

    Margins are differences, so the docs of a query that margins link to each other can
    be given scores; a query's largest group of linked docs is kept.
    """
    links: dict[str, dict[str, list[tuple[str, float]]]] = {}
    columns = Columns(path, {4: _GPL}, _GPL, _GPL_FORM)
    margins: dict[tuple[str, str, str], float] = {}

    def parse(number: int, line: str) -> tuple[str, str, str, float] | None:
        found = columns.read(number, line.split("\t")) if line.strip() else None
        if found is None:
            return None
        margin = found["margin"]
        query, positive, negative = (_id(path, number, found[r]) for r in _GPL[:3])
        what = f"margin of query {clip(query)}"
        value = number_of(path, number, margin, what, _GPL_FORM)
        first = margins.setdefault((query, positive, negative), value)
        same = abs(first - value) <= 1e-3 * max(1.0, abs(first))
        if positive == negative or not same:
            reason = (
                f"another one than {first}" if positive != negative else "of itself"
            )
            raise UserError(
                f"{path}:{number}: the {what}, {clip(positive)} and {clip(negative)} "
                f"is {reason}",
                "correct or delete the line",
            )
        return query, positive, negative, value

    for query_id, positive, negative, margin in parsed(path, parse):
        docs = links.setdefault(query_id, {})
        docs.setdefault(positive, []).append((negative, -margin))
        docs.setdefault(negative, []).append((positive, margin))
    lost = 0
    for query_id, docs in links.items():
        groups = []
        left = dict.fromkeys(docs)
        while left:
            start = next(iter(left))
            scores, heap = {start: 0.0}, [start]
            while heap:
                doc = heap.pop()
                left.pop(doc, None)
                for other, step in docs[doc]:
                    if other not in scores:
                        scores[other] = scores[doc] + step
                        heap.append(other)
            groups.append(scores)
        scores = max(groups, key=len)
        lost += len(docs) - len(scores)
        yield Record(
            query_id=query_id, doc_ids=list(scores), scores=list(scores.values())
        )
    if lost:
        notices.append(f"{lost} docs left out: no margin links them to the others")
