"""Llama's line as encoders: Llama, Mistral, Qwen, EuroBERT, Gemma."""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.families import (
    Config,
    Family,
    Table,
    activation,
    classes,
    dense,
    layer,
    norm,
    rope,
    rope_config,
    written,
)
from distill_jax.weights.tables import TRANSPOSED, Change, Rule

# Gemma's norms multiply by 1 + weight; ours by the sum.
_PLUS_ONE = Change(
    lambda array: np.asarray(array, np.float32) + 1,
    lambda array: np.asarray(array, np.float32) - 1,
)
_GATED = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
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
    theta, scaling = rope(config)
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
        "rope_parameters": rope_config(sizes.theta, sizes.rope_scaling),
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
        architectures=classes(name, "linear"),
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
    architectures=classes("EuroBert"),
)


def _first_gemma_sizes(config: Config) -> dict:
    named = config.get("hidden_activation") or config.get("hidden_act") or "gelu"
    if named not in ("gelu", "gelu_pytorch_tanh"):
        raise UserError(
            f"config.json: hidden_act is {named!r}", "a Gemma has gelu_pytorch_tanh"
        )
    if config.get("use_bidirectional_attention"):
        # transformers' own mask depends there on whether a batch is padded.
        raise UserError(
            "config.json: use_bidirectional_attention of a Gemma is true",
            "it is read of Gemma 3",
        )
    return {
        **_decoder_sizes(config),
        # The first files say "gelu" and mean the approximation.
        "activation": "gelu_tanh",
        "head_size": int(config.get("head_dim", 256)),
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
    }


def _first_gemma_config(sizes: BertSizes) -> dict:
    found = _decoder_config(sizes)
    return found | {"hidden_act": "gelu_pytorch_tanh"}


def _second_gemma_sizes(config: Config) -> dict:
    if config.get("use_bidirectional_attention"):
        raise UserError(
            "config.json: use_bidirectional_attention of a Gemma 2 is true",
            "it is read of Gemma 3",
        )
    types = config.get("layer_types")
    layers = int(config["num_hidden_layers"])
    cap = config.get("attn_logit_softcapping", 50.0)
    return {
        **_decoder_sizes(config),
        "activation": activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        "place": "both",
        "head_size": int(config.get("head_dim", 256)),
        "query_scale": float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        "logit_cap": float(cap) if cap else None,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
        "window": int(config.get("sliding_window") or 4096) - 1,
        "windowed": tuple(
            types[i] == "sliding_attention" if types else i % 2 == 0
            for i in range(layers)
        ),
    }


def _second_gemma_config(sizes: BertSizes) -> dict:
    return {
        **_decoder_config(sizes),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round((sizes.query_scale or 1.0) ** -2),
        "attn_logit_softcapping": sizes.logit_cap,
        # Of the vocabulary head, which is not written.
        "final_logit_softcapping": None,
        "layer_types": _layer_types(sizes),
    }


def _layer_types(sizes: BertSizes) -> list[str]:
    return [
        "sliding_attention" if marked else "full_attention" for marked in sizes.windowed
    ]


def _gemma_sizes(config: Config) -> dict:
    found = _decoder_sizes(config)
    if config.get("attn_logit_softcapping"):
        raise UserError("config.json: attn_logit_softcapping is set", "it is not read")
    layers = int(config["num_hidden_layers"])
    types = config.get("layer_types")
    period = int(config.get("sliding_window_pattern", 6))
    windowed = [t == "sliding_attention" for t in types] if types else None
    theta, scaling = rope(config, "full_attention")
    local, _ = rope(config, "sliding_attention")
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
    local, window = sizes.local_theta or sizes.theta, sizes.window or 0
    return {
        **_decoder_config(sizes),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round((sizes.query_scale or 1.0) ** -2),
        "layer_types": _layer_types(sizes),
        "sliding_window": window + 1 if sizes.causal else 2 * window,
        "use_bidirectional_attention": not sizes.causal,
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": rope_config(sizes.theta, sizes.rope_scaling),
            "sliding_attention": rope_config(local, ()),
        },
    }


_BOTH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "output_norm": "pre_feedforward_layernorm",
    "output_post_norm": "post_feedforward_layernorm",
}


def _plus_one(rules: Table) -> Table:
    return tuple(
        dataclasses.replace(rule, change=_PLUS_ONE)
        if rule.ours.endswith("norm.scale")
        else rule
        for rule in rules
    )


GEMMA3 = dataclasses.replace(
    _decoder("gemma3_text", "Gemma3Text", {}),
    encoder=_plus_one(_decoder_rules({**_BOTH, **_HEAD_NORMS})),
    architectures=classes("Gemma3Text", "linear"),
    sizes_of=_gemma_sizes,
    config_of=_gemma_config,
)
GEMMA2 = dataclasses.replace(
    _decoder("gemma2", "Gemma2", {}),
    encoder=_plus_one(_decoder_rules(_BOTH)),
    sizes_of=_second_gemma_sizes,
    config_of=_second_gemma_config,
)
GEMMA = dataclasses.replace(
    _decoder("gemma", "Gemma", {}),
    encoder=_plus_one(_decoder_rules(_PRE)),
    sizes_of=_first_gemma_sizes,
    config_of=_first_gemma_config,
)
