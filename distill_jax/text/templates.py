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
