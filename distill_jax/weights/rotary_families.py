"""Encoders with rotary positions: ModernBERT, NomicBERT, GTE."""

from __future__ import annotations

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.families import (
    POOLER_CLASSIFIER,
    Config,
    Family,
    Table,
    activation,
    classes,
    dense,
    layer,
    masked_lm,
    norm,
    rope,
    rope_config,
    written,
)
from distill_jax.weights.tables import Rule

# -------------------------------------------------------------------- ModernBERT


def _modernbert_sizes(config: Config) -> dict:
    layers = int(config["num_hidden_layers"])
    every = int(config.get("global_attn_every_n_layers", 3))
    types = config.get("layer_types")
    windowed = [t == "sliding_attention" for t in types] if types else None
    theta, scaling = rope(config, "full_attention")
    local, _ = rope(config, "sliding_attention")
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
            "full_attention": rope_config(theta, sizes.rope_scaling),
            "sliding_attention": rope_config(local, ()),
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
    architectures=classes("ModernBert", "modernbert_classifier", "mlm"),
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

_TYPED: Table = (
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.token_type"),
)


def _nomic_sizes(config: Config) -> dict:
    if config.get("rotary_scaling_factor"):
        raise UserError("config.json: rotary_scaling_factor", "it is not read")
    theta, scaling = rope(config)
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
        "rope_parameters": rope_config(sizes.theta, sizes.rope_scaling),
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
        "bert_classifier": POOLER_CLASSIFIER,
        "mlm": masked_lm("cls.predictions", "layer_norm"),
    },
    architectures=classes("NomicBert", "bert_classifier", "mlm"),
    sizes_of=_nomic_sizes,
    config_of=_typed_config,
    tied=("cls.predictions.decoder.weight",),
    head_activation="hidden_act",
    pooler=True,
)


def _gte_sizes(config: Config) -> dict:
    theta, scaling = rope(config)
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
        "bert_classifier": POOLER_CLASSIFIER,
        "mlm": (
            *dense("lm_head.dense", "head.project"),
            *norm("lm_head.norm", "head.norm"),
            Rule("lm_head.decoder.bias", "head.bias", also=("lm_head.bias",)),
        ),
    },
    architectures=classes("Gte", "bert_classifier", "mlm"),
    sizes_of=_gte_sizes,
    config_of=_typed_config,
    tied=("lm_head.decoder.weight",),
    pooler=True,
)
