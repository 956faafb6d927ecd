"""``distill_jax.load(path)``: a trained or published model in three lines of Python.

>>> model = distill_jax.load("runs/teacher")            # doctest: +SKIP
>>> model.rank("what is a query?", ["a doc", "another"], k=1)
[(1, 2.25)]

For notebooks and exports. Jobs that score millions of pairs use ``models.inference``
directly, on which this stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.inference import texts as on_texts
from distill_jax.inference.passages import check_one
from distill_jax.inference.vectors import form_of
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained


def load(path: str | Path, kind: str | None = None, **options: Any) -> Predictor:
    """Loads a model of any form that distill_jax reads or writes.

    Args:
        path: a ``MODEL_DIR``, one of its ``checkpoints/STEP``, a Hugging Face,
            sentence-transformers or PyLate folder, a T5X checkpoint; also
            ``hf:NAME`` and ``package:MODULE/PATH``.
        kind: makes a base model a "reranker", "duo", "dual_encoder", "colbert",
            "splade" or "generator" (a T5 that writes queries).
        **options: as for ``weights.load``: ``tokenizer=PATH`` and fields of
            the spec, such as ``doc_length=256``.

    Raises:
        UserError: the folder is not recognised, or its files do not fit together.
    """
    from distill_jax import weights

    if kind == "llm":
        raise UserError(
            f"{path}: a language model is a teacher of recipes",
            "--gin.LLM_BASE_URL=local --gin.LLM_MODEL=PATH",
        )
    return Predictor(weights.load(path, kind=kind, **options))


class Predictor:
    """A model with its tokenizer, for texts.

    Args:
        pretrained: what ``weights.load`` or a training job gives.
        mesh: devices to run on; None is one device.
    """

    def __init__(self, pretrained: Pretrained, mesh: Any = None):
        self.pretrained = pretrained
        self.mesh = mesh

    @property
    def kind(self) -> str:
        """ "reranker", "duo", "dual_encoder", "colbert", "splade" or "generator"."""
        return self._spec.kind

    @property
    def _spec(self) -> Any:
        return self.pretrained.spec

    def score(self, pairs: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Raw scores of (query, doc) pairs, float32[n]; higher is more relevant.

        A pairwise reranker takes (query, doc, other doc) and gives the logit of the
        first being the more relevant; a query generator's score is the mean
        log-probability of the query's tokens given the document.
        """
        pairs = _checked(pairs, 1 + max(1, self._spec.documents))
        return on_texts.score_tuples(self.pretrained, pairs, self.mesh)

    def rank(
        self, query: str, docs: Sequence[str], k: int | None = 10
    ) -> list[tuple[int, float]]:
        """The best ``k`` docs as (position in ``docs``, score), best first.

        Equal scores keep the order of ``docs``. A pairwise reranker compares every two
        docs in both orders, and a doc's score is its sum of probabilities to win.
        """
        docs = _texts(docs)
        if not docs:
            return []
        if self._spec.documents == 2:
            scores = self._tournament(query, docs)
        else:
            scores = self.score([(query, doc) for doc in docs])
        order = np.argsort(-scores, kind="stable")[:k]
        return [(int(i), float(scores[i])) for i in order]

    def generate(self, docs: Sequence[str], **options: Any) -> list[str]:
        """The query that a generator writes for each document.

        Args:
            options: greedy by default; ``temperature=1.0, top_k=10`` sample as
                docT5query does. See ``inference.generate.generate``.

        Raises:
            UserError: the model is not a query generator.
        """
        if self.kind != "generator":
            raise UserError(
                f"a {self.kind} writes no queries",
                'load a T5 with kind="generator"',
            )
        docs = _texts(docs)
        return on_texts.write_queries(self.pretrained, docs, self.mesh, **options)

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Query vectors: float32[n, d], ready for the dot product with the docs'.

        ColBERT gives a list of float32[tokens, d], SPLADE a scipy CSR matrix [n, V].
        """
        return self._encode("query", texts)

    def encode_docs(self, texts: Sequence[str]) -> Any:
        """Document vectors, in the form that ``encode_queries`` has."""
        return self._encode("doc", texts)

    # The names that sentence-transformers users know.
    encode_query = encode_queries
    encode_document = encode = encode_docs
    predict = score

    def similarity(self, queries: Any, docs: Any) -> np.ndarray:
        """Scores float32[n, m] of what ``encode_queries`` and ``encode_docs`` gave.

        The dot product; for ColBERT the sum, over query tokens, of the greatest one.
        """
        self._check_encodes()
        return form_of(self._spec).similarity(queries, docs)

    def search(self, queries: Sequence[str], index: Any, k: int = 10) -> Any:
        """The first ``k`` documents of an index for each query, as a ``Run``.

        Args:
            index: built by ``distill_jax.retrieval`` of what ``encode_docs`` gave.
        """
        return index.search(self.encode_queries(queries), k=k)

    def save(self, directory: str | Path) -> None:
        """Writes the model in our own form; ``export.write`` writes the others."""
        self.pretrained.save(directory)

    def __repr__(self) -> str:
        return f"Predictor({self.kind}, from {self.pretrained.source!r})"

    def _encode(self, side: str, texts: Sequence[str]) -> Any:
        self._check_encodes()
        if side == "doc":
            check_one(self._spec, "encode_docs")
        return on_texts.encode_texts(self.pretrained, side, _texts(texts), self.mesh)

    def _check_encodes(self) -> None:
        if self._spec.vectors is None:
            raise UserError(
                f"a {self.kind} reads query and document together: it has no vectors",
                "use score or rank",
            )

    def _tournament(self, query: str, docs: list[str]) -> np.ndarray:
        """Sums of P(doc over other), over all others and both orders."""
        count = len(docs)
        first, second = np.nonzero(~np.eye(count, dtype=bool))
        logits = self.score([(query, docs[i], docs[j]) for i, j in zip(first, second)])
        probability = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
        total = np.zeros(count)
        np.add.at(total, first, probability)
        np.add.at(total, second, 1.0 - probability)
        return total.astype(np.float32)


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserError("expected a list of texts, got a single text", "[text]")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"text {i} is a {type(text).__name__}, not a string")
    return texts


def _checked(pairs: Sequence[Sequence[str]], width: int) -> list[tuple[str, ...]]:
    form = "(query, doc)" if width == 2 else "(query, doc, other doc)"
    if isinstance(pairs, str):
        raise UserError(f"expected a list of {form}, got a string")
    checked = []
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != width:
            raise UserError(f"item {i} is not {form}", f"give a list of {form} tuples")
        checked.append(tuple(_texts(list(pair))))
    return checked
