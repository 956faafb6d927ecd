"""One JSON record of a foreign label format to one list.

A ``Format`` says by a record's fields whether it is of it, and reads it field by field
with their types: what is missing, null or of another type is named, and nothing is made
of it. ``readers`` tries the formats in order.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import digest
from distill_jax.io.named_columns import LARGEST
from distill_jax.text.vocabulary import without_surrogates


@dataclass(kw_only=True)
class Record:
    """One query and its docs, as a foreign file gives them.

    ``scores`` is None where the file gives an order (best first) and no numbers.
    ``texts`` are (title, text) of the docs, or None where the file names ids only.
    ``place`` is ``file:line``.
    """

    query_id: str
    doc_ids: list[str]
    scores: list[float] | None
    query: str | None = None
    texts: list[tuple[str, str]] | None = None
    pairs: list[tuple[str, str, float]] = field(default_factory=list)
    source: Literal["score", "order", "judgement"] = "score"
    place: str = ""


def text_id(text: str) -> str:
    """The id of a text that has none in the file."""
    return "t" + digest(text)[:16]


class Format(NamedTuple):
    """One format: whether a record has its fields, and its reading.

    ``read`` raises UserError without a place, which the caller adds.
    """

    fits: Callable[[Any], bool]
    read: Callable[[Any], Record]


def colbert(record: Any) -> Record:
    """``[qid, [pid, score], ...]``; PairDistill adds ``[[j, log p], ...]`` to each.

    ``j`` is a position in the list, ``log p`` the log-probability that this doc beats
    that one.
    """
    query_id, *docs = record
    ids = [as_id(doc[0], "a doc") for doc in docs]
    pairs = []
    for i, doc in enumerate(docs):
        for pair in _list(doc[2], "the pairs of a doc") if len(doc) > 2 else ():
            if not isinstance(pair, list) or len(pair) != 2:
                raise UserError(f"a pair is {_kind(pair)}, not [position, log p]")
            j, log_p = as_number(pair[0], "a position"), as_number(pair[1], "a log p")
            if j != int(j) or not 0 <= j < len(ids):
                raise UserError(f"a pair's position {pair[0]} is not in the list")
            if ids[int(j)] == ids[i]:
                raise UserError(f"a pair of doc {clip(ids[i])} with itself")
            pairs.append((ids[i], ids[int(j)], min(math.exp(min(log_p, 0.0)), 1.0)))
    return Record(
        query_id=as_id(query_id, "the query's id"),
        doc_ids=ids,
        scores=[as_number(doc[1], "a score") for doc in docs],
        pairs=pairs,
    )


def _is_colbert(record: Any) -> bool:
    return (
        isinstance(record, list)
        and len(record) > 1
        and isinstance(record[0], str | int)
        and all(isinstance(doc, list) and len(doc) >= 2 for doc in record[1:])
    )


def pylate(record: Any) -> Record:
    """``{query_id, document_ids, scores}``; lists may be written as JSON strings."""
    name = next(k for k in _DOC_IDS if k in record)
    ids = [as_id(i, f'"{name}"') for i in _list(_unwritten(record[name]), f'"{name}"')]
    scores = _numbers(_unwritten(record["scores"]), '"scores"')
    return Record(
        query_id=as_id(record["query_id"], '"query_id"'),
        doc_ids=ids,
        scores=_as_many(scores, ids, '"scores"'),
        query=_optional(record, "query"),
    )


_DOC_IDS = ("document_ids", "doc_ids", "docids")


def sentence_transformers(record: Any) -> Record:
    """A labelled list of texts: ``{query, docs, labels}``; ``scores`` will do."""
    docs = next(k for k in ("docs", "documents") if k in record)
    scores = next(k for k in _LABELS if k in record)
    texts = _texts(record[docs], docs)
    numbers = _as_many(_numbers(record[scores], f'"{scores}"'), texts, f'"{scores}"')
    return _of_texts(record, texts, numbers)


_LABELS = ("labels", "scores", "label", "score")


def flag_embedding(record: Any) -> Record:
    """``{query, pos, neg, pos_scores, neg_scores}`` of FlagEmbedding.

    Empty lists of scores are as good as none: its own tools write them.
    """
    sides = {side: _texts(record[side], side) for side in ("pos", "neg")}
    texts = sides["pos"] + sides["neg"]
    given = {side: record.get(f"{side}_scores") for side in sides}
    if all(scores is None or scores == [] for scores in given.values()) and texts:
        made = _of_texts(record, texts, _one_hot(sides["pos"], sides["neg"]))
        made.source = "judgement"
        return made
    numbers = []
    for side, scores in given.items():
        name = f'"{side}_scores"'
        # If only one side is given, the other is lost, unless it has no documents.
        found = [] if scores is None else _numbers(scores, name)
        numbers += _as_many(found, sides[side], name)
    return _of_texts(record, texts, numbers)


def ordered(record: Any) -> Record:
    """TWOLAR and RankGPT: ``retrieved_passages`` (or ``hits``) in teacher order."""
    name = next(k for k in ("retrieved_passages", "hits") if k in record)
    docs = _passages(record[name], name)
    if not docs:
        raise UserError(f'"{name}" is empty')
    ranks = [as_number(doc["rank"], '"rank"') for doc in docs if "rank" in doc]
    if ranks != sorted(ranks):
        raise UserError(f'"{name}" is in another order than its ranks')
    scores = [as_number(doc["score"], '"score"') for doc in docs if "score" in doc]
    if len(scores) > 2 and all(a < b for a, b in itertools.pairwise(scores)):
        raise UserError(f'"{name}" is in the opposite order to its scores')
    query_id = record.get("query_id", docs[0].get("qid"))
    made = _of_passages(record, query_id, docs)
    made.scores, made.source = None, "order"
    return made


def tevatron(record: Any) -> Record:
    """``{query_id, query, positive_passages, negative_passages}``.

    Passages with a ``score`` give a teacher's list; without one the positives are 1
    and the negatives 0.
    """
    positive, negative = (
        _passages(record[name], name)
        for name in ("positive_passages", "negative_passages")
    )
    docs = positive + negative
    made = _of_passages(record, record.get("query_id"), docs)
    scored = [passage for passage in docs if "score" in passage]
    if scored and len(scored) < len(docs):
        raise UserError(f"{len(scored)} of {len(docs)} passages have a score")
    if scored:
        made.scores = [as_number(passage["score"], '"score"') for passage in docs]
    else:
        made.scores, made.source = _one_hot(positive, negative), "judgement"
    return made


def _has(*names: str, one_of: tuple[str, ...] = ()) -> Callable[[Any], bool]:
    """Whether a record is an object with these fields."""

    def fits(record: Any) -> bool:
        return (
            isinstance(record, dict)
            and all(name in record for name in names)
            and (not one_of or any(name in record for name in one_of))
        )

    return fits


def _is_labelled_list(record: Any) -> bool:
    return _has("query", one_of=("docs", "documents"))(record) and (
        _has(one_of=_LABELS)(record)
    )


# In the order in which they are tried: the more particular first.
RECORDS = {
    "colbert": Format(_is_colbert, colbert),
    "twolar": Format(_has(one_of=("retrieved_passages", "hits")), ordered),
    "rankgpt": Format(_has(one_of=("retrieved_passages", "hits")), ordered),
    "tevatron": Format(_has("positive_passages", "negative_passages"), tevatron),
    "flag_embedding": Format(_has("query", "pos", "neg"), flag_embedding),
    "sentence_transformers": Format(_is_labelled_list, sentence_transformers),
    "pylate": Format(_has("query_id", "scores", one_of=_DOC_IDS), pylate),
}


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {clip(value, 40)}"
    names = {type(None): "null", list: "a list", dict: "an object", bool: "a boolean"}
    return names.get(type(value), f"{value!r:.40}")


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name} is {_kind(value)}, not a list")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} is {_kind(value)}, not a text")
    return without_surrogates(value)


def _filled(value: Any, name: str) -> str:
    """A text with more in it than blanks: it has no other id, and trains nothing."""
    text = _text(value, name)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return text


def _optional(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    return None if value is None else _text(value, f'"{name}"')


def _texts(value: Any, name: str) -> list[str]:
    return [_filled(one, f'one of "{name}"') for one in _list(value, f'"{name}"')]


def as_id(value: Any, name: str) -> str:
    """An id as text; UserError, by its name, for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{name} is {_kind(value)}, not an id")
    if any(character in "\t\n\r\v\f\0\x85\u2028\u2029" for character in str(value)):
        raise UserError(f"{name} is {_kind(value)}, which no run file can hold")
    return without_surrogates(str(value))


def as_number(value: Any, name: str) -> float:
    """A finite number; UserError, by its name, for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} is {_kind(value)}, not a number")
    # NaN and infinity order nothing.
    if not abs(value) <= LARGEST:
        raise UserError(f"{name} is {str(value)[:20]}, not a finite number")
    return float(value)


def _numbers(value: Any, name: str) -> list[float]:
    return [as_number(one, f"one of {name}") for one in _list(value, name)]


def _as_many(numbers: list[float], docs: list[str], name: str) -> list[float]:
    if len(numbers) != len(docs):
        raise UserError(f"{name} has {len(numbers)} numbers for {len(docs)} docs")
    return numbers


def _passages(value: Any, name: str) -> list[dict[str, Any]]:
    for one in _list(value, f'"{name}"'):
        if not isinstance(one, dict):
            raise UserError(f'one of "{name}" is {_kind(one)}, not an object')
    return value


def _unwritten(value: Any) -> Any:
    """A list that was written as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _one_hot(positive: list[Any], negative: list[Any]) -> list[float]:
    return [1.0] * len(positive) + [0.0] * len(negative)


def _of_texts(record: dict[str, Any], texts: list[str], scores: list[float]) -> Record:
    query = _filled(record["query"], '"query"')
    query_id = record.get("query_id")
    return Record(
        query_id=text_id(query) if query_id is None else as_id(query_id, '"query_id"'),
        doc_ids=[text_id(text) for text in texts],
        scores=scores,
        query=query,
        texts=[("", text) for text in texts],
    )


def _of_passages(
    record: dict[str, Any], query_id: Any, passages: list[dict[str, Any]]
) -> Record:
    query = _optional(record, "query")
    if query is not None:
        query = _filled(query, '"query"')
    if query_id is None and query is None:
        raise UserError('neither "query_id" nor "query"')
    texts = []
    for passage in passages:
        name = "text" if "text" in passage else "content"
        text = _text(passage.get(name, ""), f'"{name}" of a passage')
        texts.append((_optional(passage, "title") or "", text))
        if not text and "docid" not in passage:
            raise UserError('a passage has neither "docid" nor "text"')
    ids = [
        as_id(p["docid"], '"docid"') if "docid" in p else text_id(text)
        for p, (_, text) in zip(passages, texts)
    ]
    return Record(
        query_id=text_id(query or "")
        if query_id is None
        else as_id(query_id, '"query_id"'),
        doc_ids=ids,
        scores=None,
        query=query,
        texts=texts,
    )
