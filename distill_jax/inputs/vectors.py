"""Batches whose documents are vectors: rows come from the host, vectors never leave.

The table of a collection's vectors is placed on the devices once; a batch has row
numbers, and the vectors of its lists are gathered there. No document is read again,
so lists of hundreds cost what their queries cost.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_jax.batches import VectorBatch
from distill_jax.inputs.feed import Featurizer
from distill_jax.runtime import sharding


class VectorFeaturizer:
    """Row numbers of a batch to ``VectorBatch``.

    Args:
        queries: the featurizer of the query side; its ``doc`` is not read.
        vectors: float[M, D] of the collection, or a memory map. With several processes
            each gathers its own lists' rows on the host, from the map that all read.
        mesh: devices of the training.
    """

    def __init__(self, queries: Featurizer, vectors: Any, mesh: Mesh):
        self._queries, self._mesh, self._vectors = queries, mesh, vectors
        self._table: Any = None
        if jax.process_count() == 1:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._table = jax.device_put(np.asarray(vectors, np.float32), everywhere)

    def __call__(self, rows: dict[str, Any], mine: slice = slice(None)) -> VectorBatch:
        tokens, targets = self._queries.queries(rows, mine)
        assert targets.doc_rows is not None  # lists have rows
        at = np.maximum(np.asarray(targets.doc_rows), 0)
        if self._table is None:
            vectors: Any = np.asarray(self._vectors[at.ravel()], np.float32)
            vectors = vectors.reshape(*at.shape, -1)
        else:
            vectors = _gather(sharding.batch_sharding(at, self._mesh))(self._table, at)
        return VectorBatch(query_tokens=tokens, doc_vectors=vectors, targets=targets)


@functools.lru_cache(maxsize=8)
def _gather(place: Any) -> Any:
    return jax.jit(lambda table, at: jnp.take(table, at, axis=0), out_shardings=place)
