"""Running a student over many rows: bucketed, jitted once per shape, no sync.

Shared by teaching (labels), retrieval (embeddings), the predictor and the exports'
verification, so that a pair gets the same score in all of them.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from distill_jax.inference.programs import applied, narrowed
from distill_jax.inference.vectors import form_of
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.runtime import placement
from distill_jax.runtime.compiled import is_out_of_memory
from distill_jax.runtime.sharding import (
    batch_sharding,
    shard_params,
)
from distill_jax.text.buckets import Batch, buckets_up_to, plan
from distill_jax.text.passages import parted

_log = logging.getLogger(__name__)

Progress = Callable[[int], Any]


def score_features(
    pretrained: Pretrained,
    features: Any,
    *,
    mesh: Any = None,
    tokens_per_batch: int | None = None,
    compact: bool = False,
    progress: Progress | None = None,
    **rows: np.ndarray,
) -> np.ndarray:
    """Scores of M pairs by a reranker, or of M (query, doc, doc) triples by a duo.

    Args:
        pretrained: a reranker, a pairwise reranker or a query generator.
        features: ``text.features.Features`` of the student's template; of a generator
            ``models.texts.SidedFeatures``.
        mesh: devices; None runs on one.
        tokens_per_batch: padded tokens computed at once; None chooses by platform.
        compact: small shapes for small requests, at the price of more compilations.
        progress: called with the number of pairs just finished.
        rows: int[M] per field: ``query=..., document=...``, or ``query=...,
            document0=..., document1=...``.

    Returns:
        float32[M], raw logits in the order of the rows.
    """
    (what,) = pretrained.spec.inputs
    most = getattr(pretrained.spec, "passages", 1)
    first = None
    if most > 1 and len(next(iter(rows.values()))):
        features, rows, first = parted(features, most, rows)
    count = len(next(iter(rows.values())))
    scores = np.zeros(count, np.float32)
    work = _work(pretrained, features, rows, mesh, tokens_per_batch, compact)
    apply = applied(pretrained.spec, what, mesh)
    for batch, values in _run(pretrained, apply, work, features, rows, mesh):
        where = batch.where
        scores[batch.rows[where]] = values[where]
        if progress is not None:
            done = batch.rows[where]
            progress(len(done) if first is None else int(np.isin(done, first).sum()))
    return scores if first is None else np.maximum.reduceat(scores, first)


def encode_features(
    pretrained: Pretrained,
    side: str,
    features: Any,
    rows: np.ndarray,
    *,
    mesh: Any = None,
    tokens_per_batch: int | None = None,
    compact: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Encodes texts, yielding them batch by batch in the order of computation.

    Args:
        pretrained: a dual encoder, ColBERT or SPLADE.
        side: "query" or "doc".
        features: ``text.features.Features`` of that side's template over ``text``.
        rows: int[M], rows of the features to encode.
        mesh, tokens_per_batch, compact, progress: as in ``score_features``.

    Yields:
        ``(positions, vectors)``: positions int[n] into ``rows`` (each exactly once
        over all batches); vectors float32[n, D] of a dual encoder, ``Ragged`` of
        ColBERT, a scipy CSR matrix [n, V] of SPLADE.
    """
    spec, form = pretrained.spec, form_of(pretrained.spec)
    fields = {"text": np.asarray(rows)}
    # ColBERT fills every query up to one length.
    filled = side == "query" and getattr(spec, "expand", False)
    length = spec.query_length if filled else None
    work = _work(pretrained, features, fields, mesh, tokens_per_batch, compact, length)
    apply = applied(spec, side, mesh)
    for batch, values in _run(pretrained, apply, work, features, fields, mesh):
        where = batch.where
        yield batch.rows[where], form.collect(values, where)
        if progress is not None:
            progress(int(where.sum()))


def encode_all(
    pretrained: Pretrained, side: str, features: Any, rows: np.ndarray, **options: Any
) -> Any:
    """``encode_features``, gathered in the order of ``rows``.

    Returns:
        float32[M, D]; a list of float32[tokens, D] (ColBERT); a CSR matrix (SPLADE).
    """
    positions, parts = [], []
    for position, part in encode_features(pretrained, side, features, rows, **options):
        positions.append(position)
        parts.append(part)
    form = form_of(pretrained.spec)
    if not parts:
        return form.empty(pretrained.spec)
    return form.join(parts, np.argsort(np.concatenate(positions), kind="stable"))


def _work(
    pretrained, features, rows, mesh, tokens_per_batch, compact, length=None
) -> list[Batch]:
    lengths = features.lengths(**rows)
    if not len(lengths):
        return []
    devices = _data_devices(mesh)
    budget = tokens_per_batch or default_tokens_per_batch(mesh) * devices
    if length is not None:
        lengths = np.full(len(lengths), length)
        buckets: Sequence[int] = (length,)
    else:
        # The template's own limit ends the ladder: the same shapes in every call.
        most = features.template.max_tokens(pretrained.tokenizer)
        buckets = buckets_up_to(most or int(lengths.max()))
    batches = plan(lengths, budget, buckets, multiple_of=devices)
    return [_compacted(batch, devices) for batch in batches] if compact else batches


def _compacted(batch: Batch, multiple_of: int) -> Batch:
    """The batch in the smallest of the sizes 1, 4, 16, ... that holds its items."""
    count = int(batch.where.sum())
    size = multiple_of
    while size < count:
        size *= 4
    if size >= batch.size:
        return batch
    rows = np.full(size, -1, np.int32)
    rows[:count] = batch.rows[batch.where]
    return Batch(rows, batch.length, size)


def default_tokens_per_batch(mesh: Any = None) -> int:
    """Enough to fill one device, little enough for its cache or memory."""
    return 1024 if placement.platform(mesh) == "cpu" else 1 << 17


def _data_devices(mesh: Any) -> int:
    if mesh is None:
        return 1
    return int(np.prod([mesh.shape.get(axis, 1) for axis in ("data", "fsdp")]))


def _run(pretrained, apply, work, features, rows, mesh):
    """Yields (batch, values on the host), one batch later than the dispatch."""
    params = placed(pretrained, mesh)
    waiting = None
    for batch in work:
        # Empty places repeat the first item: padding rows would be all masked.
        index = np.where(batch.where, batch.rows, batch.rows[0])
        taken = {name: np.asarray(values)[index] for name, values in rows.items()}
        tokens = features.tokens(batch.length, **taken)
        result = _dispatched(apply, params, tokens, mesh)
        if waiting is not None:
            yield waiting[0], _fetched(waiting[1])
        waiting = batch, result
    if waiting is not None:
        yield waiting[0], _fetched(waiting[1])


_at_once: dict[Any, int] = {}
"""Sequences of a batch of a shape that are computed at once, where not all fit."""


def _dispatched(apply: Any, params: Any, tokens: Any, mesh: Any) -> list[Any]:
    """A batch's values, computed asynchronously, in as few parts as fit on the devices.

    Raises:
        UserError: not even one sequence a device fits.
    """
    place = functools.partial(_on_devices, mesh=mesh)
    leaves = jax.tree.leaves(tokens)
    shape = apply, tuple(np.shape(leaf) for leaf in leaves)
    rows, ways = len(leaves[0]), _data_devices(mesh)
    known = shape in _at_once
    while True:
        size = _at_once.setdefault(shape, rows)
        try:
            values = []
            for start in range(0, rows, size):
                part = [leaf[start : start + size] for leaf in leaves]
                part = jax.tree.unflatten(jax.tree.structure(tokens), part)
                values.append(apply(params, jax.tree.map(place, part)))
            # Once a shape: later a lack of memory would show where values are read.
            return values if known else jax.block_until_ready(values)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size <= ways or jax.process_count() > 1:
                raise UserError(
                    f"{size} sequences of {leaves[0].shape[-1]} tokens at once do not "
                    f"fit on {ways} devices",
                    "spread the model: --gin.MESH='fsdp=...', or shorten DOC_LENGTH",
                ) from error
            _at_once[shape] = max(1, size // 2 // ways) * ways
            _log.warning(
                "%d sequences do not fit on a device: %d are computed at once",
                size // ways,
                _at_once[shape] // ways,
            )


def _on_devices(tokens: np.ndarray, mesh: Any) -> Array:
    tokens = np.asarray(tokens, np.int32)
    if mesh is None:
        return jnp.asarray(tokens)
    # Every process holds the whole batch and takes the rows of its own devices.
    sharding = batch_sharding(tokens, mesh)
    return jax.make_array_from_callback(
        tokens.shape, sharding, lambda index: tokens[index]
    )


def _fetched(parts: list[Any]) -> Any:
    """The parts of a batch as one, on the host."""

    def fetch(value):
        if value.is_fully_addressable:
            return np.asarray(value)
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(value, tiled=True))

    values = [jax.tree.map(fetch, part) for part in parts]
    if len(values) == 1:
        return values[0]
    return jax.tree.map(lambda *each: np.concatenate(each), *values)


_placed: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def placed(pretrained: Pretrained, mesh: Any = None) -> dict:
    """The parameters on the devices, put there once for a model and a mesh."""
    meshes = _placed.setdefault(pretrained, {})
    if mesh not in meshes:
        params = narrowed(pretrained.spec, pretrained.params)
        if mesh is None:
            meshes[mesh] = jax.tree.map(jnp.asarray, params)
        else:
            meshes[mesh] = shard_params(params, mesh)
    return meshes[mesh]
