"""Relevance judgements: TREC and BEIR files, and their fit to a collection."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import atomic_write, digest
from distill_jax.io.named_columns import Columns, decimal


class Qrels:
    """Judgements by query.

    Args:
        judgements: ``{query id: {document id: grade}}``.
        notices: what was odd when it was read or restricted, in sentences.
    """

    def __init__(
        self,
        judgements: Mapping[str, Mapping[str, int]],
        notices: tuple[str, ...] = (),
    ):
        self._judgements = {q: dict(docs) for q, docs in judgements.items()}
        self.notices = tuple(notices)

    @property
    def query_ids(self) -> tuple[str, ...]:
        """Judged queries, in file order."""
        return tuple(self._judgements)

    def of(self, query_id: str) -> dict[str, int]:
        """``{document id: grade}`` of a query, empty when it is not judged."""
        return self._judgements.get(query_id, {})

    def relevant(self, query_id: str, level: int = 1) -> list[str]:
        """Documents of at least this grade, in file order."""
        return [doc for doc, grade in self.of(query_id).items() if grade >= level]

    def as_dict(self) -> dict[str, dict[str, int]]:
        """``{query id: {document id: grade}}``, the object's own: do not change it."""
        return self._judgements

    def __contains__(self, query_id: object) -> bool:
        return query_id in self._judgements

    def __iter__(self) -> Iterator[str]:
        return iter(self._judgements)

    def __len__(self) -> int:
        """The number of judgements."""
        return sum(map(len, self._judgements.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Qrels) and self._judgements == other._judgements

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Qrels({len(self._judgements)} queries, {len(self)} judgements)"

    @functools.cached_property
    def digest(self) -> str:
        return digest("qrels", self._judgements)

    @classmethod
    def read(cls, path: str | Path) -> Qrels:
        """Reads TREC (``qid 0 docid grade``) or BEIR (tab, header) judgements.

        A header is read: its names say which column is which.

        Raises:
            UserError: with file:line, for a missing column, a grade that is not an
                integer, or one pair judged twice with different grades.
        """
        judgements: dict[str, dict[str, int]] = {}
        # Files name a query on many lines: one string object each.
        lines: dict[tuple[str, str], int] = {}
        repeated = 0
        for number, query, doc, grade in _read(path):
            docs = judgements.setdefault(query, {})
            if doc in docs:
                if docs[doc] != grade:
                    first = lines[query, doc]
                    raise UserError(
                        f"{path}:{number}: query {clip(query)}, document {clip(doc)} "
                        f"has grade {grade}, but {docs[doc]} on line {first}",
                        "keep one of the two lines",
                    )
                repeated += 1
                continue
            docs[doc] = grade
            lines[query, doc] = number
        notices = (f"{path}: {repeated} judgements given twice",) if repeated else ()
        return cls(judgements, notices)

    def write(self, path: str | Path) -> None:
        """Writes a BEIR file (tabs, header) for ``.tsv``, else a TREC file.

        Raises:
            UserError: an id has blanks (TREC) or tabs (BEIR) in it.
        """
        tsv = Path(path).suffix == ".tsv" or str(path).endswith(".tsv.gz")
        with atomic_write(path) as out:
            if tsv:
                out.write("query-id\tcorpus-id\tscore\n")
            for query, docs in self._judgements.items():
                _check_id(query, tsv)
                for doc, grade in docs.items():
                    _check_id(doc, tsv)
                    out.write(
                        f"{query}\t{doc}\t{grade}\n"
                        if tsv
                        else f"{query} 0 {doc} {grade}\n"
                    )

    def restrict(self, queries: Queries, collection: Collection) -> Qrels:
        """The judgements whose query and document exist; the rest is counted.

        Raises:
            UserError: none is left.
        """
        kept: dict[str, dict[str, int]] = {}
        known_queries = set(queries.ids)
        docs = list({doc for judged in self._judgements.values() for doc in judged})
        known_docs = {doc for doc, row in zip(docs, collection.rows(docs)) if row >= 0}
        no_query: list[str] = []
        no_doc: list[str] = []
        for query, judged in self._judgements.items():
            if query not in known_queries:
                no_query.append(query)
                continue
            found = {doc: grade for doc, grade in judged.items() if doc in known_docs}
            no_doc += [doc for doc in judged if doc not in known_docs]
            if found:
                kept[query] = found
        notices = list(self.notices)
        if no_query:
            notices.append(
                f"qrels name {len(no_query)} unknown queries, "
                f"e.g. {clip(no_query[0])}: left out"
            )
        if no_doc:
            notices.append(
                f"qrels name {len(no_doc)} unknown documents, "
                f"e.g. {clip(no_doc[0])}: left out"
            )
        if not kept:
            detail = "; ".join(notices) if self._judgements else "they are empty"
            raise UserError(
                f"no judgement is left for {queries.name or 'these queries'}: {detail}",
                "check that corpus, queries and qrels belong together",
            )
        return Qrels(kept, tuple(notices))

    def select(self, query_ids: list[str]) -> Qrels:
        """The judgements of these queries only."""
        return Qrels({q: self._judgements[q] for q in query_ids if q in self})


_FORM = "'query-id<tab>corpus-id<tab>score' or 'qid 0 docid grade'"
_LAYOUTS = {3: ("query", "doc", "grade"), 4: ("query", "zero", "doc", "grade")}
# What TREC's tracks write as the iteration: 0, Q0, 4.5 of a round.
_ITERATION = re.compile(r"[qQ]?\d(?:\.\d)?")


def _read(path: str | Path) -> Iterator[tuple[int, str, str, int]]:
    columns = Columns(path, _LAYOUTS, ("query", "doc", "grade"), _FORM)
    odd: set[str] = set()

    def parse(number: int, line: str) -> tuple[int, str, str, int] | None:
        if not line.strip():
            return None
        # Tabs win over blanks: BEIR ids may hold blanks.
        fields = line.split("\t")
        found = columns.read(number, fields if len(fields) > 2 else line.split())
        if found is None:
            return None
        query, doc, grade = found["query"], found["doc"], found["grade"]
        if not _is_grade(grade):
            raise UserError(
                f"{path}:{number}: grade {clip(grade)} of query {clip(query)}, "
                f"document {clip(doc)} is not an integer",
                "grades are integers, 0 for not relevant",
            )
        if not query or not doc or "\0" in line:
            what = "a NUL character" if "\0" in line else "an empty id"
            raise UserError(f"{path}:{number}: {what}", "correct or delete the line")
        zero = found.get("zero", "0")
        if not _ITERATION.fullmatch(zero):
            odd.add(zero)
            if len(odd) > 1:
                raise UserError(
                    f"{path}:{number}: the second column holds {clip(zero)}, where "
                    "TREC's judgements hold 0",
                    f"are the columns in another order? write {_FORM}",
                )
        return number, query, doc, int(float(grade))

    return parsed(path, parse)


def _is_grade(text: str) -> bool:
    value = decimal(text)
    return value is not None and abs(value) < 1e9 and value.is_integer()


def _check_id(item_id: str, tsv: bool) -> None:
    bad = any(c in item_id for c in "\t\n\r") if tsv else item_id.split() != [item_id]
    if bad:
        raise UserError(
            f"the id {clip(item_id)} has {'a tab or line end' if tsv else 'a blank'} "
            f"in it, which {'BEIR' if tsv else 'TREC'} qrels cannot hold",
            "write a .tsv (BEIR) file" if not tsv else "rename the id",
        )
