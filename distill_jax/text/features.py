"""Token ids of joined texts, from the kept tokens of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer


class Features:
    """Rows of token stores to padded sequences, by one gather.

    Args:
        template: how the fields are joined.
        tokenizer: whose ids the stores hold.
        **stores: a ``TokenStore`` for each field; ``document0``, ``document1``, ...
            default to ``document``.

    Raises:
        UserError: a field has no store.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, **stores: TokenStore):
        self.template = template
        self.pad_id = tokenizer.pad_id or 0
        joins = template.joins(tokenizer)
        self._literals, self._tails = joins.literals, joins.tails
        self._stores = []
        for name in template.fields:
            store = stores.get(name, stores.get(name.rstrip("0123456789")))
            if store is None:
                raise UserError(
                    f"the template's field {{{name}}} has no texts",
                    f"give them as {name}=TokenStore; given are {sorted(stores)}",
                )
            wanted = template.reader(tokenizer, name).digest
            if store.tokenizer not in ("", wanted):
                raise ValueError(f"{name}'s store is not made by template.reader")
            self._stores.append(store)
        self._literal_tokens = sum(map(len, self._literals))
        if template.total is not None and template.total <= self._literal_tokens:
            raise UserError(
                f"{template.total} tokens leave no room beside {template.text!r}",
                "allow longer sequences",
            )

    @property
    def stores(self) -> tuple[TokenStore, ...]:
        """The store of each field, in the template's order."""
        return tuple(self._stores)

    @property
    def tails(self) -> tuple[np.ndarray, ...]:
        """What follows each field's text inside its store; see ``Joins``."""
        return self._tails

    def replace_store(self, field: int, store: TokenStore) -> None:
        """Another store of the same tokens for the field of that number."""
        self._stores = [*self._stores[:field], store, *self._stores[field + 1 :]]

    def field_lengths(self, rows: Mapping[str, Any]) -> list[np.ndarray]:
        """Tokens kept of each field, int64[M] each, in the template's order."""
        return self._field_lengths(self.columns(rows))

    def _field_lengths(self, fields: list[np.ndarray]) -> list[np.ndarray]:
        """Tokens of each field after its own cut, and after that of the pair."""
        found = []
        for name, store, tail, rows in zip(
            self.template.fields, self._stores, self._tails, fields
        ):
            counts = np.asarray(store.offsets[rows + 1]) - store.offsets[rows]
            most = self.template.lengths.get(name)
            if most is not None:
                counts = np.minimum(counts, most + len(tail))
            found.append(np.where(rows >= 0, counts, 0))
        total = self.template.total
        if total is None:
            return found
        room = total - self._literal_tokens
        if len(found) == 1:
            return [np.minimum(found[0], room)]
        one, other = found
        return list(longest_first(one, other, room))

    def columns(self, rows: Mapping[str, Any]) -> list[np.ndarray]:
        """The rows of each field, in the template's order."""
        fields = self.template.fields
        if set(rows) != set(fields):
            raise TypeError(f"rows for {sorted(rows)}, but the fields are {fields}")
        arrays = [np.asarray(rows[name]) for name in fields]
        return list(np.broadcast_arrays(*arrays)) if len(arrays) > 1 else arrays

    def lengths(self, **rows: Any) -> np.ndarray:
        """int32[M]: tokens of each joined sequence, after every field's cut.

        Args:
            **rows: int[M] for each field, rows of its store.
        """
        counts = self._field_lengths(self.columns(rows))
        return np.asarray(self._literal_tokens + sum(counts), np.int32)

    def tokens(self, length: int, **rows: Any) -> np.ndarray:
        """int32[M, length]: the joined sequences, padded with ``pad_id``.

        Args:
            length: at least the longest of ``lengths(**rows)``.
            **rows: int[M] for each field; a row of -1 in any field gives padding only.

        Raises:
            ValueError: a sequence is longer than ``length``: nothing is cut silently.
        """
        fields = self.columns(rows)
        count = len(fields[0])
        out = np.full((count, length), self.pad_id, np.int32)
        flat = out.reshape(-1)
        exists = np.all([at >= 0 for at in fields], axis=0)
        # start[m]: position of the next part of sequence m in the flat output.
        ends = np.arange(1, count + 1, dtype=np.int64) * length
        start = np.arange(count, dtype=np.int64) * length
        parts = iter(self._literals)
        start = self._put_literal(flat, start, ends, next(parts), exists)
        lengths = self._field_lengths(fields)
        for store, tail, at, most in zip(self._stores, self._tails, fields, lengths):
            counts = np.where(exists, most, 0)
            if (start + counts > ends).any():
                raise ValueError(f"a sequence is longer than {length} tokens")
            at = np.where(exists, at, 0)
            source = np.asarray(store.offsets[at])
            flat[_ranges(start, counts)] = store.ids[_ranges(source, counts)]
            start = start + counts
            if len(tail):
                cut = exists & (counts < store.offsets[at + 1] - source)
                cut &= counts > len(tail)
                flat[start[cut, None] + np.arange(-len(tail), 0)] = tail
            start = self._put_literal(flat, start, ends, next(parts), exists)
        return out

    @staticmethod
    def _put_literal(
        flat: np.ndarray,
        start: np.ndarray,
        ends: np.ndarray,
        literal: np.ndarray,
        exists: np.ndarray,
    ) -> np.ndarray:
        if not len(literal):
            return start
        begin = start[exists]
        if (begin + len(literal) > ends[exists]).any():
            raise ValueError("a sequence is longer than the given length")
        flat[begin[:, None] + np.arange(len(literal))] = literal
        return np.where(exists, start + len(literal), start)


def longest_first(
    first: np.ndarray, second: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of two texts of one sequence whose sum is ``room`` at most.

    The longer one is cut; where half the room is not enough for the shorter one, both
    are, and the longer one (the second, of equals) has the odd token. This is what the
    ``tokenizers`` library does for ``truncation="longest_first"``.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    too_long = first + second > room
    short = np.where(too_long, np.minimum(short, room // 2), short)
    long = np.where(too_long, np.minimum(long, room - short), long)
    swap = first > second
    return np.where(swap, long, short), np.where(swap, short, long)


def _ranges(start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``start[0], start[0] + 1, ... (counts[0] of them), start[1], ...`` int64."""
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.arange(total, dtype=np.int64) + np.repeat(start - before, counts)
