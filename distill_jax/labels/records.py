"""One JSON record of a foreign label format to one list.

Each function takes a decoded line and returns a ``Record``, or None when the record is
not of its format. ``label_readers`` tries them in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from distill_jax.io.files import digest


@dataclass(kw_only=True)
class Record:
    """One query and its docs, as a foreign file gives them.

    ``scores`` is None where the file gives an order (best first) and no numbers.
    ``texts`` are (title, text) of the docs, or None where the file names ids only.
    """

    query_id: str
    doc_ids: list[str]
    scores: list[float] | None
    query: str | None = None
    texts: list[tuple[str, str]] | None = None
    pairs: list[tuple[str, str, float]] = field(default_factory=list)
    source: Literal["score", "order", "judgement"] = "score"


def text_id(text: str) -> str:
    """The id of a text that came without one."""
    return "t" + digest(text)[:16]


def colbert(record: Any) -> Record | None:
    """``[qid, [pid, score], ...]``; PairDistill adds ``[[j, log p], ...]`` to each.

    ``j`` is a position in the list, ``log p`` the log-probability that this doc beats
    that one.
    """
    if not isinstance(record, list) or len(record) < 2:
        return None
    query_id, *docs = record
    if not all(isinstance(doc, list) and len(doc) >= 2 for doc in docs):
        return None
    from math import exp

    ids = [str(doc[0]) for doc in docs]
    pairs = [
        (ids[i], ids[int(j)], min(exp(float(log_p)), 1.0))
        for i, doc in enumerate(docs)
        for j, log_p in (doc[2] if len(doc) > 2 else ())
    ]
    return Record(
        query_id=str(query_id),
        doc_ids=ids,
        scores=[float(doc[1]) for doc in docs],
        pairs=pairs,
    )


def pylate(record: Any) -> Record | None:
    """``{query_id, document_ids, scores}``; lists may be written as strings."""
    if not _has(record, "query_id", "scores"):
        return None
    ids = next(
        (record[k] for k in ("document_ids", "doc_ids", "docids") if k in record), None
    )
    if ids is None:
        return None
    return Record(
        query_id=str(record["query_id"]),
        doc_ids=[str(i) for i in _listed(ids)],
        scores=[float(s) for s in _listed(record["scores"])],
        query=record.get("query"),
    )


def sentence_transformers(record: Any) -> Record | None:
    """A labelled list of texts: ``{query, docs, labels}``; ``scores`` will do."""
    if not _has(record, "query"):
        return None
    docs = next((record[k] for k in ("docs", "documents") if k in record), None)
    scores = next(
        (record[k] for k in ("labels", "scores", "label", "score") if k in record), None
    )
    if not isinstance(docs, list) or not isinstance(scores, list):
        return None
    return _of_texts(record, [("", str(doc)) for doc in docs], scores)


def flag_embedding(record: Any) -> Record | None:
    """``{query, pos, neg, pos_scores, neg_scores}`` of FlagEmbedding."""
    if not _has(record, "query", "pos", "neg"):
        return None
    docs = [("", str(doc)) for doc in [*record["pos"], *record["neg"]]]
    if record.get("pos_scores") is None or record.get("neg_scores") is None:
        made = _of_texts(record, docs, _one_hot(record["pos"], record["neg"]))
        made.source = "judgement"
        return made
    return _of_texts(record, docs, [*record["pos_scores"], *record["neg_scores"]])


def ordered(record: Any) -> Record | None:
    """TWOLAR and RankGPT: ``retrieved_passages`` (or ``hits``) in teacher order."""
    if not isinstance(record, dict):
        return None
    docs = record.get("retrieved_passages", record.get("hits"))
    if not isinstance(docs, list) or not docs:
        return None
    query_id = record.get("query_id", docs[0].get("qid"))
    made = _of_passages(record, query_id, docs)
    made.scores, made.source = None, "order"
    return made


def tevatron(record: Any) -> Record | None:
    """``{query_id, query, positive_passages, negative_passages}``.

    Passages with a ``score`` give a teacher's list; without one the positives are 1
    and the negatives 0.
    """
    if not _has(record, "positive_passages", "negative_passages"):
        return None
    positive, negative = record["positive_passages"], record["negative_passages"]
    made = _of_passages(record, record.get("query_id"), [*positive, *negative])
    if all("score" in passage for passage in [*positive, *negative]):
        made.scores = [float(p["score"]) for p in [*positive, *negative]]
    else:
        made.scores, made.source = _one_hot(positive, negative), "judgement"
    return made


# In the order in which they are tried: the more particular first.
RECORDS = {
    "colbert": colbert,
    "twolar": ordered,
    "rankgpt": ordered,
    "tevatron": tevatron,
    "flag_embedding": flag_embedding,
    "sentence_transformers": sentence_transformers,
    "pylate": pylate,
}


def _has(record: Any, *names: str) -> bool:
    return isinstance(record, dict) and all(name in record for name in names)


def _listed(value: Any) -> list[Any]:
    return json.loads(value) if isinstance(value, str) else list(value)


def _one_hot(positive: list[Any], negative: list[Any]) -> list[float]:
    return [1.0] * len(positive) + [0.0] * len(negative)


def _of_texts(
    record: dict[str, Any], docs: list[tuple[str, str]], scores: list[Any]
) -> Record:
    query = str(record["query"])
    return Record(
        query_id=str(record.get("query_id", text_id(query))),
        doc_ids=[text_id(text) for _, text in docs],
        scores=[float(score) for score in scores],
        query=query,
        texts=docs,
    )


def _of_passages(
    record: dict[str, Any], query_id: Any, passages: list[dict[str, Any]]
) -> Record:
    query = record.get("query")
    texts = [
        (str(p.get("title") or ""), str(p.get("text", p.get("content", ""))))
        for p in passages
    ]
    ids = [
        str(p["docid"]) if "docid" in p else text_id(text)
        for p, (_, text) in zip(passages, texts)
    ]
    return Record(
        query_id=text_id(str(query)) if query_id is None else str(query_id),
        doc_ids=ids,
        scores=None,
        query=None if query is None else str(query),
        texts=texts,
    )
