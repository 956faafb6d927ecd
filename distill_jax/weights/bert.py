"""BERT and ELECTRA between Hugging Face folders and our parameters, both directions.

The names are those of ``transformers``' BertModel and ElectraModel, of their
ForSequenceClassification and ForMaskedLM classes, and of lightning-ir's monoELECTRA
(``linear.weight`` on [CLS]). Vocabulary heads are tied to the word embeddings: a file
that repeats the table is read, one whose copy differs is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models.bert import BertEncoder, BertSizes
from distill_jax.models.bert_heads import (
    BertClassifier,
    ElectraClassifier,
    LinearClassifier,
    VocabularyHead,
)
from distill_jax.models.pretrained import flatten, unflatten
from distill_jax.weights import tables
from distill_jax.weights.tables import TRANSPOSED, Rule

HEADS = {
    "bert_classifier": BertClassifier,
    "electra_classifier": ElectraClassifier,
    "linear": LinearClassifier,
    "mlm": VocabularyHead,
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_WRITTEN_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def _dense(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.weight", f"{ours}.kernel", TRANSPOSED),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    ]


def _norm(theirs: str, ours: str) -> list[Rule]:
    # Files converted from TensorFlow say gamma and beta.
    return [
        Rule(f"{theirs}.weight", f"{ours}.scale", also=(f"{theirs}.gamma",)),
        Rule(f"{theirs}.bias", f"{ours}.bias", also=(f"{theirs}.beta",)),
    ]


_LAYER = "encoder.layer.{i}"
_OURS = "encoder.layers.{i}"
_TIED = ("cls.predictions.decoder.weight", "generator_lm_head.weight")

ENCODER: tuple[Rule, ...] = (
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.token_type"),
    *_norm("embeddings.LayerNorm", "encoder.embeddings.norm"),
    *_dense("embeddings_project", "encoder.project"),
    *_dense(f"{_LAYER}.attention.self.query", f"{_OURS}.attention.query"),
    *_dense(f"{_LAYER}.attention.self.key", f"{_OURS}.attention.key"),
    *_dense(f"{_LAYER}.attention.self.value", f"{_OURS}.attention.value"),
    *_dense(f"{_LAYER}.attention.output.dense", f"{_OURS}.attention.out"),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", f"{_OURS}.attention_norm"),
    *_dense(f"{_LAYER}.intermediate.dense", f"{_OURS}.up"),
    *_dense(f"{_LAYER}.output.dense", f"{_OURS}.down"),
    *_norm(f"{_LAYER}.output.LayerNorm", f"{_OURS}.output_norm"),
)

# (family, head) -> the rules of that head.
HEAD_RULES: dict[tuple[str, str], tuple[Rule, ...]] = {
    ("bert", "bert_classifier"): (
        *_dense("pooler.dense", "head.pooler"),
        *_dense("classifier", "head.classifier"),
    ),
    ("electra", "electra_classifier"): (
        *_dense("classifier.dense", "head.dense"),
        *_dense("classifier.out_proj", "head.out_proj"),
    ),
    ("bert", "mlm"): (
        *_dense("cls.predictions.transform.dense", "head.project"),
        *_norm("cls.predictions.transform.LayerNorm", "head.norm"),
        Rule(
            "cls.predictions.bias",
            "head.bias",
            also=("cls.predictions.decoder.bias",),
        ),
    ),
    ("electra", "mlm"): (
        *_dense("generator_predictions.dense", "head.project"),
        *_norm("generator_predictions.LayerNorm", "head.norm"),
        Rule("generator_lm_head.bias", "head.bias"),
    ),
}
for _family in ("bert", "electra"):
    HEAD_RULES[_family, "linear"] = (
        Rule("linear.weight", "head.linear.kernel", TRANSPOSED),
    )

# Parts that a file may have and a student need not.
IGNORED = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"classifier\..*",
    r"linear\..*",
    r"cls\..*",
    r"(generator|discriminator)_.*",
    r"bert_discriminator.*",
)


def sizes_of(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **overrides: Any
) -> BertSizes:
    """The sizes that a config.json says; the vocabulary's is that of the file.

    Raises:
        UserError: no BERT or ELECTRA, or a form of them that is not known here.
    """
    family = _family_of(config, tensors)
    activation = config.get("hidden_act", "gelu")
    positions = config.get("position_embedding_type") or "absolute"
    if activation not in ACTIVATIONS or positions != "absolute":
        raise UserError(
            f"config.json: hidden_act {activation!r}, position_embedding_type "
            f"{positions!r}",
            f"read are {', '.join(ACTIVATIONS)}, with absolute positions",
        )
    if config.get("is_decoder"):
        raise UserError("config.json: is_decoder is true", "give an encoder")
    table = _find(tensors, "embeddings.word_embeddings.weight")
    try:
        d_model = int(config["hidden_size"])
        values = {
            "family": family,
            "vocab_size": int(config["vocab_size"] if table is None else table[0]),
            "d_model": d_model,
            "d_ff": int(config["intermediate_size"]),
            "heads": int(config["num_attention_heads"]),
            "layers": int(config["num_hidden_layers"]),
            "embedding_size": int(
                (config.get("embedding_size") or d_model) if table is None else table[1]
            ),
            "max_positions": int(config["max_position_embeddings"]),
            "type_vocab": int(config.get("type_vocab_size", 2)),
            "eps": float(config.get("layer_norm_eps", 1e-12)),
            "activation": ACTIVATIONS[activation],
            "dropout": float(config.get("hidden_dropout_prob", 0.1)),
            "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.1)),
            "initializer_range": float(config.get("initializer_range", 0.02)),
            "pad_id": int(config.get("pad_token_id") or 0),
        }
    except KeyError as error:
        raise UserError(
            f"config.json of a {family} lacks {error.args[0]!r}",
            "download the model again",
        ) from error
    return BertSizes(**{**values, **overrides})


def _family_of(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    # lightning-ir names its models after their use, and the backbone beside.
    kind = config.get("backbone_model_type") or config.get("model_type", "bert")
    kind = str(kind).lower()
    if kind not in ("bert", "electra"):
        raise UserError(
            f"config.json: model_type {kind!r} is no BERT or ELECTRA",
            "these are read: bert, electra, t5",
        )
    electra = "electra" in kind or any(name.startswith("electra.") for name in tensors)
    return "electra" if electra or "embedding_size" in config else "bert"


def _find(tensors: Mapping[str, Any], end: str) -> tuple[int, ...] | None:
    """The shape of the tensor of that name, whatever stands before it."""
    for name in tensors:
        if name == end or name.endswith("." + end):
            return tuple(tensors[name].shape)
    return None


def prefix_of(tensors: Mapping[str, Any]) -> str:
    """What stands before the encoder's names: "bert.", "electra." or nothing."""
    end = "embeddings.word_embeddings.weight"
    for name in tensors:
        if name.endswith(end):
            return name.removesuffix(end)
    return ""


def read(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    head: str | None = None,
    fresh: Sequence[str] = (),
    ignore: Sequence[str] = (),
    source: str = "the checkpoint",
    **overrides: Any,
) -> tuple[BertSizes, dict, tuple[str, ...]]:
    """A Hugging Face BERT or ELECTRA to sizes and parameters.

    Args:
        config: config.json.
        tensors: name to array.
        head: one of ``HEADS``; None reads the encoder alone.
        fresh: regexes of our paths that may be missing, e.g. ``head\\..*``.
        ignore: regexes of foreign names to leave out, besides ``IGNORED``.
        overrides: fields of ``BertSizes`` to change (dtype, dropout, remat).

    Returns:
        the sizes; ``{"encoder": ...}`` of ``BertEncoder`` and, with a head,
        ``"head": ...``; and the paths that were missing and may be.

    Raises:
        UserError: names or shapes that do not fit, all of them.
    """
    sizes = sizes_of(config, tensors, **overrides)
    tied = () if head == "mlm" else _TIED
    rules = _table(sizes, head)
    if head == "mlm":
        rules = (_with_copies(rules[0]), *rules[1:])
    params, made = tables.read(
        tensors,
        rules,
        abstract(sizes, head),
        prefix=prefix_of(tensors),
        ignore=[*IGNORED, *tied, *ignore],
        fresh=fresh,
        source=source,
    )
    return sizes, unflatten(params), made


def _with_copies(rule: Rule) -> Rule:
    """The table of words, which files of masked language models may repeat."""
    return Rule(rule.theirs, rule.ours, rule.change, also=_TIED)


def _table(sizes: BertSizes, head: str | None) -> tuple[Rule, ...]:
    if head is None:
        return ENCODER
    if (sizes.family, head) not in HEAD_RULES:
        raise UserError(
            f"the head {head!r} does not go with {sizes.family}",
            "bert_classifier is BERT's, electra_classifier ELECTRA's",
        )
    return (*ENCODER, *HEAD_RULES[sizes.family, head])


def abstract(sizes: BertSizes, head: str | None) -> dict[str, Any]:
    """Shapes of the encoder's and the head's parameters by our flat paths."""
    makers: dict[str, Any] = {"encoder": BertEncoder}
    if head is not None:
        makers["head"] = HEADS[head]
    tree = {}
    for name, maker in makers.items():
        module = nnx.eval_shape(lambda maker=maker: maker(sizes, rngs=nnx.Rngs(0)))
        tree[name] = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    return flatten(tree)


ARCHITECTURES = {
    ("bert", None): "BertModel",
    ("bert", "bert_classifier"): "BertForSequenceClassification",
    ("bert", "mlm"): "BertForMaskedLM",
    ("electra", None): "ElectraModel",
    ("electra", "electra_classifier"): "ElectraForSequenceClassification",
    ("electra", "mlm"): "ElectraForMaskedLM",
}


def write(
    sizes: BertSizes, params: dict, *, head: str | None = None
) -> tuple[dict, dict[str, np.ndarray]]:
    """Sizes and ``{"encoder": ..., "head": ...}`` to config.json and named tensors.

    Raises:
        UserError: transformers has no class for this head of this family.
    """
    if (sizes.family, head) not in ARCHITECTURES:
        raise UserError(
            f"transformers has no {sizes.family} with the head {head!r}",
            "the heads are bert_classifier, electra_classifier and mlm",
        )
    flat = {
        name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()
    }
    tensors = tables.write(flat, _table(sizes, head))
    if head is not None:
        own = tuple(rule.theirs.split(".")[0] for rule in ENCODER)
        own = (*own, "pooler")
        tensors = {
            f"{sizes.family}.{name}" if name.split(".")[0] in own else name: array
            for name, array in tensors.items()
        }
    return config_of(sizes, head, flat), tensors


def config_of(sizes: BertSizes, head: str | None, flat: Mapping[str, Any]) -> dict:
    """What transformers' config.json says of these sizes."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[sizes.family, head]],
        "model_type": sizes.family,
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.d_ff,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.type_vocab,
        "layer_norm_eps": sizes.eps,
        "hidden_act": _WRITTEN_ACTIVATIONS[sizes.activation],
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.attention_dropout,
        "initializer_range": sizes.initializer_range,
        "pad_token_id": sizes.pad_id,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    if sizes.family == "electra":
        config |= {
            "embedding_size": sizes.width,
            "summary_type": "first",
            "summary_use_proj": True,
            "summary_activation": "gelu",
            "summary_last_dropout": sizes.dropout,
        }
    if head in ("bert_classifier", "electra_classifier"):
        last = "classifier" if head == "bert_classifier" else "out_proj"
        count = flat[f"head.{last}.kernel"].shape[-1]
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return json.loads(json.dumps(config))
