"""DeBERTa-v2 and v3: names of transformers' classes and our parameters."""

from __future__ import annotations

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.families import (
    POST_NORM_LAYER,
    Config,
    Family,
    activation,
    classes,
    dense,
    layer,
    masked_lm,
    norm,
    written,
)
from distill_jax.weights.tables import Rule

# What the published models of this kind say; another value is another formula.
_READ = {
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_act": "gelu",
}
_ABSENT = {"share_att_key": False, "norm_rel_ebd": "none", "pooler_hidden_act": "gelu"}


def _sizes(config: Config) -> dict:
    for name, value in _READ.items():
        found = config.get(name, _ABSENT.get(name, value))
        if found != value:
            raise UserError(
                f"config.json: {name} is {found!r}", f"with {value!r} it is read"
            )
    kinds = config.get("pos_att_type") or ()
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if {*kinds} != {"c2p", "p2c"} or config.get("conv_kernel_size"):
        raise UserError(
            f"config.json: pos_att_type is {kinds!r}, conv_kernel_size "
            f"{config.get('conv_kernel_size', 0)!r}",
            "c2p and p2c without a convolution are read",
        )
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    longest = int(config.get("max_relative_positions", -1))
    if longest < 1:
        longest = int(config["max_position_embeddings"])
    buckets = int(config.get("position_buckets", -1))
    return {
        "positions": "disentangled",
        # Distances are relative: nothing ends here, but it was trained so far.
        "max_positions": int(config["max_position_embeddings"]),
        "type_vocab": 0,
        "activation": activation(config),
        "eps": float(config.get("layer_norm_eps", 1e-7)),
        "query_scale": (3 * width // heads) ** -0.5,
        "relative_buckets": buckets if buckets > 0 else longest,
        "relative_max_distance": longest,
    }


def _config(sizes: BertSizes) -> dict:
    has_buckets = sizes.relative_buckets < sizes.relative_max_distance
    return {
        **_READ,
        "max_position_embeddings": sizes.max_positions,
        "max_relative_positions": sizes.relative_max_distance,
        "position_buckets": sizes.relative_buckets if has_buckets else -1,
        "pos_att_type": ["p2c", "c2p"],
        "hidden_act": written(sizes.activation),
        "pooler_dropout": sizes.dropout,
        "pooler_hidden_size": sizes.d_model,
    }


DEBERTA = Family(
    model_type="deberta-v2",
    prefix="deberta.",
    encoder=(
        Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
        *norm("embeddings.LayerNorm", "encoder.embeddings.norm"),
        Rule("encoder.rel_embeddings.weight", "encoder.distances.table"),
        *norm("encoder.LayerNorm", "encoder.distances.norm"),
        *layer(
            "encoder.layer.{i}",
            {
                **POST_NORM_LAYER,
                "attention.query": "attention.self.query_proj",
                "attention.key": "attention.self.key_proj",
                "attention.value": "attention.self.value_proj",
            },
        ),
    ),
    heads={
        "electra_classifier": (
            *dense("pooler.dense", "head.dense"),
            *dense("classifier", "head.out_proj"),
        ),
        "mlm": masked_lm("cls.predictions"),
    },
    architectures=classes("DebertaV2", "electra_classifier", "mlm"),
    sizes_of=_sizes,
    config_of=_config,
    tied=("cls.predictions.decoder.weight",),
    ignored=(
        r"(.*\.)?position_embeddings(\.weight)?",
        r"mask_predictions.*",
        r"lm_predictions.*",
    ),
    head_activation="hidden_act",
    outer_pooler=True,
)
