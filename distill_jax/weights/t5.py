"""T5 between Hugging Face folders and our parameters, in both directions.

The names are those of ``transformers``' T5ForConditionalGeneration and T5EncoderModel
(mT5, Flan and UMT5 have the same). Two traps are handled here and nowhere else:

- Whether the output head is tied and whether it is scaled are two questions.
  transformers 5 writes ``tie_word_embeddings: true`` for every T5 and keeps the old
  meaning in ``scale_decoder_outputs``; so the head is untied iff the file holds a
  ``lm_head.weight`` that differs from the embeddings.
- ``embed_tokens`` are copies of ``shared`` that some files repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import abstract_params, flatten, unflatten
from distill_jax.models.t5 import T5Sizes
from distill_jax.weights import tables
from distill_jax.weights.families import ACTIVATIONS, written
from distill_jax.weights.tables import TRANSPOSED, Rule

_PROJECTIONS = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))


def _attention(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.{short}.weight", f"{ours}.{long}.kernel", TRANSPOSED)
        for short, long in _PROJECTIONS
    ]


_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def _stack(side: str, kinds: tuple[tuple[str, str], ...]) -> list[Rule]:
    rules = [
        Rule(f"{side}.final_layer_norm.weight", f"{side}.final_norm.scale"),
        Rule(f"{side}.block.0.{_BIAS}", f"{side}.relative_bias.embedding"),
    ]
    block = f"{side}.block.{{i}}.layer"
    layer = f"{side}.layers.{{i}}"
    for j, (theirs, ours) in enumerate(kinds):
        rules += _attention(f"{block}.{j}.{theirs}", f"{layer}.{ours}")
        norm = f"{layer}.{ours}_norm.scale"
        rules.append(Rule(f"{block}.{j}.layer_norm.weight", norm))
    last = len(kinds)
    rules += [
        Rule(
            f"{block}.{last}.DenseReluDense.{wi}.weight",
            f"{layer}.ffn.{wi}.kernel",
            TRANSPOSED,
        )
        for wi in ("wi", "wi_0", "wi_1", "wo")
    ]
    rules.append(Rule(f"{block}.{last}.layer_norm.weight", f"{layer}.ffn_norm.scale"))
    return rules


TABLE: tuple[Rule, ...] = (
    Rule(
        "shared.weight",
        "encoder.embedding",
        also=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ),
    *_stack("encoder", (("SelfAttention", "attention"),)),
    *_stack(
        "decoder",
        (("SelfAttention", "self_attention"), ("EncDecAttention", "cross_attention")),
    ),
    Rule("lm_head.weight", "lm_head", TRANSPOSED),
)


def _table(sizes: T5Sizes) -> tuple[Rule, ...]:
    """The table of a T5, or of UMT5: every layer has a bias of its own."""
    if not sizes.layer_bias:
        return TABLE
    common = [rule for rule in TABLE if not rule.theirs.endswith(_BIAS)]
    own = [
        Rule(
            f"{side}.block.{{i}}.{_BIAS}",
            f"{side}.layers.{{i}}.relative_bias.embedding",
        )
        for side in ("encoder", "decoder")
    ]
    return (*common, *own)


# Written by transformers before version 4, unused since.
IGNORED = (
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)


def sizes_of(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **overrides: Any
) -> T5Sizes:
    """The sizes that a config.json and the names in the file say.

    Raises:
        UserError: a variant of T5 that is not supported.
    """
    gated, activation = _feed_forward(config)
    decoder = any(name.startswith("decoder.block.") for name in tensors)
    layers = int(config["num_layers"])
    tied = not _own_head(tensors)
    if decoder and tied and "lm_head.weight" not in tensors and not _ties(config):
        raise UserError(
            "config.json says that the output head is not tied to the embeddings, and "
            "the file has no lm_head.weight",
            'set "tie_word_embeddings" to true if it is tied after all',
        )
    scaled = _scaled(config)
    vocab_size = int(config["vocab_size"])
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name in tensors:
            vocab_size = tensors[name].shape[0]
    values = {
        "vocab_size": vocab_size,
        "d_model": int(config["d_model"]),
        "d_ff": int(config["d_ff"]),
        "heads": int(config["num_heads"]),
        "d_kv": int(config["d_kv"]),
        "encoder_layers": layers,
        "decoder_layers": int(config.get("num_decoder_layers") or layers)
        if decoder
        else 0,
        "gated": gated,
        "activation": activation,
        "layer_bias": config.get("model_type") == "umt5",
        "tied": tied,
        "scale_logits": None if scaled == tied else scaled,
        "relative_buckets": int(config.get("relative_attention_num_buckets", 32)),
        "relative_max_distance": int(
            config.get("relative_attention_max_distance", 128)
        ),
        "dropout": float(config.get("dropout_rate", 0.1)),
        "eps": float(config.get("layer_norm_epsilon", 1e-6)),
    }
    return T5Sizes(**{**values, **overrides})


def _feed_forward(config: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether it is gated, and the activation where it is not the usual one."""
    said = str(config.get("feed_forward_proj") or "relu")
    gated, name = said.startswith("gated-"), said.removeprefix("gated-")
    # "gated-gelu" has always meant the approximation.
    name = "gelu_new" if said == "gated-gelu" else name
    stated = config.get("dense_act_fn")
    if name not in ACTIVATIONS or stated not in (None, name):
        raise UserError(
            f"config.json: feed_forward_proj {said!r} and dense_act_fn {stated!r}",
            f"plain or gated- {', '.join(ACTIVATIONS)} are read, both names alike",
        )
    usual = "gelu_new" if gated else "relu"
    return gated, None if name == usual else ACTIVATIONS[name]


def _feed_forward_name(sizes: T5Sizes) -> str:
    """The inverse, as ``feed_forward_proj``."""
    found = sizes.feed_forward_activation
    name = "gelu" if sizes.gated and found == "gelu_tanh" else written(found)
    if sizes.gated and found == "gelu":
        raise UserError(
            "transformers' T5 has no gated feed-forward with the exact gelu",
            'use activation="gelu_tanh"',
        )
    return f"gated-{name}" if sizes.gated else name


def _scaled(config: Mapping[str, Any]) -> bool:
    if config.get("model_type") == "mt5":
        # Never, even if transformers 5 writes that it is tied.
        return False
    tied = config.get("tie_word_embeddings", True)
    return bool(config.get("scale_decoder_outputs", tied))


def _ties(config: Mapping[str, Any]) -> bool:
    """Whether the config lets the embeddings replace a missing head."""
    return bool(config.get("tie_word_embeddings", True))


def _own_head(tensors: Mapping[str, np.ndarray]) -> bool:
    if "lm_head.weight" not in tensors:
        return False
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if name in tensors:
            return not np.array_equal(tensors["lm_head.weight"], tensors[name])
    return True


def read(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    encoder_only: bool = False,
    source: str = "the checkpoint",
    **overrides: Any,
) -> tuple[T5Sizes, dict]:
    """A Hugging Face T5 to sizes and the parameters of ``models.t5.T5``.

    Args:
        config: config.json.
        tensors: name to array.
        encoder_only: leave out the decoder and the head.
        overrides: fields of ``T5Sizes`` to change (dtype, dropout, remat).

    Returns:
        the sizes, and ``{"encoder": ..., "decoder": ..., "lm_head": ...}``.

    Raises:
        UserError: names or shapes that do not fit, all of them.
    """
    ignore = [r"lm_head\.weight", *IGNORED]
    if encoder_only:
        overrides["decoder_layers"] = 0
        ignore.append(r"decoder\..*")
    sizes = sizes_of(config, tensors, **overrides)
    if not sizes.tied:
        ignore = ignore[1:] if sizes.decoder_layers else ignore
    params, _ = tables.read(
        tensors,
        _table(sizes),
        flatten(abstract_params(sizes)),
        ignore=ignore,
        source=source,
    )
    return sizes, unflatten(params)


def write(sizes: T5Sizes, params: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """Sizes and parameters of ``models.t5.T5`` to config.json and named tensors.

    Old readers take the scaling of a head from ``tie_word_embeddings``, new ones from
    ``scale_decoder_outputs``: both are written, and an untied head always is.
    """
    tensors = tables.write(flatten(params), _table(sizes))
    stem = "UMT5" if sizes.layer_bias else "T5"
    activation = sizes.feed_forward_activation
    scaled = sizes.tied if sizes.scale_logits is None else sizes.scale_logits
    decoder = sizes.decoder_layers > 0
    config = {
        "architectures": [
            f"{stem}ForConditionalGeneration" if decoder else f"{stem}EncoderModel"
        ],
        "model_type": stem.lower(),
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.d_model,
        "d_ff": sizes.d_ff,
        "d_kv": sizes.d_kv,
        "num_heads": sizes.heads,
        "num_layers": sizes.encoder_layers,
        "num_decoder_layers": sizes.decoder_layers or sizes.encoder_layers,
        "feed_forward_proj": _feed_forward_name(sizes),
        "is_gated_act": sizes.gated,
        "dense_act_fn": written(activation),
        "tie_word_embeddings": sizes.tied,
        "scale_decoder_outputs": scaled,
        "relative_attention_num_buckets": sizes.relative_buckets,
        "relative_attention_max_distance": sizes.relative_max_distance,
        "dropout_rate": sizes.dropout,
        "layer_norm_epsilon": sizes.eps,
        "initializer_factor": 1.0,
        "n_positions": 512,
        "is_encoder_decoder": decoder,
        "use_cache": decoder,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    return config, tensors
