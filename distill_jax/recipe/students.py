"""Where a student comes from: a checkpoint of any kind, or random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.io.values import Check, Count, ModelName, Range, Rate, Size
from distill_jax.models import encoder_sizes
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.recipe import checkpoints
from distill_jax.recipe.checkpoints import Kind, Model
from distill_jax.recipe.layers import with_layers
from distill_jax.runtime.placement import default_dtype
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights.places import locate
from distill_jax.weights.students import spec_class


def sizes_of(backbone: str, **changes: Any) -> Any:
    """Sizes of ``t5:SIZE`` or ``bert:SIZE``, with some of their fields changed.

    Raises:
        UserError: no such family or size.
    """
    from distill_jax.models import t5

    family, _, size = backbone.partition(":")
    makers = {"t5": t5.sizes, "bert": encoder_sizes.bert_sizes}
    if family not in makers:
        raise UserError(f"no backbone {backbone!r}", "write t5:SIZE or bert:SIZE")
    return makers[family](size, **changes)


def _known_backbone(name: str) -> str:
    sizes_of(name)
    return name


def trained_dtype(dtype: str) -> str | None:
    """A dtype that a model can be trained in; None for "auto"."""
    if dtype == "int8":
        raise UserError(
            "int8 is for inference: a rounded product has no gradient",
            "train in float32 or bfloat16; mine, label and evaluate take DTYPE=int8",
        )
    if dtype != "auto":
        encoder_sizes.check_choice("dtype", dtype, ("float32", "bfloat16"))
    return None if dtype == "auto" else dtype


TrainedDtype: TypeAlias = Annotated[str, Check(trained_dtype)]
Backbone: TypeAlias = Annotated[str, Check(_known_backbone)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """A model to start from.

    Attributes:
        checkpoint: what ``distill_jax.load`` takes, ``stage:NAME`` for what an earlier
            stage of the same job trained, or a ``checkpoints.Checkpoint`` of either.
            None starts from random weights.
        kind: what to make of it; None keeps what the checkpoint is.
        backbone: from random weights only: ``t5:SIZE`` or ``bert:SIZE``.
        vocabulary: from random weights only: a tokenizer's file or folder. None trains
            one on the collection's texts.
        vocabulary_size: pieces of a vocabulary that is trained here.
        query_length, doc_length: tokens kept of a query and of a document.
        dtype: of the matrix products: "float32" or "bfloat16"; None ("auto" in a
            recipe) takes bfloat16 on an accelerator, elsewhere what the checkpoint has.
        dropout: rate in training; None keeps the checkpoint's.
        attention_dropout: of BERT's attention weights; None takes ``dropout``.
        layers: which of the checkpoint's layers are kept, from 0; None keeps all.
        options: other fields of the student's spec (``head``, ``pooling``, ...).
    """

    checkpoint: Model | None = None
    kind: Kind | None = None
    backbone: Backbone = "t5:tiny"
    vocabulary: ModelName | None = None
    vocabulary_size: Annotated[int, Range(least=64)] = 8000
    query_length: Size | None = None
    doc_length: Size | None = None
    dtype: TrainedDtype | None = None
    dropout: Rate | None = None
    attention_dropout: Rate | None = None
    layers: tuple[Count, ...] | None = None
    options: checkpoints.Options = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind is not None:
            checkpoints.known_kind(self.kind)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", trained_dtype(self.dtype))

    def make(
        self,
        texts: Callable[[], Sequence[str]],
        seed: int,
        resolve: Callable[[str], str] = str,
    ) -> Pretrained:
        """The model. ``texts`` gives the texts a vocabulary would be trained on."""
        overrides = self._fields
        if self.checkpoint:
            found = checkpoints.named(self.checkpoint, kind=self.kind, **overrides)
            found = dataclasses.replace(found, path=resolve(str(found.path)))
            model = checkpoints.load(found, seed=seed, trained=True)
            trained_dtype(model.spec.backbone.dtype)
        else:
            model = self._from_scratch(texts, seed)
        free = getattr(model.spec, "inference_free", False)
        if free and (not self.checkpoint or "query_weights" in model.fresh):
            rows = model.spec.width
            table = document_frequency_weights(model.tokenizer, texts(), rows)
            model = model.replace(params={**model.params, "query_weights": table})
        if self.layers is not None:
            model = with_layers(model, self.layers)
        attention = self.attention_dropout
        attention = self.dropout if attention is None else attention
        rates = {"dropout": self.dropout, "attention_dropout": attention}
        known = {field.name for field in dataclasses.fields(model.spec.backbone)}
        rates = {k: v for k, v in rates.items() if v is not None and k in known}
        backbone = dataclasses.replace(model.spec.backbone, **rates)
        return model.replace(spec=dataclasses.replace(model.spec, backbone=backbone))

    @property
    def reads_texts(self) -> bool:
        """Whether the model that it makes may depend on the collection."""
        return not self.checkpoint or bool(self.options.get("inference_free"))

    @property
    def _fields(self) -> dict[str, Any]:
        own = {
            "query_length": self.query_length,
            "doc_length": self.doc_length,
            "dtype": self.dtype or default_dtype(),
        }
        return {k: v for k, v in own.items() if v is not None} | self.options

    def untrained_spec(self, vocab_size: int, **changes: Any) -> Any:
        """The spec without a checkpoint, before it takes a tokenizer's ids.

        Args:
            changes: fields of the backbone's sizes.
        """
        cls, fields = spec_class(self.kind or "reranker"), self._fields
        is_t5 = self.backbone.startswith("t5:")
        known = {field.name for field in dataclasses.fields(cls)} | {"dtype"}
        for name in {*fields} - known:
            raise UserError(
                f"a {cls.kind} has no field {name!r}{near(name, known)}",
                "leave it out of the options",
            )
        if "dtype" in fields:
            changes["dtype"] = fields.pop("dtype")
        if is_t5 and cls.vectors is not None:
            changes["decoder_layers"] = 0
        if cls.documents and not is_t5:
            fields = {"head": "linear", **fields}
        # A multiple of 128 divides over any mesh and suits every accelerator.
        rows = -(-vocab_size // 128) * 128
        return cls(
            backbone=sizes_of(self.backbone, vocab_size=rows, **changes), **fields
        )

    def _from_scratch(self, texts, seed: int) -> Pretrained:
        ids: dict[str, Any] = {}
        if self.vocabulary is not None:
            tokenizer = Tokenizer.load(locate(self.vocabulary))
        elif self.backbone.startswith("t5:"):
            tokenizer = Tokenizer.train_unigram(texts(), self.vocabulary_size)
        else:
            tokenizer = Tokenizer.train_wordpiece(texts(), self.vocabulary_size)
        if self.backbone.startswith("bert:"):
            # The vocabulary's own separator marks the segments of a pair.
            ids = {"pad_id": tokenizer.pad_id, "sep_id": tokenizer.sep_id}
            ids = {name: token for name, token in ids.items() if token is not None}
        spec = self.untrained_spec(tokenizer.vocab_size, **ids).resolved(tokenizer)
        return Pretrained(
            spec=spec,
            params=initial_params(spec, seed),
            tokenizer=tokenizer,
            source=f"random weights ({self.backbone}, seed {seed})",
        )


def document_frequency_weights(
    tokenizer: Tokenizer, texts: Sequence[str], rows: int
) -> np.ndarray:
    """float32[rows]: BM25's inverse document frequency of each token.

    What an inference-free SPLADE weighs its queries by before it is trained (Geng et
    al. 2024, arXiv 2411.04403).
    """
    counts = np.zeros(rows, np.int64)
    for start in range(0, len(texts), 8192):
        for ids in tokenizer.encode_batch(list(texts[start : start + 8192])):
            counts[np.unique(np.asarray(ids, np.int64))] += 1
    missing = len(texts) - counts
    return np.log1p((missing + 0.5) / (counts + 0.5)).astype(np.float32)


def load_model(model: Any, workspace: Any, **overrides: Any) -> Pretrained:
    """A checkpoint, or ``fresh:KIND:BACKBONE``: random weights, to try a recipe out.

    Args:
        model: a path or a ``checkpoints.Checkpoint``.
        overrides: ``kind`` and fields of the spec; None counts as not given.
    """
    found = checkpoints.named(model, **overrides)
    name = str(found.path)
    if not name.startswith("fresh:"):
        return checkpoints.load(found)
    overrides = found.fields
    parts = name.split(":", 2)
    if len(parts) != 3:
        raise UserError(f"no model {name!r}", "e.g. fresh:reranker:t5:tiny")
    overrides.pop("kind", None)
    student = Student(
        kind=parts[1], backbone=parts[2], vocabulary_size=1500, options=overrides
    )
    return student.make(workspace.collection.full_texts, workspace.seed)
