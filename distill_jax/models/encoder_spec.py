"""What all encoders' specs share: a backbone, prefixes and lengths."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models.bert import BertEncoder
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.t5 import T5Encoder, T5Sizes
from distill_jax.ops.vector_form import VectorForm


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A backbone and the limits of its texts; ``models.templates`` makes tokens of it.

    Attributes:
        backbone: sizes of a BERT or ELECTRA, or of a T5 whose encoder is used.
        query_prefix, doc_prefix: put before each text, e.g. "query: ".
        query_length, doc_length: tokens at most, prefix and special tokens included.
        passages: a document over its length is scored by its first windows of that
            length, at most this number, and the greatest score counts (MaxP); at
            inference only, training reads the first.

    Every student's class has these too:
        vectors: the form of a text's vectors; None if the student makes none.
        documents: how many are read in one sequence with the query.
        inputs: the programs that infer with it, see ``inference.programs``.
    """

    vectors: ClassVar[VectorForm]
    documents: ClassVar[int] = 0
    inputs: ClassVar[tuple[str, ...]] = ("query", "doc")

    backbone: BertSizes | T5Sizes
    query_prefix: str = ""
    doc_prefix: str = ""
    query_length: int = 64
    doc_length: int = 256
    passages: int = 1

    def __post_init__(self):
        if self.passages < 1:
            raise UserError(f"passages={self.passages}", "give 1 or more")

    def resolved(self, tokenizer: Any) -> Any:
        """This spec with the ids that only the tokenizer knows: padding and [SEP]."""
        if not isinstance(self.backbone, BertSizes):
            return self
        ids = {"pad_id": tokenizer.pad_id, "sep_id": tokenizer.sep_id}
        known = {name: id for name, id in ids.items() if id is not None}
        return dataclasses.replace(
            self, backbone=dataclasses.replace(self.backbone, **known)
        )


def build_encoder(sizes: BertSizes | T5Sizes, rngs: nnx.Rngs) -> Any:
    """The encoder of a backbone; of a T5 without its decoder."""
    if isinstance(sizes, BertSizes):
        return BertEncoder(sizes, rngs=rngs)
    return T5Encoder(sizes, rngs=rngs)


def pad_id(sizes: BertSizes | T5Sizes) -> int:
    """The id that padding has; T5's is 0 in every vocabulary."""
    return getattr(sizes, "pad_id", 0)
