"""Decoding with a key-value cache: greedy, sampling, beam search.

One loop for T5, whose start and step are here, and for ``models.causal``.

Shapes are static under ``jit``: the cache has ``max_tokens`` places from the start, and
one ``while_loop`` runs until every row has ended. A row's random numbers come from its
own seed and the step, so what is generated for it does not depend on its neighbours.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from distill_jax.io.errors import UserError
from distill_jax.models import causal
from distill_jax.models.attention import MASKED, MultiHeadAttention, attend
from distill_jax.models.causal import CausalModel, CausalSpec
from distill_jax.models.pretrained import graphdef_of
from distill_jax.models.t5 import PAD_ID, START_ID, T5, T5Sizes
from distill_jax.ops.masked import token_mask
from distill_jax.runtime.placement import computing_on

EOS_ID = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        max_tokens: most tokens generated, the end token included.
        temperature: 0 is greedy; otherwise logits are divided by it and sampled.
        top_k: sample among the k most likely tokens only; None is all.
        top_p: sample among the fewest tokens that together have this probability.
        beams: more than 1 is beam search (deterministic; temperature 0).
        length_penalty: finished beams are ranked by sum of log-probabilities divided
            by length ** this.
        eos_id: token that ends a row.
    """

    max_tokens: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 1
    length_penalty: float = 1.0
    eos_id: int = EOS_ID

    def __post_init__(self):
        if self.max_tokens < 1 or self.beams < 1 or self.temperature < 0:
            raise UserError(
                f"cannot decode with max_tokens={self.max_tokens}, "
                f"beams={self.beams}, temperature={self.temperature}",
                "max_tokens and beams are at least 1, temperature at least 0",
            )
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                "beam search does not sample", "set temperature=0 or beams=1"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not a probability above 0")


def generate(
    sizes: T5Sizes | CausalSpec,
    params: dict,
    tokens: Int[np.ndarray, "B L"] | Array,
    decoding: Decoding | None = None,
    *,
    seeds: Int[np.ndarray, "B"] | Array | None = None,
    mesh: Any = None,
) -> tuple[Int[Array, "B T"], Float[Array, "B"]]:
    """Generates from a T5 with a decoder, or from a language model.

    Args:
        sizes, params: of ``models.t5.T5`` or ``models.causal.CausalModel``.
        tokens: sources, padded at the end.
        decoding: how; greedy by default.
        seeds: one per row, for sampling; row numbers by default.
        mesh: the mesh of the parameters and the rows; None for one device.

    Returns:
        token ids without the start token, 0 after the end token (which is kept), and
        the sum of their log-probabilities (of the best beam: divided by its length
        penalty).
    """
    if isinstance(sizes, T5Sizes) and not sizes.decoder_layers:
        raise UserError("this T5 has no decoder, it cannot generate")
    decoding = decoding or Decoding()
    if seeds is None:
        seeds = np.arange(tokens.shape[0])
    seeds = jnp.asarray(seeds, jnp.uint32)
    return _generate(sizes, decoding, mesh, params, jnp.asarray(tokens), seeds)


def first_logprobs(
    sizes: T5Sizes | CausalSpec,
    params: dict,
    tokens: Int[np.ndarray, "B L"] | Array,
    *,
    mesh: Any = None,
) -> Float[Array, "B V"]:
    """Log-probabilities of the first token that would be generated, float32.

    Args:
        sizes, params, tokens, mesh: as of ``generate``.
    """
    return _first(sizes, mesh, params, jnp.asarray(tokens))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(sizes, mesh, params, tokens):
    model = nnx.merge(graphdef_of(sizes), nnx.State(params))
    with computing_on(mesh):
        fixed, cache, last = start(model, tokens, 1)
        logits, _ = step(model, fixed, cache, last, jnp.asarray(0), 1)
        return jax.nn.log_softmax(logits, axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(sizes, decoding, mesh, params, tokens, seeds):
    model = nnx.merge(graphdef_of(sizes), nnx.State(params))
    with computing_on(mesh):
        if decoding.beams > 1:
            return _beam(model, tokens, decoding)
        return _sample(model, tokens, decoding, seeds)


def start(
    model: T5 | CausalModel, tokens: Int[Array, "B L"], places: int
) -> tuple[dict[str, Any], dict[str, Any], Int[Array, "B"]]:
    """Encodes the source: what every step reads, and the cache.

    Returns:
        fixed: of a T5 the mask, and keys and values of the source per decoder layer.
        cache: keys and values, [layers, B, places, H, D]; of a T5 zeros.
        what the first step reads.
    """
    if isinstance(model, CausalModel):
        return causal.start(model, tokens, places)
    mask = token_mask(tokens, PAD_ID)
    encoded = model.encoder(tokens, mask=mask)
    keys, values = [], []
    for layer in model.decoder.layers:
        attention = layer.cross_attention
        keys.append(attention.split(attention.key(encoded)))
        values.append(attention.split(attention.value(encoded)))
    spec = model.spec
    shape = (spec.decoder_layers, tokens.shape[0], places, spec.heads, spec.d_kv)
    empty = jnp.zeros(shape, encoded.dtype)
    fixed = {"mask": mask, "keys": tuple(keys), "values": tuple(values)}
    first = jnp.full(tokens.shape[:1], START_ID, jnp.int32)
    return fixed, {"keys": empty, "values": empty}, first


def step(
    model: T5 | CausalModel,
    fixed: dict[str, Any],
    cache: dict[str, Any],
    last: Int[Array, "B"],
    position: Int[Array, ""],
    places: int,
) -> tuple[Float[Array, "B V"], dict[str, Any]]:
    """Logits of the token at ``position`` after ``last``, and the grown cache."""
    if isinstance(model, CausalModel):
        return causal.step(model, fixed, cache, last, position, places)
    decoder = model.decoder
    visible = (jnp.arange(places) <= position)[None, None, None, :]
    x = model.encoder.embed(last)[:, None]
    keys, values = cache["keys"], cache["values"]
    for i, layer in enumerate(decoder.layers):
        attention = layer.self_attention
        normal = layer.self_attention_norm(x)
        key = attention.split(attention.key(normal))[None]
        value = attention.split(attention.value(normal))[None]
        own: Any = layer.relative_bias or decoder.relative_bias
        bias = own.at(position, places)
        at = (i, 0, position, 0, 0)
        keys = jax.lax.dynamic_update_slice(keys, key, at)
        values = jax.lax.dynamic_update_slice(values, value, at)
        x = x + _mixed(attention, normal, keys[i], values[i], visible, bias)
        x = x + _mixed(
            layer.cross_attention,
            layer.cross_attention_norm(x),
            fixed["keys"][i],
            fixed["values"][i],
            fixed["mask"],
            None,
        )
        x = x + layer.ffn(layer.ffn_norm(x))
    hidden = decoder.final_norm(x)[:, 0]
    return model.logits(hidden), {"keys": keys, "values": values}


def _mixed(
    attention: MultiHeadAttention,
    x: Float[Array, "B 1 E"],
    keys: Float[Array, "B L H D"],
    values: Float[Array, "B L H D"],
    mask: Bool[Array, "..."],
    bias: Array | None,
) -> Float[Array, "B 1 E"]:
    query = attention.split(attention.query(x))
    mixed = attend(query, keys, values, bias=bias, mask=mask)
    return attention.out(mixed.reshape(*x.shape[:2], -1))


def filtered(
    logits: Float[Array, "B V"], top_k: int | None, top_p: float | None
) -> Float[Array, "B V"]:
    """Logits with the tokens that may not be sampled at -1e30.

    Top-k first, then top-p of what is left, as transformers applies them. The token
    that crosses ``top_p`` is kept.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < lowest, MASKED, logits)
    if top_p is not None and top_p < 1:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        share = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        kept = jnp.where(before < top_p, ordered, jnp.inf)
        logits = jnp.where(logits < kept.min(-1, keepdims=True), MASKED, logits)
    return logits


def _sample(model: T5 | CausalModel, tokens: Array, how: Decoding, seeds: Array):
    rows = tokens.shape[0]
    fixed, cache, first = start(model, tokens, how.max_tokens)
    keys = jax.vmap(jax.random.key)(seeds)

    def choose(logits, position):
        if how.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        allowed = filtered(logits / how.temperature, how.top_k, how.top_p)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        return jax.vmap(jax.random.categorical)(step_keys, allowed)

    def more(state):
        return (state["position"] < how.max_tokens) & ~jnp.all(state["ended"])

    def advance(state):
        position, ended = state["position"], state["ended"]
        logits, grown = step(
            model, fixed, state["cache"], state["last"], position, how.max_tokens
        )
        chosen = jnp.where(ended, PAD_ID, choose(logits, position))
        logp = jax.nn.log_softmax(logits, axis=-1)
        gain = jnp.take_along_axis(logp, chosen[:, None], axis=-1)[:, 0]
        chosen = chosen.astype(jnp.int32)
        return {
            "position": position + 1,
            "last": chosen,
            "out": state["out"].at[:, position].set(chosen),
            "score": state["score"] + jnp.where(ended, 0.0, gain),
            "ended": ended | (chosen == how.eos_id),
            "cache": grown,
        }

    state = {
        "position": jnp.asarray(0),
        "last": first,
        "out": jnp.full((rows, how.max_tokens), PAD_ID, jnp.int32),
        "score": jnp.zeros((rows,), jnp.float32),
        "ended": jnp.zeros((rows,), bool),
        "cache": cache,
    }
    state = jax.lax.while_loop(more, advance, state)
    return state["out"], state["score"]


def _beam(model: T5 | CausalModel, tokens: Array, how: Decoding):
    """Beam search: ``beams`` running and ``beams`` finished hypotheses per row.

    A step extends the running ones by their 2 x beams best tokens; those that end
    compete with the finished ones by penalised score, the others run on. It stops when
    no running one can overtake the worst finished one of its row any more.
    """
    rows, beams = tokens.shape[0], how.beams
    places = how.max_tokens
    fixed, cache, begin = start(model, jnp.repeat(tokens, beams, axis=0), places)
    sizes: Any = getattr(model.spec, "backbone", model.spec)
    size = sizes.vocab_size
    first = jnp.where(jnp.arange(beams) == 0, 0.0, MASKED)

    def penalised(score, length):
        return score / length.astype(jnp.float32) ** how.length_penalty

    def more(state):
        # Log-probabilities only fall; a positive penalty forgives most at full length.
        length = how.max_tokens if how.length_penalty > 0 else state["position"] + 1
        reach = penalised(state["score"].max(-1), jnp.asarray(length))
        open_rows = reach > state["done_score"].min(-1)
        return (state["position"] < how.max_tokens) & jnp.any(open_rows)

    def advance(state):
        position = state["position"]
        logits, grown = step(
            model, fixed, state["cache"], state["last"].reshape(-1), position, places
        )
        logp = jax.nn.log_softmax(logits, axis=-1).reshape(rows, beams, size)
        total = (state["score"][..., None] + logp).reshape(rows, beams * size)
        score, index = jax.lax.top_k(total, 2 * beams)
        parent, token = index // size, (index % size).astype(jnp.int32)
        out = jnp.take_along_axis(state["out"], parent[..., None], axis=1)
        out = out.at[:, :, position].set(token)
        full = position + 1 >= how.max_tokens
        ends = token == how.eos_id
        # Only the first `beams` candidates may finish, as in transformers.
        ranked = jnp.arange(2 * beams) < beams
        closing = jnp.where(
            (ends | full) & ranked, penalised(score, position + 1), MASKED
        )
        pool = jnp.concatenate([state["done_score"], closing], axis=1)
        done_score, best = jax.lax.top_k(pool, beams)
        pool_out = jnp.concatenate([state["done"], out], axis=1)
        done = jnp.take_along_axis(pool_out, best[..., None], axis=1)
        running = jnp.where(ends, MASKED, score)
        kept, chosen = jax.lax.top_k(running, beams)
        origin = jnp.take_along_axis(parent, chosen, axis=1)
        flat = (jnp.arange(rows)[:, None] * beams + origin).reshape(-1)
        return {
            "position": position + 1,
            "last": jnp.take_along_axis(token, chosen, axis=1),
            "out": jnp.take_along_axis(out, chosen[..., None], axis=1),
            "score": kept,
            "done": done,
            "done_score": done_score,
            "cache": jax.tree.map(lambda leaf: leaf[:, flat], grown),
        }

    blank = jnp.full((rows, beams, how.max_tokens), PAD_ID, jnp.int32)
    state = {
        "position": jnp.asarray(0),
        "last": begin.reshape(rows, beams),
        "out": blank,
        "score": jnp.broadcast_to(first, (rows, beams)),
        "done": blank,
        "done_score": jnp.full((rows, beams), MASKED),
        "cache": cache,
    }
    state = jax.lax.while_loop(more, advance, state)
    return state["done"][:, 0], state["done_score"][:, 0]
