"""What all encoders' specs share: a backbone, and how their texts become tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from distill_jax.models.bert import BertEncoder, BertSizes
from distill_jax.models.t5 import T5Encoder, T5Sizes

BERT_WRAP = "[CLS] {text} [SEP]"
T5_WRAP = "{text}</s>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A backbone and the layout of its texts.

    Attributes:
        backbone: sizes of a BERT or ELECTRA, or of a T5 whose encoder is used.
        query_prefix, doc_prefix: put before each text, e.g. "query: ".
        query_length, doc_length: tokens at most, prefix and special tokens included.
        wrap: the special tokens around a text; "" takes the backbone's usual ones.
        query_prefix_tokens, doc_prefix_tokens: how many tokens the prefixes are;
            filled in from the tokenizer by ``resolved``.
    """

    backbone: BertSizes | T5Sizes
    query_prefix: str = ""
    doc_prefix: str = ""
    query_length: int = 64
    doc_length: int = 256
    wrap: str = ""
    query_prefix_tokens: int = 0
    doc_prefix_tokens: int = 0

    @property
    def query_template(self) -> Any:
        """The ``ir.templates.Template`` over ``text`` of queries."""
        return self._template(
            self.query_prefix, self.query_prefix_tokens, self.query_length
        )

    @property
    def doc_template(self) -> Any:
        """The ``ir.templates.Template`` over ``text`` of documents."""
        return self._template(self.doc_prefix, self.doc_prefix_tokens, self.doc_length)

    @property
    def templates(self) -> dict[str, Any]:
        """Both templates by side: "query" and "doc"."""
        return {"query": self.query_template, "doc": self.doc_template}

    def resolved(self, tokenizer: Any) -> Any:
        """This spec with what only the tokenizer knows: ids and lengths of prefixes."""
        changes: dict[str, Any] = {
            "wrap": self.wrap or _wrap_of(tokenizer, self.backbone),
            "query_prefix_tokens": len(tokenizer.encode(self.query_prefix)),
            "doc_prefix_tokens": len(tokenizer.encode(self.doc_prefix)),
        }
        if isinstance(self.backbone, BertSizes):
            ids = {"pad_id": tokenizer.pad_id, "sep_id": tokenizer.sep_id}
            known = {name: id for name, id in ids.items() if id is not None}
            changes["backbone"] = dataclasses.replace(self.backbone, **known)
        return dataclasses.replace(self, **changes)

    def _template(self, prefix: str, prefix_tokens: int, length: int) -> Any:
        from distill_jax.ir.templates import Template

        wrap = self.wrap or _usual_wrap(self.backbone)
        # A literal's blank before a special token is no token in either vocabulary.
        specials = sum(wrap.count(mark) for mark in ("[", "</s>", "<extra_id_"))
        kept = max(1, length - specials - prefix_tokens)
        return Template(wrap.replace("{text}", prefix + "{text}"), {"text": kept})


def _usual_wrap(backbone: BertSizes | T5Sizes) -> str:
    return BERT_WRAP if isinstance(backbone, BertSizes) else T5_WRAP


def _wrap_of(tokenizer: Any, backbone: BertSizes | T5Sizes) -> str:
    """By the tokenizer, since a BERT may be trained from scratch on T5's kind of."""
    if tokenizer.cls_id is not None and tokenizer.sep_id is not None:
        return BERT_WRAP
    return T5_WRAP if tokenizer.eos_id is not None else _usual_wrap(backbone)


def build_encoder(sizes: BertSizes | T5Sizes, rngs: nnx.Rngs) -> Any:
    """The encoder of a backbone; of a T5 without its decoder."""
    if isinstance(sizes, BertSizes):
        return BertEncoder(sizes, rngs=rngs)
    return T5Encoder(sizes, rngs=rngs)


def pad_id(sizes: BertSizes | T5Sizes) -> int:
    """The id that padding has; T5's is 0 in every vocabulary."""
    return getattr(sizes, "pad_id", 0)
