"""Pairwise rerankers: a query and two documents to the logit of "the first is better".

duoT5's form (Pradeep et al. 2021) answers true or false; the instruction form of
PairDistill asks a Flan-T5 for A or B without any training. Binary cross-entropy
(``losses.pointwise_cross_entropy``) on the logit, with P(i over j) as the label, trains
either.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from distill_jax.models.reranker import Reranker, checked_words, settle
from distill_jax.models.t5 import T5Sizes
from distill_jax.text.templates import Template

PROMPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "duot5": (
        "Query: {query} Document0: {document0} Document1: {document1} Relevant:</s>",
        ("true", "false"),
    ),
    "instruction": (
        "Which document is more relevant to the query? Answer only 'A' or 'B'. "
        "Query: {query} Document A: {document0} Document B: {document1}</s>",
        ("A", "B"),
    ),
}
CROSS_ENCODER = "{cls} {query} {pair} {document0} {pair} {document1} {sep}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuoSpec:
    """How a pairwise reranker is built and fed.

    Attributes:
        backbone: sizes of a T5 or BERT.
        head: "difference" of the two answer words' logits (a T5 with a decoder), or
            one of the heads on the encoder's first token, see ``RerankerSpec``.
        prompt: the template text, or "duot5" or "instruction"; "" is duoT5's, or the
            cross-encoder's where there is no decoder.
        query_length, doc_length: tokens kept of the query and of each document.
        words: answer words, the one for the first document first.
        word_ids: their ids; filled in from the tokenizer by ``resolved``.
        token_types: BERT and ELECTRA: mark the documents as the second segment.
    """

    kind: ClassVar[str] = "duo"
    vectors: ClassVar[None] = None
    documents: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ("duo",)

    backbone: Any = dataclasses.field(default_factory=T5Sizes)
    head: str = "difference"
    prompt: str = ""
    query_length: int = 32
    doc_length: int = 192
    words: tuple[str, ...] = ()
    word_ids: tuple[int, ...] = ()
    token_types: bool = True

    def __post_init__(self):
        plain = PROMPTS["duot5"][0]
        settle(self, PROMPTS, {"difference": "duot5"}, plain, CROSS_ENCODER)

    @property
    def template(self):
        """The ``text.templates.Template`` that joins a query and two documents."""
        lengths = {
            "query": self.query_length,
            "document0": self.doc_length,
            "document1": self.doc_length,
        }
        return Template(self.prompt, lengths)

    def resolved(self, tokenizer: Any) -> DuoSpec:
        """This spec with the ids of its answer words, see ``checked_words``."""
        return checked_words(self, tokenizer)

    def build(self, rngs: nnx.Rngs) -> Duo:
        return Duo(self, rngs=rngs)


class Duo(Reranker):
    """A ``DuoBatch`` to logits [B, P]: sigmoid gives P(first over second).

    The network is a reranker's; what differs is the sequence that it reads.
    """
