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
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import read_lines
from distill_jax.labels import tables
from distill_jax.labels.labels import Kind, TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.ragged import rectangle, rows_of
from distill_jax.labels.records import RECORDS, Record

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
    """Reads labels made elsewhere.

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
        records: Iterable[Record] = tables.trec(path, kind or "rank")
    elif form == "parquet":
        records = tables.parquet(path, kind)
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
    texts = all(record.texts is not None for record in records)
    if collection is None and texts:
        collection = _collection(records, path, notices)
    ranks = all(record.scores is None for record in records)
    lists = []
    for record in records:
        numbers = record.scores or range(1, len(record.doc_ids) + 1)
        if len(numbers) != len(record.doc_ids):
            raise UserError(
                f"{path}: query {record.query_id!r} has {len(record.doc_ids)} docs and"
                f" {len(numbers)} scores",
                "give one score a doc",
            )
        lists.append(_once(record, list(zip(record.doc_ids, numbers)), notices))
    provenance = {
        "teacher": path.name,
        "format": form,
        "file": _sha256(path),
        "source": records[0].source,
    }
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
    for place, value in _json_values(path):
        try:
            record = RECORDS[form](value)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            record, reason = None, f" ({type(error).__name__}: {error})"
        else:
            reason = ""
        if record is None:
            raise UserError(
                f"{place}: not a record of format {form!r}{reason}",
                f"formats: {', '.join(FORMATS)}",
            )
        yield record


def _json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of JSON lines, or of the elements of one JSON list of records."""
    lines = read_lines(path)
    whole: list[str] | None = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            raise UserError(f"{path}:{number}: JSON nested too deep") from None
        except json.JSONDecodeError as error:
            if number == 1 and line.lstrip().startswith("["):
                whole = [line, *(rest for _, rest in lines)]
                break
            raise UserError(
                f"{path}:{number}:{error.colno}: not JSON ({error.msg})",
                "one JSON value a line, or one JSON list",
            ) from None
        if number == 1 and isinstance(value, list) and _is_whole(value):
            yield from ((f"{path}, record {i}", v) for i, v in enumerate(value, 1))
            continue
        yield f"{path}:{number}", value
    if whole is not None:
        try:
            values = json.loads("\n".join(whole))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})",
                "one JSON value a line, or one JSON list",
            ) from None
        yield from ((f"{path}, record {i}", v) for i, v in enumerate(values, 1))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _is_whole(value: list[Any]) -> bool:
    """A list of records, not one ColBERT line (that starts with the query's id)."""
    return bool(value) and isinstance(value[0], (dict, list))


def _guess(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".run", ".trec", ".txt")):
        return "run"
    if name.endswith(".tsv"):
        width = next((len(line.split("\t")) for _, line in read_lines(path)), 0)
        return "gpl" if width == 4 else "run"
    for place, value in _json_values(path):
        for form, parse in RECORDS.items():
            if parse(value) is not None:
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
    if isinstance(only, list) and (len(records) != 1 or isinstance(only[0], str)):
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
        named = [i - 1 for i in dict.fromkeys(answer or ()) if 1 <= i <= n]
        failed.append(not named)
        repaired += bool(named) and (len(named) != n or len(answer) != n)
        order = named + sorted(set(range(n)) - set(named))
        record.doc_ids = [record.doc_ids[i] for i in order]
        record.texts = record.texts and [record.texts[i] for i in order]
        record.scores, record.source = None, "order"
    notices += [f"{sum(failed)} of {len(failed)} answers failed, {repaired} repaired"]
    return failed
