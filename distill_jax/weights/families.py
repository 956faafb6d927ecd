"""The definition of an encoder family, and the rules shared by families.

A family is a table of names, transformers' to ours and back, its heads, and what its
config.json says. The encoder is one for all of them (``models.bert``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.weights.tables import TRANSPOSED, Rule

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


def classes(stem: str, *heads: str) -> dict[str | None, str]:
    """transformers' class of each head, and of the bare encoder (None)."""
    ends = {"mlm": "MaskedLM"}
    return {None: f"{stem}Model"} | {
        head: f"{stem}For{ends.get(head, 'SequenceClassification')}" for head in heads
    }


def masked_lm(name: str, norm_name: str = "LayerNorm") -> Table:
    """BERT's masked language model head; its output is tied to the words."""
    return (
        *dense(f"{name}.transform.dense", "head.project"),
        *norm(f"{name}.transform.{norm_name}", "head.norm"),
        Rule(f"{name}.bias", "head.bias", also=(f"{name}.decoder.bias",)),
    )


def activation(config: Config, name: str = "hidden_act", default: str = "gelu") -> str:
    """Our name of an activation.

    Raises:
        UserError: the activation is not supported.
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


def rope(config: Config, kind: str | None = None) -> tuple[float | None, tuple]:
    """Theta and scaling of rotary positions, in any of the forms they are written in.

    Raises:
        UserError: the scaling is not supported.
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


def rope_config(theta: float, scaling: tuple) -> dict:
    record: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if scaling and scaling[0] == "linear":
        record |= {"rope_type": "linear", "factor": scaling[1]}
    elif scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        record |= {"rope_type": "llama3", **dict(zip(names, scaling[1:4]))}
        record["original_max_position_embeddings"] = int(scaling[4])
    return record


POOLER_CLASSIFIER: Table = (
    *dense("pooler.dense", "head.pooler"),
    *dense("classifier", "head.classifier"),
)
POST_NORM_LAYER: Mapping[str, str] = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
"""BERT's names of a layer, by ours."""
EMBEDDINGS: Table = (
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.token_type"),
    *norm("embeddings.LayerNorm", "encoder.embeddings.norm"),
)
