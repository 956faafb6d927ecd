"""Encoders of every family between Hugging Face folders and our parameters.

The names are those of ``transformers``' classes, and of lightning-ir's monoELECTRA
(``linear.weight`` on [CLS]). Vocabulary heads are tied to the word embeddings: a file
that repeats the table is read, one whose copy differs is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from distill_jax.io.errors import UserError, near
from distill_jax.models.bert import BertEncoder
from distill_jax.models.bert_heads import CLASSIFIERS, VocabularyHead
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import flatten, unflatten
from distill_jax.weights import (
    bert_families,
    compact_families,
    deberta,
    decoder_families,
    rotary_families,
    tables,
)
from distill_jax.weights.families import Family
from distill_jax.weights.tables import Rule

HEADS = {**CLASSIFIERS, "mlm": VocabularyHead}
FAMILIES: dict[str, Family] = {
    name: family
    for module in (
        bert_families,
        compact_families,
        rotary_families,
        decoder_families,
        deberta,
    )
    for family in vars(module).values()
    if isinstance(family, Family)
    for name in (family.model_type, *family.also)
}
# Parts that a file may have and a student need not. Each class's own list of what it
# ignores is among them.
IGNORED = (
    r"(\w+\.)?embeddings\.(position_ids|token_type_ids)",
    r"pooler\..*",
    r"classifier\..*",
    r"pre_classifier\..*",
    r"linear\..*",
    r"score\..*",
    r"cls\..*",
    r"lm_head\..*",
    r"vocab_\w+\..*",
    r"(generator|discriminator)_.*",
    r"bert_discriminator.*",
    r".*inv_freq",
    r"qa_outputs\..*",
)


def family_of(config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family that a config.json names.

    Raises:
        UserError: one that is not read.
    """
    # lightning-ir names its models after their use, and the backbone beside.
    kind = config.get("backbone_model_type") or config.get("model_type") or ""
    kind = str(kind).lower()
    architecture = str((config.get("architectures") or [""])[0]).lower()
    if architecture.startswith("electra"):
        kind = "electra"
    elif not kind and (not architecture or architecture.startswith(("bert", "hf_"))):
        kind = "bert"
    if kind == "bert" and "embedding_size" in config:
        kind = "electra"
    found = FAMILIES.get(kind)
    if found is None:
        known = ("t5", "mt5", "umt5", *FAMILIES)
        raise UserError(
            f"{where}: model_type {kind or 'absent'!r}{near(kind, known)}",
            f"these are read: {', '.join(known)}",
        )
    return found


def head_activation(sizes: BertSizes) -> str:
    """The activation of a family's masked language model head."""
    return sizes.activation if FAMILIES[sizes.family].head_activation else "gelu"


def family_named(name: str) -> Family:
    """The family of ``BertSizes.family``."""
    return FAMILIES[name]


def sizes_of(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **overrides: Any
) -> BertSizes:
    """The sizes in a config.json; the vocabulary's size is that of the weights.

    Raises:
        UserError: a family, or a variant of it, that is not supported.
    """
    family = family_of(config)
    try:
        found = family.sizes_of(config)
        name = "d_model"
        d_model = found.get(name) or int(_either(config, "hidden_size", "n_embd"))
        values = {
            "family": family.model_type,
            "vocab_size": int(config.get("vocab_size", 0)),
            "d_model": d_model,
            "eps": float(config.get("layer_norm_eps", 1e-12)),
            "dropout": float(config.get("hidden_dropout_prob", 0.1)),
            "attention_dropout": float(config.get("attention_probs_dropout_prob", 0.1)),
            "initializer_range": float(config.get("initializer_range", 0.02)),
            "pad_id": int(config.get("pad_token_id") or 0),
        }
        for ours, theirs in (
            ("d_ff", ("intermediate_size", "n_inner")),
            ("heads", ("num_attention_heads", "n_head")),
            ("layers", ("num_hidden_layers", "n_layer")),
        ):
            if ours not in found:
                values[ours] = int(_either(config, *theirs))
    except KeyError as error:
        raise UserError(
            f"config.json of a {family.model_type} lacks {error.args[0]!r}",
            "download the model again",
        ) from error
    table = _find(tensors, _words(family))
    if table is not None:
        values["vocab_size"] = table[0]
        narrow = table[1] if table[1] != d_model else None
        values["embedding_size"] = narrow if narrow else d_model
    elif config.get("embedding_size"):
        values["embedding_size"] = int(config["embedding_size"])
    else:
        values["embedding_size"] = d_model
    return BertSizes(**{**values, **found, **overrides})


def _either(config: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(names[0])


def _words(family: Family) -> str:
    return next(
        rule.theirs for rule in family.encoder if rule.ours == "encoder.embeddings.word"
    )


def _find(tensors: Mapping[str, Any], end: str) -> tuple[int, ...] | None:
    """The shape of the tensor of that name, with any prefix."""
    for name in tensors:
        if name == end or name.endswith("." + end):
            return tuple(tensors[name].shape)
    return None


def prefix_of(tensors: Mapping[str, Any], family: Family) -> str:
    """The prefix of the encoder's names: "bert.", "model." or nothing."""
    end = _words(family)
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
    """A Hugging Face encoder to sizes and parameters.

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
    family = family_of(config)
    sizes = sizes_of(config, tensors, **overrides)
    rules = _table(family, head)
    if head == "mlm":
        # Files of masked language models may repeat the table of words.
        rules = tuple(
            dataclasses.replace(rule, also=(*rule.also, *family.tied))
            if rule.ours == "encoder.embeddings.word"
            else rule
            for rule in rules
        )
    params, made = tables.read(
        _parted(tensors, family),
        rules,
        abstract(sizes, head),
        prefix=prefix_of(tensors, family),
        ignore=[*IGNORED, *family.ignored, *ignore],
        fresh=fresh,
        source=source,
    )
    return sizes, unflatten(params), made


def _parted(tensors: Mapping[str, Any], family: Family) -> Mapping[str, Any]:
    """Matrices that a file holds as one, apart."""
    if not family.fused:
        return tensors
    found: dict[str, Any] = {}
    for name in tensors:
        for whole, parts in family.fused.items():
            stem, found_whole, kind = name.rpartition(f".{whole}.")
            if found_whole:
                rows = np.split(np.asarray(tensors[name]), len(parts))
                found |= {f"{stem}.{p}.{kind}": row for p, row in zip(parts, rows)}
                break
        else:
            found[name] = tensors[name]
    return found


def _joined(tensors: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The inverse of ``_parted``."""
    found = dict(tensors)
    for whole, parts in family.fused.items():
        for name in tensors:
            stem, first, kind = name.rpartition(f".{parts[0]}.")
            if first:
                rows = [found.pop(f"{stem}.{part}.{kind}") for part in parts]
                found[f"{stem}.{whole}.{kind}"] = np.concatenate(rows)
    return found


def _table(family: Family, head: str | None) -> tuple[Rule, ...]:
    if head is None:
        return family.encoder
    if head not in family.heads:
        raise UserError(
            f"the head {head!r} does not go with {family.model_type}",
            f"its heads are {', '.join(family.heads)}",
        )
    return (*family.encoder, *family.heads[head])


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


def write(
    sizes: BertSizes, params: dict, *, head: str | None = None
) -> tuple[dict, dict[str, np.ndarray]]:
    """Sizes and ``{"encoder": ..., "head": ...}`` to config.json and named tensors.

    Raises:
        UserError: transformers has no class for this head of this family.
    """
    family = family_named(sizes.family)
    if head not in family.architectures:
        known = [name for name in family.architectures if name]
        raise UserError(
            f"transformers has no {sizes.family} with the head {head!r}",
            f"its heads are {', '.join(known)}",
        )
    flat = {
        name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()
    }
    encoder = {name: leaf for name, leaf in flat.items() if name.startswith("encoder.")}
    rest = {name: leaf for name, leaf in flat.items() if name not in encoder}
    inner = _joined(tables.write(encoder, family.encoder), family)
    outer = tables.write(rest, family.heads[head]) if head else {}
    if head is not None:
        inner = {f"{family.prefix}{name}": array for name, array in inner.items()}
        # The pooler belongs to the encoder's class.
        outer = {
            f"{family.prefix}{name}"
            if name.startswith("pooler") and not family.outer_pooler
            else name: array
            for name, array in outer.items()
        }
    return config_of(sizes, head, flat), {**inner, **outer}


def config_of(sizes: BertSizes, head: str | None, flat: Mapping[str, Any]) -> dict:
    """The entries of transformers' config.json for these sizes."""
    family = family_named(sizes.family)
    config: dict[str, Any] = {
        "architectures": [family.architectures[head]],
        "model_type": sizes.family,
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.d_ff,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "layer_norm_eps": sizes.eps,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.attention_dropout,
        "initializer_range": sizes.initializer_range,
        "pad_token_id": sizes.pad_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        **family.config_of(sizes),
    }
    if head is not None and head != "mlm":
        count = next(
            leaf.shape[-1]
            for last in ("classifier", "out_proj", "linear")
            if (leaf := flat.get(f"head.{last}.kernel")) is not None
        )
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return json.loads(json.dumps(config))
