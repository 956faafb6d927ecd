"""DistilBERT, whose names are its own, and ALBERT, whose layers are one."""

from __future__ import annotations

import dataclasses

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.bert_families import bert_config_of, bert_sizes_of
from distill_jax.weights.families import (
    EMBEDDINGS,
    Config,
    Family,
    Table,
    activation,
    classes,
    dense,
    layer,
    norm,
    written,
)
from distill_jax.weights.tables import Rule

# -------------------------------------------------------------------- DistilBERT


def _distilbert_sizes(config: Config) -> dict:
    # Sinusoidal positions are saved as a table like any other.
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
        *EMBEDDINGS,
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
    architectures=classes("DistilBert", "distilbert_classifier", "mlm"),
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
        **bert_sizes_of(config),
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
        *EMBEDDINGS,
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
    architectures=classes("Albert", "bert_classifier", "mlm"),
    sizes_of=_albert_sizes,
    config_of=lambda sizes: {**bert_config_of(sizes), "embedding_size": sizes.width},
    tied=("predictions.decoder.weight",),
    ignored=(r"predictions\..*", r"sop_classifier\..*"),
    head_activation="hidden_act",
)
