"""Templates joined at the token level: literals stay whole, each field is cut alone.

The tokens of a joined text are the tokens of its parts end to end, because T5's and
BERT's pre-tokenisers split at blanks and special tokens; see ``joins`` for those that
do not. ``Template.joins`` checks that on probes with the tokenizer at hand and refuses
a template where it fails.

Special tokens are named by their role, ``{cls}`` and ``{sep}``, and each tokenizer has
its own for it: [CLS] and [SEP], ``<s>`` and ``</s>``, none and ``<|endoftext|>``.
``{pair}`` is what a tokenizer puts between the two texts of a pair (``</s></s>``), and
``{join}`` is nothing at all: the text follows without the blank.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.text.joins import PROBES, InContext, Joins, parted, plain
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer

ROLES = ("cls", "sep", "pair", "mask", "join")
_FIELD = re.compile(rf"\{{(?!(?:{'|'.join(ROLES)})\}})([a-z_][a-z0-9_]*)\}}")
# Blanks beside a role are there for the reader.
_ROLE = re.compile(rf" ?\{{({'|'.join(ROLES)})\}} ?")
_PROBES = ("alpha beta 12", "Is it so?", "a.")


@dataclasses.dataclass(frozen=True)
class Template:
    """How texts become one sequence of tokens.

    Attributes:
        text: literals and ``{fields}``, e.g.
            ``"Query: {query} Document: {document} Relevant:</s>"``. Special tokens are
            spelled out or named by role; nothing is added around the text.
        lengths: most tokens of each field; a field that is not named is not cut.
        total: most tokens of the whole sequence. What is more is cut from the longer
            of two fields, as the tokenizers of transformers do ("longest first").
    """

    text: str
    lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    total: int | None = None

    def __post_init__(self):
        # Specs that hold templates are static arguments of jit: they must hash.
        lengths = tuple(sorted((str(k), int(v)) for k, v in dict(self.lengths).items()))
        object.__setattr__(self, "lengths", _Lengths(lengths))
        unknown = set(self.lengths) - set(self.fields)
        if unknown:
            raise UserError(
                f"lengths for {sorted(unknown)}, which are not fields of {self.text!r}",
                f"its fields are {list(self.fields)}",
            )
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise UserError(
                f"the template {self.text!r} must have fields, each once",
                'write e.g. "Query: {query} Document: {document} Relevant:</s>"',
            )
        for name, most in self.lengths.items():
            if most < 1:
                raise UserError(f"{name} is cut at {most} tokens", "give 1 or more")
        if self.total is not None and len(self.fields) > 2:
            raise UserError(
                f"the template {self.text!r} has {len(self.fields)} fields",
                "give a length for each; a common one is for two at most",
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(_FIELD.findall(self.text))

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts around the fields: one more than there are fields."""
        return tuple(_FIELD.split(self.text)[::2])

    def join(self, **texts: str) -> str:
        """The joined text, nothing cut: for messages, LLMs and tests."""
        return _FIELD.sub(lambda match: texts[match.group(1)], self.text)

    def spelled(self, tokenizer: Tokenizer) -> Template:
        """The same template with the tokenizer's own special tokens in their roles."""
        frame = tokenizer.frame

        def spell(match: re.Match[str]) -> str:
            return "".join(tokenizer.token(i) or "" for i in frame[match.group(1)])

        return Template(_ROLE.sub(spell, self.text), self.lengths, self.total)

    def joins(self, tokenizer: Tokenizer) -> Joins:
        """The literals' tokens, and what each field's text is tokenised with.

        Raises:
            UserError: joining tokens is not the same as tokenising the joined text, or
                a literal's special token is unknown to the tokenizer.
        """
        spelled = self.spelled(tokenizer)
        probes = PROBES if tokenizer.merges else _PROBES
        make = parted if tokenizer.merges else plain
        found = make(tokenizer, spelled.literals)
        for probe in probes:
            if found is None:
                break
            texts = [f"{before}{probe}{after}" for before, after in found.contexts]
            ids = [*found.literals[0].tolist()]
            for text, literal in zip(tokenizer.encode_batch(texts), found.literals[1:]):
                ids += [*text, *literal.tolist()]
            joined = spelled.join(**dict.fromkeys(self.fields, probe))
            if ids != tokenizer.encode(joined):
                found = None
        if found is None:
            raise UserError(
                f"the template {self.text!r} glues a field to its neighbours",
                "put a blank or a special token around every field",
            )
        for special in re.findall(r"</s>|<pad>|\[(?:CLS|SEP|MASK)\]", self.text):
            if len(tokenizer.encode(special)) != 1:
                raise UserError(
                    f"the template {self.text!r} names {special}, which this "
                    f"tokenizer ({tokenizer.kind}) does not have",
                    "use the template that belongs to the model",
                )
        return found

    def compile(self, tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
        """Token ids of the literals; see ``joins``."""
        return self.joins(tokenizer).literals

    def reader(self, tokenizer: Tokenizer, field: str) -> Any:
        """What makes the ``TokenStore`` of a field: the tokenizer, or it in context."""
        before, after = self.joins(tokenizer).contexts[self.fields.index(field)]
        return InContext(tokenizer, before, after) if before + after else tokenizer

    def max_tokens(self, tokenizer: Tokenizer) -> int | None:
        """The longest sequence it can make; None when a field is not cut."""
        if set(self.lengths) != set(self.fields):
            return self.total
        joins = self.joins(tokenizer)
        most = sum(map(len, (*joins.literals, *joins.tails)))
        most += sum(self.lengths.values())
        return most if self.total is None else min(most, self.total)

    def to_json(self) -> dict[str, Any]:
        record = {"text": self.text, "lengths": dict(self.lengths)}
        return record if self.total is None else {**record, "total": self.total}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Template:
        return cls(record["text"], record.get("lengths", {}), record.get("total"))


class _Lengths(Mapping[str, int]):
    """A mapping that hashes: a sorted tuple of pairs."""

    def __init__(self, items: tuple[tuple[str, int], ...]):
        self._items = items

    def __getitem__(self, name: str) -> int:
        return dict(self._items)[name]

    def __iter__(self):
        return iter(name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return repr(dict(self._items))

    def __reduce__(self):
        return (_Lengths, (self._items,))


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
