"""Text to terms as Lucene's English analyser makes them: words, stop words, stems."""

from __future__ import annotations

import dataclasses
import functools
import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from distill_jax.io import engine
from distill_jax.io.errors import UserError

# Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET.
_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with"
)
LUCENE_STOP_WORDS = tuple(_ENGLISH.split())

_SHARD = 8192  # docs
_words = re.compile(r"\b\w+\b").findall


class _Numbering(dict):
    """A dict that gives each new key the next free number."""

    def __missing__(self, key):
        self[key] = number = len(self)
        return number


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """How often each term occurs in each of n docs.

    Attributes:
        terms: distinct terms in the order of their first use; [] once ``columns`` are
            numbers of a whole corpus.
        lengths: int32[n], indexed words of each doc.
        entries: int32[n], different terms of each doc; they sum to E.
        columns: int32[E], numbers of terms, of one doc after another.
        counts: uint8, uint16 or uint32[E].
    """

    terms: list[str]
    lengths: np.ndarray
    entries: np.ndarray
    columns: np.ndarray
    counts: np.ndarray


def count_terms(
    texts: Sequence[str], stop_words: Sequence[str], stemmer: str | None
) -> tuple[list[str], list[Counts]]:
    """The terms of a corpus, counted in shards.

    Args:
        texts: one string a doc.
        stop_words: words that are dropped before stemming.
        stemmer: a PyStemmer algorithm ("porter", "english", "german", ...) or None.

    Returns:
        The distinct terms in the order of their first use, and the counts of all docs.
    """
    numbering = _Numbering()
    work = functools.partial(_counted, tuple(stop_words), stemmer)
    parts = []
    for part in engine.over_shards(work, engine.shards_of(texts, _SHARD)):
        numbers = map(numbering.__getitem__, part.terms)
        number = np.fromiter(numbers, np.int32, len(part.terms))
        parts.append(dataclasses.replace(part, terms=[], columns=number[part.columns]))
    return list(numbering), parts


def _counted(
    stop_words: tuple[str, ...], stemmer: str | None, texts: Sequence[str]
) -> Counts:
    numbering = _Numbering()
    number = numbering.__getitem__
    flat, ends = array("i"), array("q", [0])
    for text in texts:
        flat.extend(map(number, _words(text.lower())))
        ends.append(len(flat))
    words = list(numbering)
    terms, dropped = _Numbering(), frozenset(stop_words)
    # A word is looked up once however often it occurs: stemming costs little.
    numbers = (
        -1 if word in dropped else terms[stem]
        for word, stem in zip(words, _stem(words, stemmer), strict=True)
    )
    term_of_word = np.fromiter(numbers, np.int32, len(words))
    ids = term_of_word[np.frombuffer(flat, np.int32)] if flat else np.zeros(0, np.int32)
    ids, offsets = _drop(ids, np.frombuffer(ends, np.int64))
    indptr, columns, counts = count_rows(ids, offsets, len(terms))
    most = np.min_scalar_type(int(counts.max(initial=0)))
    return Counts(
        list(terms),
        np.diff(offsets).astype(np.int32),
        np.diff(indptr).astype(np.int32),
        columns.astype(np.int32, copy=False),
        counts.astype(most),
    )


def count_rows(
    flat: np.ndarray, offsets: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Term numbers of texts to sparse rows of counts (float32), terms ascending."""
    from scipy.sparse import csr_matrix

    shape = (len(offsets) - 1, max(width, 1))
    # A copy of the terms: counting sorts them in place.
    counts = csr_matrix(
        (np.ones(len(flat), np.float32), flat.copy(), offsets), shape=shape
    )
    counts.sum_duplicates()
    return counts.indptr, counts.indices, counts.data


class Analyser(dict):
    """Query text to the numbers of terms that an index knows.

    It is a dict from word to term number (-1: not indexed) that fills itself, so each
    distinct word is stemmed once.
    """

    def __init__(
        self, terms: Sequence[str], stop_words: Sequence[str], stemmer: str | None
    ):
        super().__init__(dict.fromkeys(stop_words, -1))
        self._number = {term: number for number, term in enumerate(terms)}
        self._stemmer = stemmer

    def __missing__(self, word: str) -> int:
        self[word] = number = self._number.get(_stem([word], self._stemmer)[0], -1)
        return number

    def analyse(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Term numbers of all texts one after another, and where each begins."""
        flat, offsets = array("i"), array("q", [0])
        for text in texts:
            flat.extend(map(self.__getitem__, _words(text.lower())))
            offsets.append(len(flat))
        return _drop(np.array(flat, np.int32), np.array(offsets, np.int64))


def _drop(ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out the negative ids and moves the offsets accordingly."""
    kept = np.concatenate([[0], np.cumsum(ids >= 0)])
    return ids[ids >= 0], kept[offsets]


@functools.lru_cache(maxsize=8)
def _stemmer(name: str):
    import Stemmer

    return Stemmer.Stemmer(name)


def _stem(words: list[str], stemmer: str | None) -> list[str]:
    if stemmer is None:
        return words
    try:
        return _stemmer(stemmer).stemWords(words)
    except ImportError as error:
        raise UserError(
            "BM25 stems words with PyStemmer, which is not installed",
            "pip install PyStemmer, or build with stemmer=None",
        ) from error
    except KeyError as error:
        raise UserError(
            f"PyStemmer has no stemmer {stemmer!r}",
            "choose one of Stemmer.algorithms(), e.g. 'porter' or 'english'",
        ) from error
