"""BERT and its kin: ERNIE, ELECTRA, RoBERTa, XLM-R, CamemBERT, MPNet."""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.families import (
    EMBEDDINGS,
    POOLER_CLASSIFIER,
    POST_NORM_LAYER,
    Config,
    Family,
    Table,
    activation,
    classes,
    dense,
    layer,
    masked_lm,
    norm,
    written,
)
from distill_jax.weights.tables import TRANSPOSED, Change, Rule

_LINEAR = (Rule("linear.weight", "head.linear.kernel", TRANSPOSED),)


def bert_sizes_of(config: Config) -> dict:
    """Fields of config.json that BERT and its relatives share."""
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


def bert_config_of(sizes: BertSizes) -> dict:
    """The inverse of ``bert_sizes_of``."""
    return {
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.type_vocab,
        "hidden_act": written(sizes.activation),
        "position_embedding_type": "absolute",
    }


BERT = Family(
    model_type="bert",
    prefix="bert.",
    encoder=(*EMBEDDINGS, *layer("encoder.layer.{i}", POST_NORM_LAYER)),
    heads={
        "bert_classifier": POOLER_CLASSIFIER,
        "linear": _LINEAR,
        "mlm": masked_lm("cls.predictions"),
    },
    architectures=classes("Bert", "bert_classifier", "mlm"),
    sizes_of=bert_sizes_of,
    config_of=bert_config_of,
    tied=("cls.predictions.decoder.weight",),
    head_activation="hidden_act",
    pooler=True,
)
ERNIE = dataclasses.replace(
    BERT,
    model_type="ernie",
    prefix="ernie.",
    architectures=classes("Ernie", "bert_classifier", "mlm"),
)


def _electra_config(sizes: BertSizes) -> dict:
    return {
        **bert_config_of(sizes),
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
    architectures=classes("Electra", "electra_classifier", "mlm"),
    sizes_of=bert_sizes_of,
    config_of=_electra_config,
    tied=("generator_lm_head.weight",),
)

# ---------------------------------------------- tables that begin after the padding

_PADDED = 2
# Row 1 is padding, row 0 is unused: positions are counted from the id of <pad>.
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
    found = bert_sizes_of(config)
    found["max_positions"] -= _PADDED
    return found


def _roberta_config(sizes: BertSizes) -> dict:
    return {
        **bert_config_of(sizes),
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
        architectures=classes(name, "bert_classifier", "mlm"),
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
        *_shifted(EMBEDDINGS),
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
    architectures=classes("MPNet", "bert_classifier", "mlm"),
    sizes_of=_mpnet_sizes,
    config_of=lambda sizes: {
        **_roberta_config(sizes),
        "relative_attention_num_buckets": sizes.relative_buckets,
    },
    tied=("lm_head.decoder.weight",),
    pooler=True,
)
