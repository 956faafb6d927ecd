"""The encoder families: names of transformers' classes and our parameters, both ways.

A family is a table of names, its heads, and what its config.json says. The encoder is
one for all of them (``models.bert``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.tables import TRANSPOSED, Change, Rule

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_WRITTEN = {"gelu_tanh": "gelu_new"}
Table = tuple[Rule, ...]
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: of config.json; ``also`` are others with the same names.
        prefix: before the encoder's names in a model with a head.
        encoder: the table of the encoder.
        heads: name of a head -> its table; the classifier's name is also the head of
            a reranker.
        architectures: head, or None for the bare encoder -> transformers' class.
        sizes_of: config.json -> fields of ``BertSizes`` besides the common ones.
        config_of: the inverse.
        tied: foreign names that repeat the table of words.
        fused: foreign name -> those of its equal parts along the first axis.
        ignored: regexes of foreign names that no student needs.
        head_activation: the config's name of the masked language model head's
            activation; "" is always the gelu.
        pooler: whether the bare class has a pooler that is written as zeros.
        outer_pooler: the pooler belongs to the class with a classifier (DeBERTa).
    """

    model_type: str
    encoder: Table
    heads: Mapping[str, Table]
    architectures: Mapping[str | None, str]
    sizes_of: Callable[[Config], dict]
    config_of: Callable[[BertSizes], dict]
    prefix: str = ""
    also: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    head_activation: str = ""
    pooler: bool = False
    outer_pooler: bool = False

    @property
    def classifier(self) -> str:
        """The head that its class for sequence classification has."""
        named = [name for name in self.heads if name not in ("mlm", "linear")]
        return named[0] if named else "linear"


def dense(theirs: str, ours: str) -> Table:
    """Kernel and bias of a projection."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.kernel", TRANSPOSED),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    )


def norm(theirs: str, ours: str) -> Table:
    """Scale and bias of a norm; files converted from TensorFlow say gamma and beta."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.scale", also=(f"{theirs}.gamma",)),
        Rule(f"{theirs}.bias", f"{ours}.bias", also=(f"{theirs}.beta",)),
    )


def layer(theirs: str, names: Mapping[str, str]) -> Table:
    """The rules of a layer: our names -> theirs, below ``theirs``."""
    rules: list[Rule] = []
    for our, their in names.items():
        make = norm if our.endswith("norm") else dense
        rules += make(f"{theirs}.{their}", f"encoder.layers.{{i}}.{our}")
    return tuple(rules)


def activation(config: Config, name: str = "hidden_act", default: str = "gelu") -> str:
    """Our name of an activation.

    Raises:
        UserError: one that is not known here.
    """
    found = config.get(name, default)
    if found not in ACTIVATIONS:
        raise UserError(
            f"config.json: {name} is {found!r}",
            f"these are read: {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[found]


def written(ours: str) -> str:
    """transformers' name of an activation."""
    return _WRITTEN.get(ours, ours)


# -------------------------------------------------------------------- BERT and kin

_EMBEDDINGS: Table = (
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.token_type"),
    *norm("embeddings.LayerNorm", "encoder.embeddings.norm"),
)
_BERT_LAYER = layer(
    "encoder.layer.{i}",
    {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
)
_BERT_CLASSIFIER = (
    *dense("pooler.dense", "head.pooler"),
    *dense("classifier", "head.classifier"),
)
_LINEAR = (Rule("linear.weight", "head.linear.kernel", TRANSPOSED),)


def _bert_mlm(name: str, norm_name: str = "transform.LayerNorm") -> Table:
    return (
        *dense(f"{name}.transform.dense", "head.project"),
        *norm(f"{name}.{norm_name}", "head.norm"),
        Rule(f"{name}.bias", "head.bias", also=(f"{name}.decoder.bias",)),
    )


def _bert_sizes(config: Config) -> dict:
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute" or config.get("is_decoder"):
        raise UserError(
            f"config.json: position_embedding_type {positions!r}, is_decoder "
            f"{bool(config.get('is_decoder'))}",
            "encoders with absolute positions are read",
        )
    if config.get("use_task_id"):
        raise UserError("config.json: use_task_id is true", "that is not read")
    return {
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": int(config.get("type_vocab_size", 2)),
        "activation": activation(config),
    }


def _bert_config(sizes: BertSizes) -> dict:
    return {
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.type_vocab,
        "hidden_act": written(sizes.activation),
        "position_embedding_type": "absolute",
    }


BERT = Family(
    model_type="bert",
    prefix="bert.",
    encoder=(*_EMBEDDINGS, *_BERT_LAYER),
    heads={
        "bert_classifier": _BERT_CLASSIFIER,
        "linear": _LINEAR,
        "mlm": _bert_mlm("cls.predictions"),
    },
    architectures={
        None: "BertModel",
        "bert_classifier": "BertForSequenceClassification",
        "mlm": "BertForMaskedLM",
    },
    sizes_of=_bert_sizes,
    config_of=_bert_config,
    tied=("cls.predictions.decoder.weight",),
    head_activation="hidden_act",
    pooler=True,
)
ERNIE = dataclasses.replace(
    BERT,
    model_type="ernie",
    prefix="ernie.",
    architectures={
        None: "ErnieModel",
        "bert_classifier": "ErnieForSequenceClassification",
        "mlm": "ErnieForMaskedLM",
    },
)


def _electra_config(sizes: BertSizes) -> dict:
    return {
        **_bert_config(sizes),
        "embedding_size": sizes.width,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
        "summary_last_dropout": sizes.dropout,
    }


ELECTRA = Family(
    model_type="electra",
    prefix="electra.",
    encoder=(*BERT.encoder, *dense("embeddings_project", "encoder.project")),
    heads={
        "electra_classifier": (
            *dense("classifier.dense", "head.dense"),
            *dense("classifier.out_proj", "head.out_proj"),
        ),
        "linear": _LINEAR,
        "mlm": (
            *dense("generator_predictions.dense", "head.project"),
            *norm("generator_predictions.LayerNorm", "head.norm"),
            Rule("generator_lm_head.bias", "head.bias"),
        ),
    },
    architectures={
        None: "ElectraModel",
        "electra_classifier": "ElectraForSequenceClassification",
        "mlm": "ElectraForMaskedLM",
    },
    sizes_of=_bert_sizes,
    config_of=_electra_config,
    tied=("generator_lm_head.weight",),
)

# ---------------------------------------------- tables that begin behind the padding

_PADDED = 2
# Row 1 is the padding's, row 0 nobody's: positions are counted from the id of <pad>.
_SHIFTED = Change(
    lambda array: array[_PADDED:],
    lambda array: np.pad(np.asarray(array), ((_PADDED, 0), (0, 0))),
)


def _shifted(rules: Table) -> Table:
    place = "encoder.embeddings.position"
    return tuple(
        dataclasses.replace(rule, change=_SHIFTED) if rule.ours == place else rule
        for rule in rules
    )


def _roberta_sizes(config: Config) -> dict:
    if int(config.get("pad_token_id") or 0) != 1:
        raise UserError(
            f"config.json: pad_token_id is {config.get('pad_token_id')!r}, positions "
            "are counted from it",
            "only 1 is read",
        )
    found = _bert_sizes(config)
    found["max_positions"] -= _PADDED
    return found


def _roberta_config(sizes: BertSizes) -> dict:
    return {
        **_bert_config(sizes),
        "max_position_embeddings": sizes.max_positions + _PADDED,
    }


_DENSE_TANH = (
    *dense("classifier.dense", "head.pooler"),
    *dense("classifier.out_proj", "head.classifier"),
)
_LM_HEAD = (
    *dense("lm_head.dense", "head.project"),
    *norm("lm_head.layer_norm", "head.norm"),
    Rule("lm_head.bias", "head.bias", also=("lm_head.decoder.bias",)),
)


def _roberta(model_type: str, name: str) -> Family:
    return Family(
        model_type=model_type,
        prefix="roberta.",
        encoder=_shifted(BERT.encoder),
        heads={"bert_classifier": _DENSE_TANH, "mlm": _LM_HEAD},
        architectures={
            None: f"{name}Model",
            "bert_classifier": f"{name}ForSequenceClassification",
            "mlm": f"{name}ForMaskedLM",
        },
        sizes_of=_roberta_sizes,
        config_of=_roberta_config,
        tied=("lm_head.decoder.weight",),
        pooler=True,
    )


ROBERTA = _roberta("roberta", "Roberta")
XLM_ROBERTA = _roberta("xlm-roberta", "XLMRoberta")
CAMEMBERT = _roberta("camembert", "Camembert")


def _mpnet_sizes(config: Config) -> dict:
    found = _roberta_sizes({**config, "type_vocab_size": 0})
    buckets = int(config.get("relative_attention_num_buckets", 32))
    return {**found, "positions": "buckets", "relative_buckets": buckets}


MPNET = Family(
    model_type="mpnet",
    prefix="mpnet.",
    encoder=(
        *_shifted(_EMBEDDINGS),
        Rule(
            "encoder.relative_attention_bias.weight", "encoder.relative_bias.embedding"
        ),
        *layer(
            "encoder.layer.{i}",
            {
                "attention.query": "attention.attn.q",
                "attention.key": "attention.attn.k",
                "attention.value": "attention.attn.v",
                "attention.out": "attention.attn.o",
                "attention_norm": "attention.LayerNorm",
                "up": "intermediate.dense",
                "down": "output.dense",
                "output_norm": "output.LayerNorm",
            },
        ),
    ),
    heads={"bert_classifier": _DENSE_TANH, "mlm": _LM_HEAD},
    architectures={
        None: "MPNetModel",
        "bert_classifier": "MPNetForSequenceClassification",
        "mlm": "MPNetForMaskedLM",
    },
    sizes_of=_mpnet_sizes,
    config_of=lambda sizes: {
        **_roberta_config(sizes),
        "relative_attention_num_buckets": sizes.relative_buckets,
    },
    tied=("lm_head.decoder.weight",),
    pooler=True,
)

# -------------------------------------------------------------------- DistilBERT


def _distilbert_sizes(config: Config) -> dict:
    if config.get("sinusoidal_pos_embds"):
        # They are saved as a table like any other.
        pass
    return {
        "d_model": int(config["dim"]),
        "d_ff": int(config["hidden_dim"]),
        "heads": int(config["n_heads"]),
        "layers": int(config["n_layers"]),
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": 0,
        "activation": activation(config, "activation"),
        "dropout": float(config.get("dropout", 0.1)),
        "attention_dropout": float(config.get("attention_dropout", 0.1)),
    }


def _distilbert_config(sizes: BertSizes) -> dict:
    return {
        "dim": sizes.d_model,
        "hidden_dim": sizes.d_ff,
        "n_heads": sizes.heads,
        "n_layers": sizes.layers,
        "max_position_embeddings": sizes.max_positions,
        "activation": written(sizes.activation),
        "dropout": sizes.dropout,
        "attention_dropout": sizes.attention_dropout,
        "seq_classif_dropout": sizes.dropout,
    }


DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    encoder=(
        *_EMBEDDINGS,
        *layer(
            "transformer.layer.{i}",
            {
                "attention.query": "attention.q_lin",
                "attention.key": "attention.k_lin",
                "attention.value": "attention.v_lin",
                "attention.out": "attention.out_lin",
                "attention_norm": "sa_layer_norm",
                "up": "ffn.lin1",
                "down": "ffn.lin2",
                "output_norm": "output_layer_norm",
            },
        ),
    ),
    heads={
        "distilbert_classifier": (
            *dense("pre_classifier", "head.dense"),
            *dense("classifier", "head.out_proj"),
        ),
        "mlm": (
            *dense("vocab_transform", "head.project"),
            *norm("vocab_layer_norm", "head.norm"),
            Rule("vocab_projector.bias", "head.bias"),
        ),
    },
    architectures={
        None: "DistilBertModel",
        "distilbert_classifier": "DistilBertForSequenceClassification",
        "mlm": "DistilBertForMaskedLM",
    },
    sizes_of=_distilbert_sizes,
    config_of=_distilbert_config,
    tied=("vocab_projector.weight",),
    head_activation="activation",
)

# -------------------------------------------------------------------- ALBERT

_ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"


def _albert_sizes(config: Config) -> dict:
    groups = config.get("num_hidden_groups", 1), config.get("inner_group_num", 1)
    if groups != (1, 1):
        raise UserError(
            f"config.json: num_hidden_groups, inner_group_num are {groups}",
            "an ALBERT whose layers all share their parameters is read",
        )
    return {
        **_bert_sizes(config),
        "activation": activation(config, default="gelu_new"),
        "embedding_size": int(config["embedding_size"]),
        "shared": True,
    }


def _albert_rules() -> Table:
    rules = layer(
        _ALBERT,
        {
            "attention.query": "attention.query",
            "attention.key": "attention.key",
            "attention.value": "attention.value",
            "attention.out": "attention.dense",
            "attention_norm": "attention.LayerNorm",
            "up": "ffn",
            "down": "ffn_output",
            "output_norm": "full_layer_layer_norm",
        },
    )
    return tuple(
        dataclasses.replace(rule, ours=rule.ours.replace("{i}", "0")) for rule in rules
    )


ALBERT = Family(
    model_type="albert",
    prefix="albert.",
    encoder=(
        *_EMBEDDINGS,
        *dense("encoder.embedding_hidden_mapping_in", "encoder.project"),
        *_albert_rules(),
    ),
    heads={
        "bert_classifier": (
            *dense("pooler", "head.pooler"),
            *dense("classifier", "head.classifier"),
        ),
        "mlm": (
            *dense("predictions.dense", "head.project"),
            *norm("predictions.LayerNorm", "head.norm"),
            Rule("predictions.bias", "head.bias", also=("predictions.decoder.bias",)),
        ),
    },
    architectures={
        None: "AlbertModel",
        "bert_classifier": "AlbertForSequenceClassification",
        "mlm": "AlbertForMaskedLM",
    },
    sizes_of=_albert_sizes,
    config_of=lambda sizes: {**_bert_config(sizes), "embedding_size": sizes.width},
    tied=("predictions.decoder.weight",),
    ignored=(r"predictions\..*", r"sop_classifier\..*"),
    head_activation="hidden_act",
)
