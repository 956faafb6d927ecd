"""Labels that the field already has: other projects' files to TeacherLabels.

    found = read_labels("rankzephyr.run", "run", collection=collection)
    found.labels, found.pairs, found.queries, found.collection, found.notices

Formats: ``colbert`` (and PairDistill's lines with pairs), ``pylate``,
``sentence_transformers`` labelled lists, ``flag_embedding``, ``tevatron``, ``twolar``,
``rankgpt``, ``gpl``, ``run`` (Rank-DistiLLM's TREC files), ``parquet``
(Rank-DistiLLM's and PyLate's columns).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.bad_lines import parsed
from distill_jax.io.errors import UserError, clip, near
from distill_jax.io.reading import read_lines
from distill_jax.labels import tables
from distill_jax.labels.labels import Kind, TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.ragged import rectangle, rows_of
from distill_jax.labels.records import RECORDS, Record
from distill_jax.labels.tables import reader

FORMATS = (*RECORDS, "gpl", "run", "parquet")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a foreign file held.

    ``pairs`` is None where there are none; ``queries`` and ``collection`` are None
    where the file names ids only. ``notices`` tell what was repaired or left out.
    """

    labels: TeacherLabels
    pairs: PairLabels | None = None
    queries: Any = None
    collection: Any = None
    notices: tuple[str, ...] = ()


def read_labels(
    path: str | Path,
    form: str | None = None,
    *,
    collection: Any = None,
    permutations: str | Path | None = None,
    kind: Kind | None = None,
    unknown: str = "refuse",
) -> Imported:
    """Reads labels of other projects.

    Args:
      form: one of ``FORMATS``; None looks at the file's name and first record.
      collection: gives the rows. Without it, and with texts in the file, a collection
        is made of them.
      permutations: RankGPT's second file: a JSON list with one answer a query,
        ``"[2] > [1] > ..."`` or ``[2, 1, ...]``, to the records of ``path``.
      kind: of ``run`` and ``parquet`` files: "rank" (the default for runs, as
        Rank-DistiLLM's students learn the order) or "score".
      unknown: "refuse" docs that the collection does not have, or "drop" them.

    Raises:
      UserError: with file:line, for what is malformed.
    """
    path = Path(path)
    if form is not None and form not in FORMATS:
        raise UserError(
            f"labels of format {form!r}{near(form, FORMATS)}",
            f"formats: {', '.join(FORMATS)}",
        )
    form = form or _guess(path)
    notices: list[str] = []
    if form == "run":
        records: Iterable[Record] = tables.trec(path, kind or "rank", notices)
    elif form == "parquet":
        records = tables.parquet(path, kind, notices)
    elif form == "gpl":
        records = tables.gpl(path, notices)
    else:
        records = _json(path, form)
    records = list(records)
    if not records:
        raise UserError(f"{path}: no labels in it", "check the path and the format")
    failed = [False] * len(records)
    if permutations is not None:
        failed = _permute(records, permutations, notices)
    return _assemble(records, failed, path, form, collection, unknown, notices)


def _assemble(
    records: Sequence[Record],
    failed: list[bool],
    path: Path,
    form: str,
    collection: Any,
    unknown: str,
    notices: list[str],
) -> Imported:
    _refuse_repeated(records)
    _refuse_mixed(records)
    texts = all(record.texts is not None for record in records)
    if collection is None and texts:
        collection = _collection(records, path, notices)
    ranks = all(record.scores is None for record in records)
    lists = []
    for record in records:
        numbers: Sequence[float] = range(1, len(record.doc_ids) + 1)
        if record.scores is not None:
            numbers = record.scores
        lists.append(_once(record, list(zip(record.doc_ids, numbers)), notices))
    provenance = {
        "teacher": path.name,
        "format": form,
        "file": _sha256(path),
        "source": records[0].source,
    }
    if collection is not None and unknown == "drop":
        notices += _unknown_docs(records, path, collection, texts)
    labels = TeacherLabels.from_lists(
        [record.query_id for record in records],
        lists,
        kind="rank" if ranks else "score",
        provenance=provenance,
        collection=collection,
        unknown=unknown,
        failed=failed,
    )
    queries = None
    if all(record.query is not None for record in records):
        queries = Queries(
            [record.query_id for record in records],
            [record.query or "" for record in records],
            name=path.stem,
        )
    return Imported(
        labels=labels,
        pairs=_pairs(records, provenance, collection, unknown),
        queries=queries,
        collection=collection if texts else None,
        notices=tuple(notices),
    )


def _refuse_repeated(records: Sequence[Record]) -> None:
    """Refuses a query on two lines: one of its two lists would be lost."""
    places: dict[str, str] = {}
    for record in records:
        first = places.setdefault(record.query_id, record.place)
        if first != record.place:
            query = clip(record.query_id if record.query is None else record.query)
            raise UserError(
                f"{record.place}: the query {query} occurs twice, first at {first}",
                "join the lines: one list a query",
            )


def _refuse_mixed(records: Sequence[Record]) -> None:
    """Refuses a file that mixes teacher scores with judgements or orders."""
    for record in records:
        if record.source != records[0].source and record.doc_ids:
            raise UserError(
                f"{record.place}: a list by {record.source}, but {records[0].place} is"
                f" one by {records[0].source}",
                "split the file: one kind of label per file",
            )


def _unknown_docs(
    records: Sequence[Record], path: Path, collection: Any, texts: bool
) -> list[str]:
    """A sentence about labelled docs that the collection does not have.

    Raises:
      UserError: it has none of them.
    """
    docs = list(dict.fromkeys(doc for record in records for doc in record.doc_ids))
    lost = [doc for doc, row in zip(docs, collection.rows(docs)) if row < 0]
    if not lost:
        return []
    made = "; its docs are texts, and ids are made of them" if texts else ""
    if len(lost) == len(docs):
        raise UserError(
            f"{path}: none of its {len(docs):,} docs is in the collection "
            f"{collection.name!r}, e.g. {clip(lost[0])}{made}",
            "give the collection that was labelled",
        )
    return [
        f"{path.name}: {len(lost):,} of {len(docs):,} labelled docs are not in the"
        f" collection, e.g. {clip(lost[0])}: left out{made}"
    ]


def _once(
    record: Record, docs: list[tuple[str, Any]], notices: list[str]
) -> list[tuple[str, float]]:
    """The first label of each doc; ranks close up."""
    kept = dict(reversed(docs))
    if len(kept) == len(docs):
        return docs
    notices.append(
        f"query {record.query_id!r}: {len(docs) - len(kept)} docs listed twice"
    )
    first = list(dict.fromkeys(doc_id for doc_id, _ in docs))
    if record.scores is None:
        return [(doc_id, rank) for rank, doc_id in enumerate(first, 1)]
    return [(doc_id, kept[doc_id]) for doc_id in first]


def _pairs(
    records: Sequence[Record], provenance: Any, collection: Any, unknown: str
) -> PairLabels | None:
    lengths = [len(record.pairs) for record in records]
    if not sum(lengths):
        return None
    flat = [pair for record in records for pair in record.pairs]
    both = [pair[0] for pair in flat] + [pair[1] for pair in flat]
    rows, doc_ids = rows_of(both, collection, unknown)
    first, second = rows.reshape(2, -1)
    lost = (first < 0) | (second < 0)
    pairs = PairLabels(
        tuple(record.query_id for record in records),
        rectangle(np.where(lost, -1, first), lengths, -1, np.int32),
        rectangle(np.where(lost, -1, second), lengths, -1, np.int32),
        rectangle(
            np.where(lost, np.nan, [pair[2] for pair in flat]),
            lengths,
            np.nan,
            np.float32,
        ),
        doc_ids,
        dict(provenance),
    )
    pairs.check(str(provenance["teacher"]))
    return pairs


def _collection(records: Sequence[Record], path: Path, notices: list[str]) -> Any:
    docs: dict[str, tuple[str, str]] = {}
    changed = 0
    for record in records:
        for doc_id, text in zip(record.doc_ids, record.texts or ()):
            changed += docs.setdefault(doc_id, text) != text
    if changed:
        notices.append(f"{changed} docs come back with another text: the first is kept")
    titles = [title for title, _ in docs.values()]
    return Collection(
        list(docs),
        [text for _, text in docs.values()],
        titles=titles if any(titles) else None,
        name=path.stem,
    )


def _json(path: Path, form: str) -> Iterator[Record]:
    """The records of JSON lines, or of the elements of one JSON list."""
    read = reader(form, path)
    whole = _whole_list(path)
    if whole is not None:
        return (read(f"{path}, record {i}", v) for i, v in enumerate(whole, 1))

    def parse(number: int, line: str) -> Record | None:
        place = f"{path}:{number}"
        return read(place, _value(place, line)) if line.strip() else None

    return parsed(path, parse)


def _json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of JSON lines, or of the elements of one JSON list."""
    whole = _whole_list(path)
    if whole is not None:
        yield from ((f"{path}, record {i}", v) for i, v in enumerate(whole, 1))
        return
    for number, line in read_lines(path):
        if line.strip():
            yield f"{path}:{number}", _value(f"{path}:{number}", line)


def _value(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (RecursionError, ValueError) as error:
        column = getattr(error, "colno", None)
        reason = f"not JSON ({error})"
        if isinstance(error, RecursionError):
            reason = "JSON nested too deep"
        raise UserError(
            f"{place}{'' if column is None else f':{column}'}: {reason}",
            "one JSON value a line, or one JSON list",
        ) from None


def _whole_list(path: Path) -> list[Any] | None:
    """The records of a file that is one JSON list; None of JSON lines."""
    lines = read_lines(path)
    first = next((line for _, line in lines if line.strip()), "")
    if not first.lstrip().startswith("["):
        return None
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        text = "\n".join([first, *(line for _, line in lines)])
        value = _value(str(path), text)
    # A list of records, not one ColBERT line (that starts with the query's id).
    whole = isinstance(value, list) and value and isinstance(value[0], dict | list)
    return value if whole else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".run", ".trec", ".txt")):
        return "run"
    if name.endswith(".tsv"):
        first = next((line for _, line in read_lines(path) if line.strip()), "")
        return "gpl" if tables.holds_margins(path, first.split("\t")) else "run"
    for place, value in _json_values(path):
        for form, known in RECORDS.items():
            if known.fits(value):
                return form
        raise UserError(
            f"{place}: a record of no known format",
            f"name one: {', '.join(FORMATS)}",
        )
    raise UserError(f"{path}: empty", "check the path")


def _permute(records: list[Record], path: str | Path, notices: list[str]) -> list[bool]:
    """Orders the records by an LLM's answers; returns which answers failed."""
    answers = [value for _, value in _json_values(Path(path))]
    # A JSON list of strings on one line looks like one record.
    only = answers[0] if len(answers) == 1 else None
    if isinstance(only, list) and (
        len(records) != 1 or (only and isinstance(only[0], str))
    ):
        answers = only
    if len(answers) != len(records):
        raise UserError(
            f"{path}: {len(answers)} answers to {len(records)} queries",
            "one answer a query, in the same order",
        )
    failed, repaired = [], 0
    for record, answer in zip(records, answers):
        n = len(record.doc_ids)
        if isinstance(answer, str):
            # Bracketed numbers only: digits of an explanation are not identifiers.
            answer = [int(found) for found in re.findall(r"\[(\d{1,6})\]", answer)]
        if not isinstance(answer, list) or not all(type(i) is int for i in answer):
            raise UserError(
                f"{path}: the answer {clip(str(answer))} is not an order",
                'write "[2] > [1] > ..." or [2, 1, ...]',
            )
        if answer and set(answer) == set(range(n)):
            raise UserError(
                f"{path}: the answer {clip(str(answer))} counts from 0",
                "count documents from 1, as RankGPT does",
            )
        named = [i - 1 for i in dict.fromkeys(answer) if 1 <= i <= n]
        failed.append(not named)
        repaired += bool(named) and (len(named) != n or len(answer) != n)
        order = named + sorted(set(range(n)) - set(named))
        record.doc_ids = [record.doc_ids[i] for i in order]
        record.texts = record.texts and [record.texts[i] for i in order]
        record.scores, record.source = None, "order"
    notices += [f"{sum(failed)} of {len(failed)} answers failed, {repaired} repaired"]
    return failed
