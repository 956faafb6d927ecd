"""Rerankers: query and document in one sequence to one score.

The backbone is a T5 (encoder-decoder, or encoder alone) or a BERT or ELECTRA encoder;
the head says how its output becomes a score.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from distill_jax.batches import PairBatch
from distill_jax.ir.errors import UserError, near
from distill_jax.models.t5 import T5, T5Sizes

MONOT5 = "Query: {query} Document: {document} Relevant:</s>"
RANKT5 = "Query: {query} Document: {document}</s>"
CROSS_ENCODER = "[CLS] {query} [SEP] {document} [SEP]"
INSTRUCTION = (
    "Is the document relevant to the query (Yes or No)?"
    " Query: {query} Document: {document}</s>"
)

# Head -> (words whose logits it reads, usual template).
DECODER_HEADS: dict[str, tuple[tuple[str, ...], str]] = {
    "difference": (("true", "false"), MONOT5),
    "monot5": (("true", "false"), MONOT5),
    "rankt5": (("<extra_id_10>",), RANKT5),
}
# Heads that read the encoder's first position.
ENCODER_HEADS = ("linear", "bert_classifier", "electra_classifier")
HEADS = (*DECODER_HEADS, *ENCODER_HEADS)


def word_ids(words: tuple[str, ...], tokenizer: Any) -> tuple[int, ...]:
    """The ids of answer words, each of which has to be one piece of the vocabulary.

    Raises:
        UserError: a word that the vocabulary splits or lacks.
    """
    return tuple(
        tokenizer.token_id(word if word.startswith("<") else f"▁{word}")
        for word in words
    )


def checked_words(spec: Any, tokenizer: Any) -> Any:
    """``spec`` with the word ids of this tokenizer.

    Raises:
        UserError: the spec already has ids and they are not this vocabulary's, so the
            model was trained to answer with other words than would be read.
    """
    if not spec.words:
        return spec
    found = word_ids(spec.words, tokenizer)
    if spec.word_ids and tuple(spec.word_ids) != found:
        raise UserError(
            f"the model reads its score at ids {tuple(spec.word_ids)}, but in this "
            f"tokenizer {spec.words} are {found}",
            "load the tokenizer that belongs to the checkpoint",
        )
    return dataclasses.replace(spec, word_ids=found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerSpec:
    """How a pointwise reranker is built and fed.

    Attributes:
        backbone: sizes of the T5 or BERT.
        head: how the score is read.
            "difference": logit of the first word minus the second's, first step of the
            decoder (TWOLAR); "monot5": log-softmax of the first against the second;
            "rankt5": logit of one word; "linear": linear layer on the encoder's first
            token (RankT5-Enc, monoELECTRA without pooler); "bert_classifier",
            "electra_classifier": the classification heads of Hugging Face.
        prompt: the template text; "" takes the usual one of the head.
        query_length, doc_length: tokens kept of each.
        words: answer words; () takes the usual ones of the head.
        word_ids: their ids; filled in from the tokenizer by ``resolved``.
        token_types: BERT and ELECTRA only: mark the document as the second segment.
    """

    kind: ClassVar[str] = "reranker"

    backbone: Any = dataclasses.field(default_factory=T5Sizes)
    head: str = "difference"
    prompt: str = ""
    query_length: int = 32
    doc_length: int = 192
    words: tuple[str, ...] = ()
    word_ids: tuple[int, ...] = ()
    token_types: bool = True

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(
                f"no reranker head {self.head!r}{near(self.head, HEADS)}",
                f"one of {', '.join(HEADS)}",
            )
        is_t5 = isinstance(self.backbone, T5Sizes)
        has_decoder = is_t5 and self.backbone.decoder_layers > 0
        if (self.head in DECODER_HEADS) != has_decoder:
            have = "has a decoder" if has_decoder else "has no decoder"
            want = ENCODER_HEADS if not has_decoder else tuple(DECODER_HEADS)
            raise UserError(
                f"the backbone {have}, head {self.head!r} does not fit it",
                f"set head to one of {', '.join(want)}, or change decoder_layers",
            )
        words, prompt = DECODER_HEADS.get(
            self.head, ((), RANKT5 if is_t5 else CROSS_ENCODER)
        )
        set_field = object.__setattr__
        set_field(self, "words", tuple(self.words) or words)
        set_field(self, "word_ids", tuple(self.word_ids))
        set_field(self, "prompt", self.prompt or prompt)

    @property
    def template(self):
        """The ``ir.templates.Template`` that joins query and document."""
        from distill_jax.ir.templates import Template

        return Template(
            self.prompt, {"query": self.query_length, "document": self.doc_length}
        )

    def resolved(self, tokenizer: Any) -> RerankerSpec:
        """This spec with the ids of its answer words; see ``checked_words``."""
        return checked_words(self, tokenizer)

    def build(self, rngs: nnx.Rngs) -> Reranker:
        return Reranker(self, rngs=rngs)


class Reranker(nnx.Module):
    """(query, document) to a score; for a batch, lists to scores [B, N]."""

    def __init__(self, spec: RerankerSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        if isinstance(spec.backbone, T5Sizes):
            self.backbone = T5(spec.backbone, rngs=rngs)
        else:
            self.backbone = spec.backbone.build(rngs)
        if isinstance(spec.backbone, T5Sizes) and spec.head == "linear":
            self.head = nnx.Linear(
                spec.backbone.d_model,
                1,
                kernel_init=nnx.initializers.normal(spec.backbone.d_model**-0.5),
                rngs=rngs,
            )
        elif spec.head in ENCODER_HEADS:
            from distill_jax.models import bert_heads

            self.head = {
                "linear": bert_heads.LinearClassifier,
                "bert_classifier": bert_heads.BertClassifier,
                "electra_classifier": bert_heads.ElectraClassifier,
            }[spec.head](spec.backbone, rngs=rngs)

    def score(
        self, tokens: Int[Array, "M L"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "M"]:
        """Scores of joined sequences, float32. ``rngs`` given means training."""
        spec = self.spec
        if spec.head in DECODER_HEADS:
            if not spec.word_ids:
                raise UserError(
                    f"the ids of the answer words {spec.words} are not resolved",
                    "build from spec.resolved(tokenizer)",
                )
            logits = self.backbone.first_step_logits(tokens, spec.word_ids, rngs=rngs)
            if spec.head == "rankt5":
                return logits[:, 0]
            if spec.head == "monot5":
                return jax.nn.log_softmax(logits, axis=-1)[:, 0]
            return logits[:, 0] - logits[:, 1]
        if isinstance(spec.backbone, T5Sizes):
            first = self.backbone.encoder(tokens, positions=1, rngs=rngs)[:, 0]
            return self.head(first.astype(jnp.float32))[:, 0]
        first = self.backbone(tokens, positions=1, pairs=spec.token_types, rngs=rngs)[
            :, 0
        ]
        return self.head(first, rngs=rngs).astype(jnp.float32)[:, 0]

    def represent(
        self, batch: PairBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        """The scores themselves: a reranker has no cheaper second half."""
        size, number, length = batch.tokens.shape
        flat = batch.tokens.reshape(size * number, length)
        return self.score(flat, rngs=rngs).reshape(size, number)

    def scores(self, rep: Float[Array, "B N"], batch: PairBatch) -> Float[Array, "B N"]:
        return rep

    def __call__(
        self, batch: PairBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        return self.scores(self.represent(batch, rngs=rngs), batch)
