"""Where a text meets the literals of a template, for vocabularies of byte pairs.

WordPiece and T5's Unigram split at every blank, so that a text has the same tokens in
any template. Byte pairs merge a blank into the word behind it and a newline into the
mark before it ("?\\n" is one token of Qwen's): such a text is tokenised together with
the characters of its literals that it can merge with, its context.

A literal is parted where no merge reaches across: at a special token, and between a
character and the blank behind it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill_jax.io.files import digest

# Texts that merge with what stands beside them, if anything does.
PROBES = (
    *("alpha beta 12", "Is it so?", "a.", "7", "'s", "(x)", "ends with a blank "),
    *("two\nlines\n", " blank", "¿qué?", "東京", "..."),
)


@dataclasses.dataclass(frozen=True)
class Joins:
    """A template's literals, parted for one tokenizer.

    Attributes:
        literals: int32 ids of what stays of each literal, one more than fields.
        contexts: (before, after) of each field: what its text is tokenised with.
        tails: int32 ids of ``after``, which follow a text that was cut.
    """

    literals: tuple[np.ndarray, ...]
    contexts: tuple[tuple[str, str], ...]
    tails: tuple[np.ndarray, ...]


class InContext:
    """A tokenizer whose texts stand between two strings; makes ``TokenStore``s."""

    def __init__(self, tokenizer: Any, before: str, after: str):
        self.tokenizer = tokenizer
        self.before, self.after = before, after
        self.vocab_size = tokenizer.vocab_size
        self.digest = digest("in context", tokenizer.digest, before, after)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with its context, without special tokens around it."""
        joined = [f"{self.before}{text}{self.after}" for text in texts]
        return self.tokenizer.encode_batch(joined)


def plain(tokenizer: Any, literals: Sequence[str]) -> Joins:
    """Literals and texts apart: nothing merges across."""
    ids = tuple(
        np.asarray(found, np.int32) for found in tokenizer.encode_batch(literals)
    )
    none = np.zeros(0, np.int32)
    fields = len(ids) - 1
    return Joins(ids, (("", ""),) * fields, (none,) * fields)


def parted(tokenizer: Any, literals: Sequence[str]) -> Joins | None:
    """Literals parted from the contexts of the texts between them.

    Returns:
        None where a literal between two texts has no place to part it.
    """
    specials = _pattern(tokenizer.added_tokens)
    last = len(literals) - 1
    kept, before, after = [], [], []
    for i, literal in enumerate(literals):
        start = _head(literal, specials) if i else 0
        end = _tail(literal, specials) if i < last else len(literal)
        if start > end or (0 < i < last and not literal):
            return None
        if i:
            after.append(literal[:start])
        if i < last:
            before.append(literal[end:])
        kept.append(literal[start:end])
    ids = tokenizer.encode_batch(kept)
    tails = tokenizer.encode_batch(after)
    return Joins(
        tuple(np.asarray(found, np.int32) for found in ids),
        tuple(zip(before, after)),
        tuple(np.asarray(found, np.int32) for found in tails),
    )


def _pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _places(literal: str) -> list[int]:
    """Where a blank follows a character that is none."""
    return [found.start() + 1 for found in re.finditer(r"\S(?= )", literal)]


def _head(literal: str, specials: re.Pattern[str]) -> int:
    """Characters at a literal's beginning that the text before may merge with."""
    if re.match(r" \S", literal):
        return 0
    found = specials.search(literal)
    ends = [*_places(literal)[:1], *([found.start()] if found else [])]
    return min(ends, default=len(literal))


def _tail(literal: str, specials: re.Pattern[str]) -> int:
    """Where a literal's end begins that the text behind may merge with."""
    found = [match.end() for match in specials.finditer(literal)]
    return max([*_places(literal)[-1:], *found[-1:]], default=0)
