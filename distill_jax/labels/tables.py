"""Foreign labels in columns: TREC runs, Parquet tables and GPL's margins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill_jax.io.errors import UserError
from distill_jax.io.files import read_lines
from distill_jax.labels.labels import Kind
from distill_jax.labels.records import RECORDS, Record


def trec(path: Path, kind: Kind) -> Iterator[Record]:
    """A run whose scores are the teacher's; several lists a query are an error."""
    runs: dict[str, list[tuple[float, int, str]]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        cells = line.split()
        try:
            if len(cells) != 6:
                raise ValueError
            entry = (float(cells[4]), int(cells[3]), cells[2])
        except ValueError:
            raise UserError(
                f"{path}:{number}: not a line of a TREC run: {line[:60]!r}",
                "six columns: query id, Q0, doc id, rank, score, system",
            ) from None
        runs.setdefault(cells[0], []).append(entry)
    yield from (_from_run(query_id, docs, kind) for query_id, docs in runs.items())


def _from_run(query_id: str, docs: list[tuple[float, int, str]], kind: Kind) -> Record:
    # By score; the file's own ranks decide where scores are equal.
    docs = sorted(docs, key=lambda entry: (-entry[0], entry[1]))
    return Record(
        query_id=query_id,
        doc_ids=[doc_id for _, _, doc_id in docs],
        scores=None if kind == "rank" else [score for score, _, _ in docs],
        source="order" if kind == "rank" else "score",
    )


def parquet(path: Path, kind: Kind | None) -> Iterator[Record]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:  # pyarrow raises several unrelated kinds
        raise UserError(f"{path}: not a Parquet file ({error})") from None
    names = set(table.column_names)
    if {"query_id", "doc_id", "score"} <= names:
        columns = [table[c].to_pylist() for c in ("query_id", "doc_id", "score")]
        ranks = table["rank"].to_pylist() if "rank" in names else [0] * len(table)
        runs: dict[str, list[tuple[float, int, str]]] = {}
        for query_id, doc_id, score, rank in zip(*columns, ranks):
            entry = (float(score), int(rank), str(doc_id))
            runs.setdefault(str(query_id), []).append(entry)
        for query_id, docs in runs.items():
            yield _from_run(query_id, docs, kind or "rank")
        return
    for i, line in enumerate(table.to_pylist()):
        for parse in RECORDS.values():
            if (record := parse(line)) is not None:
                yield record
                break
        else:
            raise UserError(
                f"{path}, row {i}: columns {', '.join(sorted(names))} are no known"
                " labels",
                "query_id, doc_id, score(, rank), or query_id, document_ids, scores",
            )


def gpl(path: Path, notices: list[str]) -> Iterator[Record]:
    """``qid pos neg margin``: margins of one query to scores, up to a constant.

    Margins are differences, so the docs of a query that margins link to each other can
    be given scores; a query's largest group of linked docs is kept.
    """
    links: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        cells = line.split("\t")
        try:
            query_id, positive, negative, margin = *cells[:3], float(cells[3])
        except (ValueError, IndexError):
            raise UserError(
                f"{path}:{number}: not a line of GPL: {line[:60]!r}",
                "four columns, tab between: query id, positive, negative, margin",
            ) from None
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
