"""Text to terms as Lucene's English analyser makes them: words, stop words, stems."""

from __future__ import annotations

import functools
import re
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from distill_jax.io.errors import UserError

# Lucene's EnglishAnalyzer.ENGLISH_STOP_WORDS_SET.
_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with"
)
LUCENE_STOP_WORDS = tuple(_ENGLISH.split())

_words = re.compile(r"\b\w+\b").findall


class _Numbering(dict):
    """A dict that gives each new key the next free number."""

    def __missing__(self, key):
        self[key] = number = len(self)
        return number


def count_terms(
    texts: Iterable[str], stop_words: Sequence[str], stemmer: str | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The terms of a corpus.

    Args:
        texts: one string a doc.
        stop_words: words that are dropped before stemming.
        stemmer: a PyStemmer algorithm ("porter", "english", "german", ...) or None.

    Returns:
        The distinct terms, the term numbers of all docs one after another (int32), and
        the offsets at which docs begin (int64, one more than there are docs).
    """
    numbering = _Numbering()
    number = numbering.__getitem__
    flat, offsets = array("i"), array("q", [0])
    for text in texts:
        flat.extend(map(number, _words(text.lower())))
        offsets.append(len(flat))
    words = list(numbering)
    stems = _stem(words, stemmer)
    terms = _Numbering()
    dropped = frozenset(stop_words)
    # A word is looked up once however often it occurs: stemming costs nothing.
    term_of_word = np.fromiter(
        (
            -1 if word in dropped else terms[stem]
            for word, stem in zip(words, stems, strict=True)
        ),
        np.int32,
        len(words),
    )
    ids = term_of_word[np.frombuffer(flat, np.int32)] if flat else np.zeros(0, np.int32)
    return list(terms), *_drop(ids, np.frombuffer(offsets, np.int64))


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
