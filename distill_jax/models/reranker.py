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
from distill_jax.io.errors import UserError, near
from distill_jax.models import bert_heads
from distill_jax.models.bert import BertEncoder
from distill_jax.models.encoder_sizes import check_choice
from distill_jax.models.pooling import POOLS
from distill_jax.models.t5 import T5, T5Sizes
from distill_jax.ops.masked import token_mask
from distill_jax.text.templates import Template

MONOT5 = "Query: {query} Document: {document} Relevant:</s>"
RANKT5 = "Query: {query} Document: {document}</s>"
CROSS_ENCODER = "{cls} {query} {pair} {document} {sep}"
QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on "
    "the Query and the Instruct provided. Note that the answer can only be "
    '"yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, '
    "retrieve relevant passages that answer the query\n<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)
MXBAI_RERANK = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\n<|im_start|>user\nquery: {query}\ndocument: {document}\n"
    "You are a search relevance expert who evaluates how well documents match search "
    "queries. For each query-document pair, carefully analyze the semantic "
    "relationship between them, then provide your binary relevance judgment (0 for "
    "not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)
# Prompts that a recipe may name -> (text, answer words).
PROMPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "monot5": (MONOT5, ("true", "false")),
    "rankt5": (RANKT5, ("<extra_id_10>",)),
    "instruction": (
        "Is the document relevant to the query (Yes or No)? "
        "Query: {query} Document: {document}</s>",
        ("Yes", "No"),
    ),
    # Of decoders: the next token's logits, see ``weights.answer_heads``.
    "qwen3_reranker": (QWEN3_RERANKER, ("yes", "no")),
    "mxbai_rerank": (MXBAI_RERANK, ("1", "0")),
}
# Heads that read words at the decoder's first step -> their usual prompt.
DECODER_HEADS = {"difference": "monot5", "monot5": "monot5", "rankt5": "rankt5"}
# Heads that read the encoder's first position.
ENCODER_HEADS = (
    *("linear", "bert_classifier", "electra_classifier"),
    *("distilbert_classifier", "modernbert_classifier"),
)
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


def settle(
    spec: Any,
    prompts: dict[str, tuple[str, tuple[str, ...]]],
    usual: dict[str, str],
    plain: str,
    cross_encoder: str,
) -> None:
    """Checks a spec's head against its backbone and fills in prompt and words.

    Args:
        spec: being initialised; assigned by ``object.__setattr__`` since it is frozen.
        prompts: by name.
        usual: decoder head -> name of its prompt.
        plain: the template of a T5 encoder alone.
        cross_encoder: the template of BERT and ELECTRA.

    Raises:
        UserError: no such head, or one that does not fit the backbone.
    """
    if spec.head not in HEADS:
        raise UserError(
            f"no head {spec.head!r}{near(spec.head, HEADS)}",
            f"one of {', '.join(HEADS)}",
        )
    is_t5 = isinstance(spec.backbone, T5Sizes)
    if is_t5 and spec.backbone.decoder_layers:
        fitting = tuple(usual)
    else:
        fitting = ENCODER_HEADS[:1] if is_t5 else ENCODER_HEADS
    if spec.head not in fitting:
        raise UserError(
            f"head {spec.head!r} does not fit the backbone"
            + (" (it has a decoder)" if fitting[0] in DECODER_HEADS else ""),
            f"set head to one of {', '.join(fitting)}",
        )
    if spec.head in usual:
        needed = 1 if spec.head == "rankt5" else 2
        text, words = prompts.get(spec.prompt or usual[spec.head], (spec.prompt, ()))
        if len(words) != needed and spec.prompt in prompts:
            fits = [head for head in usual if (head == "rankt5") == (len(words) == 1)]
            raise UserError(
                f"prompt {spec.prompt!r} is answered by {' or '.join(words)}, and head "
                f"{spec.head!r} reads {needed} answer words",
                f"set head to {' or '.join(map(repr, fits))}, or leave the prompt out",
            )
        if len(words) != needed:
            words = prompts[usual[spec.head]][1]
        words = tuple(spec.words) or words
        if len(words) != needed:
            raise UserError(
                f"head {spec.head!r} reads {needed} answer words, not {words}"
            )
    else:
        text, words = prompts.get(spec.prompt, (spec.prompt, ()))
        text = text or (plain if is_t5 else cross_encoder)
        words = ()
    object.__setattr__(spec, "prompt", text)
    object.__setattr__(spec, "words", words)
    object.__setattr__(spec, "word_ids", tuple(int(i) for i in spec.word_ids))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerSpec:
    """How a pointwise reranker is built and fed.

    Attributes:
        backbone: sizes of the T5 or BERT.
        head: how the score is read.
            "difference": logit of the first word minus the second's, first step of the
            decoder (TWOLAR); "monot5": log-softmax of the first against the second,
            the same order (binary cross-entropy takes the difference as its logit);
            "rankt5": logit of one word; "linear": linear layer on the encoder's first
            token (RankT5-Enc, monoELECTRA without pooler); "bert_classifier",
            "electra_classifier": the classification heads of Hugging Face.
        prompt: the template text, or a name of ``PROMPTS``; "" is the head's usual one.
        query_length, doc_length: tokens kept of each.
        length: tokens of the whole sequence at most; what is more is cut from the
            longer of the two. None has no such limit.
        words: answer words; () takes the usual ones of the head.
        word_ids: their ids; filled in from the tokenizer by ``resolved``.
        token_types: BERT and ELECTRA only: mark the document as the second segment.
        passages: a document over its length is scored by its first windows of that
            length, at most this number, and the greatest score counts (MaxP); at
            inference only, training reads the first.
        pooling: what a classifier on an encoder reads: "cls" the first position,
            "last" the last token, "mean" all of them.
        answer_cap: of a decoder that answers by words (Gemma 2): their logits become
            ``cap * tanh(logit / cap)``, and the score is the first, or the difference.
        answers: how many words, with a cap.
    """

    kind: ClassVar[str] = "reranker"
    vectors: ClassVar[None] = None
    documents: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("pairs",)

    backbone: Any = dataclasses.field(default_factory=T5Sizes)
    head: str = "difference"
    prompt: str = ""
    query_length: int = 32
    doc_length: int = 192
    length: int | None = None
    words: tuple[str, ...] = ()
    word_ids: tuple[int, ...] = ()
    token_types: bool = True
    pooling: str = "cls"
    passages: int = 1
    answer_cap: float | None = None
    answers: int = 1

    def __post_init__(self):
        if self.passages < 1:
            raise UserError(f"passages={self.passages}", "give 1 or more")
        if self.answer_cap is not None and self.head != "linear":
            raise UserError("answer_cap is of head='linear'", "leave it out")
        check_choice("RerankerSpec.pooling", self.pooling, ("cls", *POOLS))
        settle(self, PROMPTS, DECODER_HEADS, RANKT5, CROSS_ENCODER)

    @property
    def template(self):
        """The ``text.templates.Template`` that joins query and document."""
        lengths = {"query": self.query_length, "document": self.doc_length}
        return Template(self.prompt, lengths, self.length)

    def resolved(self, tokenizer: Any) -> RerankerSpec:
        """This spec with the ids of its answer words; see ``checked_words``."""
        return checked_words(self, tokenizer)

    def build(self, rngs: nnx.Rngs) -> Reranker:
        return Reranker(self, rngs=rngs)


class Reranker(nnx.Module):
    """(query, document) to a score; for a batch, lists to scores [B, N]."""

    head: Any  # only where the score is not read from the decoder
    backbone: Any  # a T5, or a BertEncoder

    def __init__(self, spec: Any, *, rngs: nnx.Rngs):
        self.spec = spec
        if isinstance(spec.backbone, T5Sizes):
            self.backbone = T5(spec.backbone, rngs=rngs)
        else:
            self.backbone = BertEncoder(spec.backbone, rngs=rngs)
        head: Any = None
        if isinstance(spec.backbone, T5Sizes) and spec.head == "linear":
            head = nnx.Linear(
                spec.backbone.d_model,
                1,
                kernel_init=nnx.initializers.normal(spec.backbone.d_model**-0.5),
                rngs=rngs,
            )
        elif spec.head in ENCODER_HEADS:
            outputs = getattr(spec, "answers", 1)
            head = bert_heads.CLASSIFIERS[spec.head](
                spec.backbone, rngs=rngs, num_labels=outputs
            )
        # Assigned once: an attribute that was None cannot become a module.
        self.head = head

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
            difference = logits[:, 0] - logits[:, 1]
            if spec.head == "monot5":
                # log_softmax rounds to 0 where the model is sure, and makes ties.
                return jax.nn.log_sigmoid(difference)
            return difference
        if isinstance(spec.backbone, T5Sizes):
            first = self.backbone.encoder(tokens, positions=1, rngs=rngs)[:, 0]
            return self.head(first.astype(jnp.float32))[:, 0]
        first = self.pooled(tokens, rngs)
        logits = self.head(first, rngs=rngs).astype(jnp.float32)
        cap = getattr(spec, "answer_cap", None)
        if cap is None:
            return logits[:, 0]
        logits = cap * jnp.tanh(logits / cap)
        return logits[:, 0] if spec.answers == 1 else logits[:, 0] - logits[:, 1]

    def pooled(
        self, tokens: Int[Array, "M L"], rngs: nnx.Rngs | None
    ) -> Float[Array, "M D"]:
        """The vector that a classifier reads."""
        how = {"pairs": self.spec.token_types, "rngs": rngs}
        pooling = getattr(self.spec, "pooling", "cls")
        if pooling == "cls":
            return self.backbone(tokens, positions=1, **how)[:, 0]
        mask = token_mask(tokens, self.spec.backbone.pad_id)
        hidden = self.backbone(tokens, mask=mask, **how)
        return POOLS[pooling](hidden, mask).astype(hidden.dtype)

    def represent(
        self, batch: PairBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        """The scores themselves: a reranker has no separate scoring step."""
        size, number, length = batch.tokens.shape
        flat = batch.tokens.reshape(size * number, length)
        return self.score(flat, rngs=rngs).reshape(size, number)

    def scores(self, rep: Float[Array, "B N"], batch: PairBatch) -> Float[Array, "B N"]:
        return rep

    def __call__(
        self, batch: PairBatch, *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B N"]:
        return self.scores(self.represent(batch, rngs=rngs), batch)
