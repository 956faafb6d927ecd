"""BM25 as Lucene scores it, over the title and text of a collection.

    weight(t, d) = ln(1 + (N - n_t + 0.5) / (n_t + 0.5))
                   * tf / (tf + k1 (1 - b + b length_d / mean length))

with exact doc lengths (Lucene stores them in one byte). The weights are computed once
when the index is built; a search adds them up (`postings.py`). Scores are those of
``bm25s`` with ``method="lucene"``, which the tests compare with. It is not used here:
importing it starts a JAX backend, which ``jax.distributed`` does not survive.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.retrieval import folder, lexical
from distill_jax.retrieval.postings import Postings
from distill_jax.retrieval.ties import tie_ranks
from distill_jax.runs.run import Run


@dataclasses.dataclass(frozen=True, eq=False)
class BM25:
    """A BM25 index: ``BM25.build(collection).search(queries, k)``."""

    postings: Postings
    terms: Sequence[str]
    doc_ids: Sequence[str]
    ranks: np.ndarray
    corpus_digest: str
    k1: float
    b: float
    stop_words: tuple[str, ...]
    stemmer: str | None

    @functools.cached_property
    def analyser(self) -> lexical.Analyser:
        """Turns query text into term numbers."""
        return lexical.Analyser(self.terms, self.stop_words, self.stemmer)

    @classmethod
    def build(
        cls,
        collection: Any,
        k1: float = 0.9,
        b: float = 0.4,
        *,
        stop_words: Sequence[str] = lexical.LUCENE_STOP_WORDS,
        stemmer: str | None = "porter",
    ) -> BM25:
        """Indexes a ``Collection`` (title and text), or a list of strings.

        Args:
            k1: how fast repeated terms saturate.
            b: how much long docs are held back, 0 to 1.
            stop_words: words that are not indexed.
            stemmer: a PyStemmer algorithm, None for no stemming.

        Raises:
            UserError: the collection has no docs, or k1 or b is out of range.
        """
        if k1 < 0 or not 0 <= b <= 1:
            raise UserError(f"BM25 with k1={k1}, b={b}", "k1 >= 0 and 0 <= b <= 1")
        texts, doc_ids, corpus_digest = _docs(collection)
        if len(doc_ids) == 0:
            raise UserError("BM25 of a collection without docs")
        terms, parts = lexical.count_terms(texts, stop_words, stemmer)
        return cls(
            postings=_weigh(parts, len(terms), k1, b),
            terms=terms,
            doc_ids=doc_ids,
            ranks=tie_ranks(doc_ids),
            corpus_digest=corpus_digest,
            k1=k1,
            b=b,
            stop_words=tuple(stop_words),
            stemmer=stemmer,
        )

    def search(self, queries: Any, k: int, *, threads: int | None = None) -> Run:
        """The k best docs of each query that share a term with it.

        Args:
            queries: ``Queries``, or a list of strings, whose ids are "0", "1", ...
            k: docs a query; fewer are found for queries with rare terms, none for
                an empty query (rows are padded with -1).
        """
        texts, query_ids = _queries(queries)
        flat, offsets = self.analyser.analyse(texts)
        indptr, terms, counts = lexical.count_rows(flat, offsets, len(self.terms))
        rows, scores = self.postings.search(
            indptr, terms, counts, k, self.ranks, threads
        )
        return Run(query_ids, rows, scores, self.doc_ids)

    def save(self, directory: str | Path) -> None:
        """Writes the index as a folder."""
        arrays = {
            "indptr": self.postings.indptr,
            "docs": self.postings.docs,
            "weights": self.postings.weights,
            "ranks": self.ranks,
            **folder.pack_strings("ids", self.doc_ids),
            **folder.pack_strings("terms", self.terms),
        }
        meta = {
            "k1": self.k1,
            "b": self.b,
            "stop_words": list(self.stop_words),
            "stemmer": self.stemmer,
            "corpus_digest": self.corpus_digest,
        }
        folder.write(directory, "bm25", arrays, meta)

    @classmethod
    def load(cls, directory: str | Path, collection: Any = None) -> BM25:
        """Reads a saved index; the postings stay on disk until they are searched.

        Args:
            collection: when given, the index must have been built from it, and runs
                refer to its ids.

        Raises:
            UserError: the folder is damaged, or is of another collection.
        """
        with folder.described(directory):
            arrays, meta = folder.read(directory, "bm25")
            if collection is None:
                doc_ids = folder.unpack_strings("ids", arrays)
            elif collection.digest == meta["corpus_digest"]:
                doc_ids = collection.ids
            else:
                raise UserError(
                    f"the index in {directory} was built from another collection",
                    "build it again from this one",
                )
            terms = list(folder.unpack_strings("terms", arrays))
            ranks = np.array(arrays["ranks"])
            postings = Postings(
                arrays["indptr"], arrays["docs"], arrays["weights"], len(doc_ids)
            )
            index = cls(
                postings=postings.checked(max(len(terms), 1), ranks),
                terms=terms,
                doc_ids=doc_ids,
                ranks=ranks,
                corpus_digest=meta["corpus_digest"],
                k1=meta["k1"],
                b=meta["b"],
                stop_words=tuple(meta["stop_words"]),
                stemmer=meta["stemmer"],
            )
            index.analyser.analyse(["a word that tries its stemmer"])
            return index


def _docs(collection: Any) -> tuple[Any, Sequence[str], str]:
    """Texts, ids and digest of a Collection or of a list of strings."""
    if hasattr(collection, "full_texts"):
        return collection.full_texts(), collection.ids, collection.digest
    texts = list(collection)
    return texts, [str(row) for row in range(len(texts))], digest(*texts)


def _queries(queries: Any) -> tuple[Sequence[str], tuple[str, ...]]:
    if hasattr(queries, "texts"):
        return queries.texts, tuple(queries.ids)
    texts = list(queries)
    return texts, tuple(str(row) for row in range(len(texts)))


def _weigh(parts: list[lexical.Counts], terms: int, k1: float, b: float) -> Postings:
    """Counts of terms to postings with BM25 weights; empties ``parts``.

    The parts are sorted by term one after another, straight into their places: beside
    the postings (8 bytes each) only the counts (5 to 8 bytes) are held.
    """
    width = max(terms, 1)
    lengths = np.concatenate([part.lengths for part in parts]).astype(np.float64)
    docs, mean = len(lengths), max(lengths.mean(), 1e-9)
    norm = (k1 * (1 - b + b * lengths / mean)).astype(np.float32)
    frequency = np.zeros(width, np.int64)
    for part in parts:
        frequency += np.bincount(part.columns, minlength=width)
    idf = np.log1p((docs - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(frequency)])
    rows = np.empty(indptr[-1], np.int32)
    weights = np.empty(indptr[-1], np.float32)
    place, first = indptr[:-1].copy(), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        order = np.argsort(part.columns, kind="stable")
        columns = part.columns[order]
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        sizes = np.diff(np.append(begins, len(columns)))
        used = columns[begins]
        at = np.arange(len(columns)) + np.repeat(place[used] - begins, sizes)
        place[used] += sizes
        numbers = np.arange(first, first + len(part.lengths), dtype=np.int32)
        row = np.repeat(numbers, part.entries)[order]
        weight = part.counts[order].astype(np.float32)
        weight /= weight + norm[row]
        weight *= idf[columns]
        rows[at], weights[at] = row, weight
        first += len(part.lengths)
    return Postings(indptr, rows, weights, docs)
