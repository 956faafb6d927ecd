"""What is compiled to score or encode: functions of parameters and tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from distill_jax.batches import DuoBatch, PairBatch, Targets
from distill_jax.models.linear import quantised
from distill_jax.models.pretrained import abstract_params, graphdef_of
from distill_jax.runtime import placement
from distill_jax.runtime.sharding import (
    batch_sharding,
    param_shardings,
    path_of,
)


@functools.lru_cache(maxsize=64)
def applied(spec: Any, what: str, mesh: Any) -> Callable[[dict, Any], Any]:
    """The jitted forward pass of a spec; jax keeps one compilation per shape."""
    return jax.jit(_forward(spec, what, mesh))


def _forward(spec: Any, what: str, mesh: Any) -> Callable[[dict, Any], Any]:
    forward = {
        "pairs": _score_pairs,
        "duo": _score_duo,
        "sides": lambda module, tokens: module.score(docs=tokens[1], queries=tokens[0]),
        "query": lambda module, tokens: module.encode_queries(tokens),
        "doc": lambda module, tokens: module.encode_docs(tokens),
    }[what]
    graphdef = graphdef_of(spec)

    def apply(params, tokens):
        module = nnx.merge(graphdef, nnx.State(params))
        with placement.computing_on(mesh):
            values = forward(module, tokens)
        return jax.tree.map(
            lambda x: x.astype(jnp.float32) if jnp.issubdtype(x, jnp.floating) else x,
            values,
        )

    return apply


def forward_flops(spec: Any, what: str, rows: int, length: int) -> float:
    """FLOPs of ``lower_forward``'s program on all devices, before it is optimised."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    with placement.counted():
        lowered = jax.jit(_forward(spec, what, None)).lower(
            abstract_params(spec), tokens
        )
    return float((lowered.cost_analysis() or {}).get("flops", float("nan")))


def lower_forward(spec: Any, what: str, rows: int, length: int, mesh: Any) -> Any:
    """The program that scores or encodes ``rows`` sequences, to be compiled.

    Args:
        what: "pairs", "duo", "query" or "doc".

    Returns:
        ``jax.stages.Lowered`` of ``(params, tokens int32[rows, length]) -> values``.
    """
    params = jax.eval_shape(functools.partial(narrowed, spec), abstract_params(spec))
    places = param_shardings(params, mesh)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        params,
        places,
    )
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    tokens = jax.ShapeDtypeStruct(
        tokens.shape, tokens.dtype, sharding=batch_sharding(tokens, mesh)
    )
    return applied(spec, what, mesh).lower(params, tokens)


def narrowed(spec: Any, params: dict) -> dict:
    """Layers' matrices in the dtype of their products: half of the memory in bfloat16.

    They are cast at each use anyway; in 8 bits only here, once. Tables and heads
    stay: scores are read from them in float32.
    """
    dtype = getattr(spec.backbone, "dtype", "float32")
    if dtype == "float32":
        return params

    def narrow(keys: Any, leaf: Any) -> Any:
        path = path_of(keys)
        if ".layers." not in f".{path}" or not path.endswith(".kernel"):
            return leaf
        if dtype != "int8":
            return leaf.astype(dtype)
        reads_stream = path.split(".")[-2] not in ("out", "down", "wo")
        return quantised(leaf, balanced=reads_stream)

    return jax.tree_util.tree_map_with_path(narrow, params)


def _no_targets(count: int) -> Targets:
    ones = jnp.ones((count, 1), bool)
    return Targets(labels=jnp.zeros((count, 1), jnp.float32), where=ones)


def _score_pairs(module: Any, tokens: Int[Array, "M L"]) -> Float[Array, "M"]:
    batch = PairBatch(tokens=tokens[:, None], targets=_no_targets(len(tokens)))
    return module(batch)[:, 0]


def _score_duo(module: Any, tokens: Int[Array, "M L"]) -> Float[Array, "M"]:
    batch = DuoBatch(tokens=tokens[:, None], targets=_no_targets(len(tokens)))
    return module(batch)[:, 0]
