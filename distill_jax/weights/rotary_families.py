"""Families with rotary positions: ModernBERT, NomicBERT, GTE, and Llama's line."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.families import (
    Config,
    Family,
    Table,
    activation,
    dense,
    layer,
    norm,
    written,
)
from distill_jax.weights.tables import TRANSPOSED, Change, Rule

# Gemma's norms multiply by 1 + weight; ours by the sum.
_PLUS_ONE = Change(
    lambda array: np.asarray(array, np.float32) + 1,
    lambda array: np.asarray(array, np.float32) - 1,
)


def _rope(config: Config, kind: str | None = None) -> tuple[float | None, tuple]:
    """Theta and scaling of rotary positions, in any of the forms they are written in.

    Raises:
        UserError: a scaling that is not known here.
    """
    record = config.get("rope_parameters") or {}
    if kind is not None and isinstance(record.get(kind), dict):
        record = record[kind]
    scaling = {**(config.get("rope_scaling") or {}), **record}
    theta = record.get("rope_theta", config.get("rope_theta"))
    name = scaling.get("rope_type", scaling.get("type", "default"))
    if name == "default":
        return theta, ()
    if name == "linear":
        return theta, ("linear", float(scaling["factor"]))
    if name == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor")
        original = scaling["original_max_position_embeddings"]
        return theta, ("llama3", *(float(scaling[k]) for k in keys), float(original))
    raise UserError(
        f"config.json: rotary positions of the type {name!r}",
        "default, linear and llama3 are read",
    )


def _rope_config(theta: float, scaling: tuple) -> dict:
    record: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if scaling and scaling[0] == "linear":
        record |= {"rope_type": "linear", "factor": scaling[1]}
    elif scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        record |= {"rope_type": "llama3", **dict(zip(names, scaling[1:4]))}
        record["original_max_position_embeddings"] = int(scaling[4])
    return record


# -------------------------------------------------------------------- ModernBERT


def _modernbert_sizes(config: Config) -> dict:
    layers = int(config["num_hidden_layers"])
    every = int(config.get("global_attn_every_n_layers", 3))
    types = config.get("layer_types")
    windowed = [t == "sliding_attention" for t in types] if types else None
    theta, scaling = _rope(config, "full_attention")
    local, _ = _rope(config, "sliding_attention")
    plain = config.get("rope_parameters") is None
    theta = config.get("global_rope_theta", theta) if plain else theta
    local = config.get("local_rope_theta", local) if plain else local
    bias = bool(config.get("attention_bias", False))
    mlp = bool(config.get("mlp_bias", False))
    if activation(config, "classifier_activation") != "gelu":
        raise UserError(
            f"config.json: classifier_activation {config['classifier_activation']!r}",
            "gelu is read",
        )
    return {
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": 0,
        "activation": activation(config, "hidden_activation"),
        "eps": float(config.get("norm_eps", 1e-5)),
        "positions": "rotary",
        "norm_bias": bool(config.get("norm_bias", False)),
        "place": "pre",
        "first_norm": False,
        "attention_bias": bias,
        "out_bias": bias,
        "up_bias": mlp,
        "down_bias": mlp,
        "gated": True,
        "theta": float(theta or 160_000.0),
        "local_theta": float(local or 10_000.0),
        "rope_scaling": scaling,
        "window": int(config.get("local_attention", 128)) // 2,
        "windowed": windowed or tuple(i % every != 0 for i in range(layers)),
        "head_bias": bool(config.get("classifier_bias", False)),
        "dropout": float(config.get("mlp_dropout", 0.0)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
    }


def _modernbert_config(sizes: BertSizes) -> dict:
    types = [
        "sliding_attention" if marked else "full_attention" for marked in sizes.windowed
    ]
    # transformers 4 knows a period, 5 the list.
    period = next((i for i in range(1, len(types)) if not sizes.windowed[i]), 1)
    theta, local = sizes.theta, sizes.local_theta or sizes.theta
    return {
        "max_position_embeddings": sizes.max_positions,
        "hidden_activation": written(sizes.activation),
        "norm_eps": sizes.eps,
        "norm_bias": sizes.norm_bias,
        "attention_bias": sizes.attention_bias,
        "mlp_bias": sizes.up_bias,
        "classifier_bias": sizes.head_bias,
        "decoder_bias": True,
        "local_attention": 2 * (sizes.window or 0),
        "layer_types": types,
        "global_attn_every_n_layers": period,
        "global_rope_theta": theta,
        "local_rope_theta": local,
        "rope_parameters": {
            "full_attention": _rope_config(theta, sizes.rope_scaling),
            "sliding_attention": _rope_config(local, ()),
        },
        "mlp_dropout": sizes.dropout,
        "embedding_dropout": sizes.dropout,
        "attention_dropout": sizes.attention_dropout,
        "sep_token_id": sizes.sep_id,
        "classifier_pooling": "cls",
    }


MODERNBERT = Family(
    model_type="modernbert",
    prefix="model.",
    encoder=(
        Rule("embeddings.tok_embeddings.weight", "encoder.embeddings.word"),
        *norm("embeddings.norm", "encoder.embeddings.norm"),
        *layer(
            "layers.{i}",
            {
                "attention_norm": "attn_norm",
                "attention.query": "attn.Wq",
                "attention.key": "attn.Wk",
                "attention.value": "attn.Wv",
                "attention.out": "attn.Wo",
                "output_norm": "mlp_norm",
                "gate": "mlp.Wgate",
                "up": "mlp.Wup",
                "down": "mlp.Wo",
            },
        ),
        *norm("final_norm", "encoder.final_norm"),
    ),
    heads={
        "modernbert_classifier": (
            *dense("head.dense", "head.dense"),
            *norm("head.norm", "head.norm"),
            *dense("classifier", "head.out_proj"),
        ),
        "mlm": (
            *dense("head.dense", "head.project"),
            *norm("head.norm", "head.norm"),
            Rule("decoder.bias", "head.bias"),
        ),
    },
    architectures={
        None: "ModernBertModel",
        "modernbert_classifier": "ModernBertForSequenceClassification",
        "mlm": "ModernBertForMaskedLM",
    },
    sizes_of=_modernbert_sizes,
    config_of=_modernbert_config,
    tied=("decoder.weight",),
    fused={
        "attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv"),
        "mlp.Wi": ("mlp.Wgate", "mlp.Wup"),
    },
    ignored=(r"head\..*", r"decoder\..*"),
)

# -------------------------------------------------------------------- NomicBERT, GTE

_GATED = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_TYPED: Table = (
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.token_type"),
)


def _nomic_sizes(config: Config) -> dict:
    if config.get("rotary_scaling_factor"):
        raise UserError("config.json: rotary_scaling_factor", "it is not read")
    theta, scaling = _rope(config)
    return {
        "max_positions": int(
            config.get("max_position_embeddings") or config.get("n_positions") or 2048
        ),
        "type_vocab": int(config.get("type_vocab_size", 2)),
        "activation": activation(config, default="silu"),
        "eps": float(config.get("layer_norm_eps", 1e-12)),
        "positions": "rotary",
        **dict.fromkeys(("attention_bias", "out_bias", "up_bias", "down_bias"), False),
        "gated": True,
        "theta": float(theta or 1000.0),
        "rope_scaling": scaling,
        "dropout": float(config.get("hidden_dropout_prob", 0.0)),
        "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.0)),
    }


def _typed_config(sizes: BertSizes) -> dict:
    return {
        "max_position_embeddings": sizes.max_positions,
        "type_vocab_size": sizes.type_vocab,
        "hidden_act": written(sizes.activation),
        "head_dim": sizes.head_dim,
        "rope_parameters": _rope_config(sizes.theta, sizes.rope_scaling),
        "rope_theta": sizes.theta,
    }


NOMIC = Family(
    model_type="nomic_bert",
    prefix="nomic_bert.",
    encoder=(
        *_TYPED,
        *norm("emb_ln", "encoder.embeddings.norm"),
        *layer(
            "encoder.layers.{i}",
            {
                "attention.query": "attn.Wq",
                "attention.key": "attn.Wk",
                "attention.value": "attn.Wv",
                "attention.out": "attn.out_proj",
                "attention_norm": "norm1",
                "up": "mlp.fc11",
                "gate": "mlp.fc12",
                "down": "mlp.fc2",
                "output_norm": "norm2",
            },
        ),
    ),
    fused={"attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv")},
    heads={
        "bert_classifier": (
            *dense("pooler.dense", "head.pooler"),
            *dense("classifier", "head.classifier"),
        ),
        "mlm": (
            *dense("cls.predictions.transform.dense", "head.project"),
            *norm("cls.predictions.transform.layer_norm", "head.norm"),
            Rule(
                "cls.predictions.bias",
                "head.bias",
                also=("cls.predictions.decoder.bias",),
            ),
        ),
    },
    architectures={
        None: "NomicBertModel",
        "bert_classifier": "NomicBertForSequenceClassification",
        "mlm": "NomicBertForMaskedLM",
    },
    sizes_of=_nomic_sizes,
    config_of=_typed_config,
    tied=("cls.predictions.decoder.weight",),
    head_activation="hidden_act",
    pooler=True,
)


def _gte_sizes(config: Config) -> dict:
    theta, scaling = _rope(config)
    return {
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": int(config.get("type_vocab_size", 1) or 0),
        "activation": activation(config),
        "eps": float(config.get("layer_norm_eps", 1e-12)),
        "positions": "rotary",
        "gated": True,
        "up_bias": False,
        "theta": float(theta or 160_000.0),
        "rope_scaling": scaling,
    }


GTE = Family(
    model_type="gte",
    also=("new",),
    prefix="gte.",
    encoder=(
        *_TYPED,
        *norm("embeddings.LayerNorm", "encoder.embeddings.norm"),
        *layer(
            "encoder.layer.{i}",
            {
                "attention.query": "attention.q",
                "attention.key": "attention.k",
                "attention.value": "attention.v",
                "attention.out": "attention.o_proj",
                "attention_norm": "attn_ln",
                "up": "mlp.up",
                "gate": "mlp.gate",
                "down": "mlp.down_proj",
                "output_norm": "mlp_ln",
            },
        ),
    ),
    fused={
        "attention.qkv_proj": ("attention.q", "attention.k", "attention.v"),
        "mlp.up_gate_proj": ("mlp.up", "mlp.gate"),
    },
    heads={
        "bert_classifier": (
            *dense("pooler.dense", "head.pooler"),
            *dense("classifier", "head.classifier"),
        ),
        "mlm": (
            *dense("lm_head.dense", "head.project"),
            *norm("lm_head.norm", "head.norm"),
            Rule("lm_head.decoder.bias", "head.bias", also=("lm_head.bias",)),
        ),
    },
    architectures={
        None: "GteModel",
        "bert_classifier": "GteForSequenceClassification",
        "mlm": "GteForMaskedLM",
    },
    sizes_of=_gte_sizes,
    config_of=_typed_config,
    tied=("lm_head.decoder.weight",),
    pooler=True,
)

# -------------------------------------------------------------------- Llama's line

_PRE = {"attention_norm": "input_layernorm", "output_norm": "post_attention_layernorm"}
_HEAD_NORMS = {
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
}


def _decoder_rules(names: dict[str, str]) -> Table:
    return (
        Rule("embed_tokens.weight", "encoder.embeddings.word"),
        *layer("layers.{i}", {**_GATED, **names}),
        *norm("norm", "encoder.final_norm"),
    )


def _decoder_sizes(config: Config) -> dict:
    theta, scaling = _rope(config)
    layers = int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    bias = bool(config.get("attention_bias", False))
    kind = config.get("model_type")
    window, windowed = config.get("sliding_window"), ()
    if kind in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        window = None
    if window:
        first = int(config.get("max_window_layers", 0)) if kind != "mistral" else 0
        windowed = tuple(i >= first for i in range(layers))
    mlp = bool(config.get("mlp_bias", False))
    return {
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": 0,
        "activation": activation(config, default="silu"),
        "eps": float(config.get("rms_norm_eps", 1e-6)),
        "positions": "rotary",
        "norm": "rms",
        "place": "pre",
        "embedding_norm": False,
        "head_size": int(config.get("head_dim") or 0) or None,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_norm": kind == "qwen3",
        "attention_bias": bias or kind == "qwen2",
        "out_bias": bias,
        "up_bias": mlp,
        "down_bias": mlp,
        "gated": True,
        "theta": float(theta or 10_000.0),
        "rope_scaling": scaling,
        # A key `sliding_window` back is hidden, so the greatest distance is one less.
        "window": int(window) - 1 if window else None,
        "windowed": windowed,
        "causal": kind != "eurobert",
        "dropout": 0.0,
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
    }


def _decoder_config(sizes: BertSizes) -> dict:
    window = sizes.window + 1 if sizes.window is not None else None
    return {
        "max_position_embeddings": sizes.max_positions,
        "hidden_act": written(sizes.activation),
        "rms_norm_eps": sizes.eps,
        "head_dim": sizes.head_dim,
        "num_key_value_heads": sizes.kv_heads or sizes.heads,
        "attention_bias": sizes.out_bias,
        "mlp_bias": sizes.up_bias,
        "rope_theta": sizes.theta,
        "rope_parameters": _rope_config(sizes.theta, sizes.rope_scaling),
        "attention_dropout": sizes.attention_dropout,
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": sizes.windowed.index(True)
        if True in sizes.windowed
        else 0,
        "use_cache": False,
    }


_SCORE: Table = (Rule("score.weight", "head.linear.kernel", TRANSPOSED),)


def _decoder(model_type: str, name: str, names: dict[str, str]) -> Family:
    return Family(
        model_type=model_type,
        prefix="model.",
        encoder=_decoder_rules(names),
        heads={"linear": _SCORE},
        architectures={
            None: f"{name}Model",
            "linear": f"{name}ForSequenceClassification",
        },
        sizes_of=_decoder_sizes,
        config_of=_decoder_config,
        ignored=(r"lm_head\.weight",),
    )


LLAMA = _decoder("llama", "Llama", _PRE)
MISTRAL = _decoder("mistral", "Mistral", _PRE)
QWEN2 = _decoder("qwen2", "Qwen2", _PRE)
QWEN3 = _decoder("qwen3", "Qwen3", {**_PRE, **_HEAD_NORMS})
EUROBERT = dataclasses.replace(
    _decoder("eurobert", "EuroBert", _PRE),
    heads={
        "electra_classifier": (
            *dense("dense", "head.dense"),
            *dense("classifier", "head.out_proj"),
        )
    },
    architectures={None: "EuroBertModel"},
)


def _gemma_sizes(config: Config) -> dict:
    found = _decoder_sizes(config)
    if config.get("attn_logit_softcapping"):
        raise UserError("config.json: attn_logit_softcapping is set", "it is not read")
    layers = int(config["num_hidden_layers"])
    types = config.get("layer_types")
    period = int(config.get("sliding_window_pattern", 6))
    windowed = [t == "sliding_attention" for t in types] if types else None
    theta, scaling = _rope(config, "full_attention")
    local, _ = _rope(config, "sliding_attention")
    if config.get("rope_parameters") is None:
        local = config.get("rope_local_base_freq", 10_000.0)
    both = bool(config.get("use_bidirectional_attention", False))
    window = int(config.get("sliding_window") or 4096)
    return {
        **found,
        "activation": activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "place": "both",
        "head_size": int(config.get("head_dim", 256)),
        "head_norm": True,
        "query_scale": float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
        "theta": float(theta or 1_000_000.0),
        "local_theta": float(local or 10_000.0),
        "rope_scaling": scaling,
        # In both directions it is the width of the whole window.
        "window": window // 2 if both else window - 1,
        "windowed": windowed or tuple((i + 1) % period != 0 for i in range(layers)),
        "causal": not both,
    }


def _gemma_config(sizes: BertSizes) -> dict:
    types = [
        "sliding_attention" if marked else "full_attention" for marked in sizes.windowed
    ]
    local, window = sizes.local_theta or sizes.theta, sizes.window or 0
    return {
        **_decoder_config(sizes),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round((sizes.query_scale or 1.0) ** -2),
        "layer_types": types,
        "sliding_window": window + 1 if sizes.causal else 2 * window,
        "use_bidirectional_attention": not sizes.causal,
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": _rope_config(sizes.theta, sizes.rope_scaling),
            "sliding_attention": _rope_config(local, ()),
        },
    }


_GEMMA_RULES = _decoder_rules(
    {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "output_norm": "pre_feedforward_layernorm",
        "output_post_norm": "post_feedforward_layernorm",
        **_HEAD_NORMS,
    }
)
GEMMA3 = dataclasses.replace(
    _decoder("gemma3_text", "Gemma3Text", {}),
    encoder=tuple(
        dataclasses.replace(rule, change=_PLUS_ONE)
        if rule.ours.endswith("norm.scale")
        else rule
        for rule in _GEMMA_RULES
    ),
    architectures={
        None: "Gemma3TextModel",
        "linear": "Gemma3TextForSequenceClassification",
    },
    sizes_of=_gemma_sizes,
    config_of=_gemma_config,
)
