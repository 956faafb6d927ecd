"""Decoders with a vocabulary head: Llama's line as a language model with a cache.

The layers are those of ``models.bert``. ``models.generation`` generates with them as it
does with T5: ``start`` reads the prompt once, ``step`` gives the logits of one token.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.models.attention import attend, rotary_table
from distill_jax.models.bert import BertEncoder, EncoderLayer
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.runtime.placement import weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalSpec:
    """A language model; a teacher only, never a student.

    Attributes:
        backbone: sizes with ``causal`` and rotary positions.
        tied: the vocabulary head is the table of words.
        cap: logits are ``cap * tanh(logit / cap)``; None has none.
        chat_template: Jinja, from messages to the text of a prompt.
        special_tokens: names and texts of those that the template may name.
        eos_id: token that ends a reply.
    """

    kind: ClassVar[str] = "llm"
    vectors: ClassVar[None] = None
    documents: ClassVar[int] = 0

    backbone: BertSizes
    tied: bool = True
    cap: float | None = None
    chat_template: str = ""
    special_tokens: tuple[tuple[str, str], ...] = ()
    eos_id: int

    def build(self, rngs: nnx.Rngs) -> CausalModel:
        return CausalModel(self, rngs=rngs)


class CausalModel(nnx.Module):
    """An encoder whose tokens see those before them, and the head over words."""

    def __init__(self, spec: CausalSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        self.encoder = BertEncoder(spec.backbone, rngs=rngs)
        if not spec.tied:
            shape = (spec.backbone.d_model, spec.backbone.vocab_size)
            init = nnx.initializers.normal(spec.backbone.initializer_range)
            self.lm_head = nnx.Param(init(rngs.params(), shape))

    def logits(self, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Of the next token, float32."""
        if self.spec.tied:
            table = self.encoder.embeddings.table().T
        else:
            table = weight("lm_head", self.lm_head[...], jnp.float32)
        logits = hidden.astype(jnp.float32) @ table
        cap = self.spec.cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def start(
    model: CausalModel, tokens: Int[Array, "B L"], places: int
) -> tuple[dict[str, Any], dict[str, Any], Int[Array, "B"]]:
    """Reads the prompts up to their last token, which the first step reads.

    Args:
        tokens: padded with ``pad_id`` at the end.
        places: most tokens generated.

    Returns:
        fixed: ``ends`` int[B], the position of each prompt's last token.
        cache: keys and values, [layers, B, L + places, heads, D].
        the last token of each prompt.
    """
    sizes = model.spec.backbone
    rows, length = tokens.shape
    there = tokens != sizes.pad_id
    ends = (length - 1 - jnp.argmax(there[:, ::-1], axis=1)).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    x = model.encoder.embeddings(tokens, None)
    keys, values = [], []
    for i, layer in enumerate(_layers(model)):
        seen = _seen(sizes, i, positions, positions, there)
        query, key, value = _heads(sizes, i, layer, x, positions, length)
        keys.append(key)
        values.append(value)
        x = _after(layer, x, query, key, value, seen)
    room = ((0, 0), (0, 0), (0, places), (0, 0), (0, 0))
    cache = {
        "keys": jnp.pad(jnp.stack(keys), room),
        "values": jnp.pad(jnp.stack(values), room),
    }
    last = jnp.take_along_axis(tokens, ends[:, None], axis=1)[:, 0]
    return {"ends": ends}, cache, last


def step(
    model: CausalModel,
    fixed: dict[str, Any],
    cache: dict[str, Any],
    last: Int[Array, "B"],
    place: Int[Array, ""],
    places: int,
) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Logits of the token after ``last``, the ``place``-th, and the grown cache."""
    sizes = model.spec.backbone
    keys, values, ends = cache["keys"], cache["values"], fixed["ends"][:, None]
    whole = keys.shape[2]
    length = whole - places
    at = jnp.arange(whole)[None, :]
    # The prompt's last token is read again as the first of what is generated.
    where = jnp.where(at < length, at, ends + at - length)
    written = jnp.where(at < length, at < ends, at - length <= place)
    position = ends + place
    x = model.encoder.embeddings(last[:, None], None)
    for i, layer in enumerate(_layers(model)):
        query, key, value = _heads(sizes, i, layer, x, position, whole)
        corner = (i, 0, length + place, 0, 0)
        keys = jax.lax.dynamic_update_slice(keys, key[None], corner)
        values = jax.lax.dynamic_update_slice(values, value[None], corner)
        seen = _seen(sizes, i, position, where, written)
        x = _after(layer, x, query, keys[i], values[i], seen)
    norm: Any = model.encoder.final_norm
    hidden = norm(x)[:, 0]
    return model.logits(hidden), {"keys": keys, "values": values}


def _layers(model: CausalModel) -> list[EncoderLayer]:
    sizes, layers = model.spec.backbone, model.encoder.layers
    return [layers[0 if sizes.shared else i] for i in range(sizes.layers)]


def _heads(
    sizes: BertSizes,
    at: int,
    layer: Any,
    x: Float[Array, "B L E"],
    positions: Int[Array, "B L"],
    most: int,
) -> tuple[Array, Array, Array]:
    """Queries, keys and values of a layer, turned by their positions below ``most``."""
    attention = layer.attention
    normal = x if layer.attention_norm is None else layer.attention_norm(x)
    query = attention.split(attention.query(normal))
    key = attention.split(attention.key(normal))
    if attention.query_norm is not None:
        query, key = attention.query_norm(query), attention.key_norm(key)
    marked = at < len(sizes.windowed) and sizes.windowed[at]
    if marked and sizes.local_theta is not None:
        table = rotary_table(most, sizes.head_dim, sizes.local_theta)
    else:
        table = rotary_table(most, sizes.head_dim, sizes.theta, sizes.rope_scaling)
    cos, sin = (jnp.asarray(t, x.dtype)[positions][:, :, None] for t in table)
    half = sizes.head_dim // 2

    def turned(y):
        other = jnp.concatenate([-y[..., half:], y[..., :half]], axis=-1)
        return y * cos + other * sin

    return turned(query), turned(key), attention.split(attention.value(normal))


def _seen(
    sizes: BertSizes,
    at: int,
    positions: Int[Array, "B Q"],
    where: Int[Array, "B K"],
    there: Bool[Array, "B K"],
) -> Bool[Array, "B 1 Q K"]:
    """Which keys each query of a layer sees."""
    back = positions[:, :, None] - where[:, None, :]
    seen = there[:, None, :] & (back >= 0)
    if sizes.window is not None and at < len(sizes.windowed) and sizes.windowed[at]:
        seen &= back <= sizes.window
    return seen[:, None]


def _after(
    layer: Any, x: Float[Array, "B Q E"], query: Array, key: Array, value: Array, seen
) -> Float[Array, "B Q E"]:
    """The layer's output, from its heads."""
    attention = layer.attention
    times = attention.heads // key.shape[2]
    key, value = (jnp.repeat(y, times, axis=2) for y in (key, value))
    y = attend(query, key, value, scale=attention.scale, mask=seen, cap=attention.cap)
    y = attention.out(y.reshape(*y.shape[:2], -1))
    x = x + (y if layer.attention_post_norm is None else layer.attention_post_norm(y))
    y = layer.feed_forward(layer.output_norm(x))
    return x + (y if layer.output_post_norm is None else layer.output_post_norm(y))
