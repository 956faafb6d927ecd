"""Applies a model to texts in memory; the predictor and the export checks use it.

Jobs that score millions of rows keep token stores and call ``models.inference``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.inference import forward
from distill_jax.inference import passages as windows
from distill_jax.inference.generate import generate
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.templates import side_template
from distill_jax.text.features import Features
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore


@dataclasses.dataclass(frozen=True)
class SidedFeatures:
    """Queries and documents as two sequences, for a model that reads both at once.

    Batches are planned by the documents; queries all have the length of their limit.
    """

    query: Features
    document: Features
    query_length: int

    @property
    def template(self) -> Template:
        return self.document.template

    def lengths(self, *, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        return self.document.lengths(text=document)

    def tokens(
        self, length: int, *, query: np.ndarray, document: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32[M, query_length] and int32[M, length]."""
        return (
            self.query.tokens(self.query_length, text=query),
            self.document.tokens(length, text=document),
        )


def score_tuples(
    pretrained: Pretrained, tuples: Sequence[tuple[str, ...]], mesh: Any = None
) -> np.ndarray:
    """Scores of (query, doc), or for a duo (query, doc, other doc): float32[n].

    Every different text is tokenised, and by encoders encoded, once. A query
    generator's score is the query's mean log-probability per token.
    """
    if not tuples:
        return np.zeros(0, np.float32)
    columns = [_unique(texts) for texts in zip(*tuples)]
    if pretrained.spec.vectors is None:
        return _cross_scores(pretrained, columns, mesh)
    (queries, query_rows), (docs, doc_rows) = columns
    features = _side_features(pretrained, "doc", docs)
    found = windows.passages_of(pretrained.spec, features, np.arange(len(docs)))
    return windows.pair_scores(
        pretrained.spec,
        encode_texts(pretrained, "query", queries, mesh),
        forward.encode_all(
            pretrained, "doc", found.features, found.rows, mesh=mesh, compact=True
        ),
        found.first,
        query_rows,
        doc_rows,
    )


def encode_texts(
    pretrained: Pretrained, side: str, texts: Sequence[str], mesh: Any = None
) -> Any:
    """Vectors of texts by an encoder; ``side`` is "query" or "doc".

    Returns:
        float32[n, d]; a list of float32[tokens, d] (ColBERT); CSR [n, V] (SPLADE).
    """
    features = _side_features(pretrained, side, texts)
    rows = np.arange(len(texts))
    return forward.encode_all(pretrained, side, features, rows, mesh=mesh, compact=True)


def write_queries(
    pretrained: Pretrained, docs: Sequence[str], mesh: Any = None, **options: Any
) -> list[str]:
    """What a query generator asks of each document, greedily unless ``options`` say.

    Args:
        options: of ``inference.generate.generate``: temperature, top_k, top_p, seeds;
            ``max_new_tokens`` is the generator's query length by default.
    """
    if not docs:
        return []
    spec, tokenizer = pretrained.spec, pretrained.tokenizer
    features = _side_features(pretrained, "doc", docs)
    rows = np.arange(len(docs))
    # Rows to a multiple of the devices; the last one is repeated.
    devices = 1 if mesh is None else mesh.size
    padded = np.minimum(np.arange(-(-len(docs) // devices) * devices), rows[-1])
    tokens = features.tokens(int(features.lengths(text=rows).max()), text=padded)
    options = {"max_new_tokens": spec.query_length, **options}
    found = generate(pretrained, tokens, mesh=mesh, **options)[: len(docs)]
    skipped = (tokenizer.pad_id, tokenizer.eos_id)
    written = [[i for i in row if i not in skipped] for row in found.tolist()]
    return [tokenizer.decode(ids).strip() for ids in written]


def tuple_fields(names: Sequence[str]) -> list[str]:
    """A template's fields in the order of a tuple: the query, then the documents."""
    return ["query", *sorted(name for name in names if name.startswith("document"))]


def _cross_scores(
    pretrained: Pretrained, columns: list[tuple[list[str], np.ndarray]], mesh: Any
) -> np.ndarray:
    spec, tokenizer = pretrained.spec, pretrained.tokenizer
    if not spec.documents:
        fields = ["query", "document"]
        features: Any = SidedFeatures(
            _side_features(pretrained, "query", columns[0][0]),
            _side_features(pretrained, "doc", columns[1][0]),
            spec.query_length,
        )
    else:
        fields = tuple_fields(spec.template.fields)
        stores = {
            name: TokenStore.build(texts, spec.template.reader(tokenizer, name))
            for name, (texts, _) in zip(fields, columns)
        }
        features = Features(spec.template, tokenizer, **stores)
    rows: dict[str, Any] = {name: at for name, (_, at) in zip(fields, columns)}
    return forward.score_features(pretrained, features, mesh=mesh, compact=True, **rows)


def _side_features(pretrained: Pretrained, side: str, texts: Sequence[str]) -> Features:
    tokenizer = pretrained.tokenizer
    template = side_template(pretrained.spec, side, tokenizer)
    store = TokenStore.build(texts, template.reader(tokenizer, "text"))
    return Features(template, tokenizer, text=store)


def _unique(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different texts, and where each of the given ones is among them."""
    rows: dict[str, int] = {}
    where = [rows.setdefault(text, len(rows)) for text in texts]
    return list(rows), np.asarray(where, np.int64)
