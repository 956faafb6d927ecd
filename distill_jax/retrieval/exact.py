"""Exact nearest neighbours on the devices: the oracle of every other index.

Docs are read block by block (from memory or from a memory map larger than it), laid
over all devices of all hosts, and multiplied with tiles of queries; each device keeps
a running top k of its own docs. The [Q, N] scores never exist, nothing is sent between
devices before the end, and the corpus is read once however many queries there are.

Ties are exact too. Within a block the docs of a device are in descending order of
their ids, so that "the lower position first" is what a run asks for; across blocks
and devices the id's rank is the second sort key.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.retrieval import folder
from distill_jax.retrieval.postings import check_k
from distill_jax.retrieval.ties import rows_of, tie_ranks
from distill_jax.retrieval.vectors import as_float32, check_docs, check_queries
from distill_jax.runs.run import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """All docs are scored: ``Exact.build(vectors, doc_ids).search(queries, k)``.

    Attributes:
        vectors: [N, D] array, memory map, or anything that slices to one.
        doc_ids: N ids.
        ranks: ``tie_ranks`` of the ids.
        similarity: "dot" or "cosine".
        mesh: the devices, all axes taken together; None for all devices.
        recall_target: None for exact search; below 1.0 for ``jax.lax.approx_max_k``,
            which is faster on TPUs only.
    """

    vectors: Any
    doc_ids: Sequence[str]
    ranks: np.ndarray
    similarity: str = "dot"
    mesh: Any = None
    recall_target: float | None = None

    @classmethod
    def build(
        cls,
        vectors: Any,
        doc_ids: Sequence[str] | None = None,
        *,
        similarity: str = "dot",
        mesh: Any = None,
        recall_target: float | None = None,
    ) -> Exact:
        """Checks the vectors; there is nothing else to build.

        Raises:
            UserError: see ``vectors.check_docs``.
        """
        doc_ids = check_docs(vectors, doc_ids, similarity)
        return cls(
            vectors, doc_ids, tie_ranks(doc_ids), similarity, mesh, recall_target
        )

    def search(
        self,
        query_vectors: Any,
        k: int,
        query_ids: Sequence[str] | None = None,
        *,
        query_tile: int | None = None,
        doc_block: int | None = None,
    ) -> Run:
        """The k docs of greatest similarity of each query.

        Every process of a multi-process run calls this with the same arguments, reads
        only its own devices' docs, and gets the whole run.

        Args:
            query_vectors: [Q, D].
            k: docs a query; all of them if the corpus has fewer.
            query_ids: "0", "1", ... for None.
            query_tile, doc_block: queries and docs a device multiplies at once; None
                chooses by the kind of device.

        Raises:
            UserError: see ``vectors.check_queries``.
        """
        queries, query_ids = check_queries(
            query_vectors, self.vectors.shape[1], query_ids
        )
        k = min(check_k(k), len(self.ranks))
        if not len(queries):
            empty = np.zeros((0, k))
            return Run(
                query_ids,
                empty.astype(np.int32),
                empty.astype(np.float32),
                self.doc_ids,
            )
        devices = _Devices(self.mesh)
        tile = devices.tile(len(queries), query_tile)
        block = devices.block(len(self.ranks), k, tile, doc_block)
        step = _step(
            devices.mesh, k, devices.group, self.similarity, self.recall_target
        )
        tiles = [
            devices.replicate(_pad_rows(queries[start : start + tile], tile))
            for start in range(0, len(queries), tile)
        ]
        states = [devices.empty(tile, k)] * len(tiles)
        waiting = None
        for start in range(0, len(self.ranks), block * devices.count):
            docs, ranks = devices.docs(self.vectors, self.ranks, start, block)
            states = [
                step(state, queries_, docs, ranks)
                for state, queries_ in zip(states, tiles, strict=True)
            ]
            # Two blocks at a time: one computes while the next is read.
            if waiting is not None:
                waiting.block_until_ready()
            waiting = states[-1][0]
        merged = [devices.merge(state, k) for state in states]
        scores = np.concatenate([scores for scores, _ in merged])[: len(queries)]
        found = np.concatenate([ranks for _, ranks in merged])[: len(queries)]
        return Run(query_ids, rows_of(self.ranks, found), scores, self.doc_ids)

    def save(self, directory: str | Path) -> None:
        """Writes vectors and ids as a folder."""
        arrays = {
            "vectors": np.asarray(self.vectors[:]),
            **folder.pack_strings("ids", self.doc_ids),
        }
        folder.write(directory, "exact", arrays, {"similarity": self.similarity})

    @classmethod
    def load(cls, directory: str | Path, mesh: Any = None) -> Exact:
        """Reads a saved folder; the vectors stay on disk."""
        with folder.described(directory):
            arrays, meta = folder.read(directory, "exact")
            doc_ids = folder.unpack_strings("ids", arrays)
            return cls.build(
                arrays["vectors"], doc_ids, similarity=meta["similarity"], mesh=mesh
            )


class _Devices:
    """Placement of the docs on devices, and block sizes."""

    def __init__(self, mesh: Any):
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        devices = np.array(jax.devices() if mesh is None else mesh.devices).reshape(-1)
        self.mesh = Mesh(devices, ("docs",))
        self.count = len(devices)
        self.cpu = devices[0].platform == "cpu"
        # Number of columns that the first stage of top k represents by their maximum.
        self.group = 32 if self.cpu else 128
        self._sharded = NamedSharding(self.mesh, PartitionSpec("docs"))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._make = jax.make_array_from_callback

    def tile(self, queries: int, asked: int | None) -> int:
        """Queries at once: a power of two, so that few shapes are compiled."""
        limit = asked or (256 if self.cpu else 4096)
        return min(limit, 1 << max(3, (queries - 1).bit_length()))

    def block(self, docs: int, k: int, tile: int, asked: int | None) -> int:
        """Docs a device scores at once."""
        scores = (16 if self.cpu else 512) << 20
        limit = asked or max(scores // (4 * tile), 4096)
        each = -(-docs // self.count)
        if each < limit:  # one block: to a power of two, for the same reason
            limit = min(limit, 1 << max(3, (each - 1).bit_length()))
        return max(limit, k)

    def replicate(self, values: np.ndarray) -> Any:
        return self._make(values.shape, self._replicated, lambda index: values[index])

    def empty(self, tile: int, k: int) -> tuple[Any, Any]:
        """The running top k before the first block: [devices, tile, k]."""
        shape = (self.count, tile, k)

        def fill(value, dtype):
            def make(index):
                return np.full((1, tile, k), value, dtype)

            return self._make(shape, self._sharded, make)

        return fill(-np.inf, np.float32), fill(-1, np.int32)

    def docs(
        self, vectors: Any, ranks: np.ndarray, start: int, block: int
    ) -> tuple[Any, Any]:
        """The next ``block`` docs of each device; hosts read only their own."""
        width = vectors.shape[1]
        orders: dict[int, np.ndarray] = {}

        def rows(index) -> slice:
            begin = start + (index[0].start or 0)
            return slice(min(begin, len(ranks)), min(begin + block, len(ranks)))

        def order(index) -> np.ndarray:
            here = rows(index)
            if here.start not in orders:
                orders[here.start] = np.argsort(-ranks[here])
            return orders[here.start]

        def read(index):
            values = np.asarray(vectors[rows(index)])
            # A CPU gains nothing from narrow types and would lose the queries' bits.
            if self.cpu or values.dtype.name not in ("float16", "bfloat16"):
                values = as_float32(values)
            return _pad_rows(values[order(index)], block)

        def places(index):
            sorted_ranks = ranks[rows(index)][order(index)]
            return np.pad(
                sorted_ranks, (0, block - len(sorted_ranks)), constant_values=-1
            )

        total = block * self.count
        return (
            self._make((total, width), self._sharded, read),
            self._make((total,), self._sharded, places),
        )

    def merge(self, state: tuple[Any, Any], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Every device's top k to the whole's, on every host."""
        import jax

        scores, ranks = _merge_devices(k, self._replicated)(*state)
        if jax.process_count() > 1:
            scores, ranks = scores.addressable_data(0), ranks.addressable_data(0)
        return np.asarray(scores), np.asarray(ranks)


def _pad_rows(values: np.ndarray, rows: int) -> np.ndarray:
    if len(values) == rows:
        return values
    return np.concatenate(
        [values, np.zeros((rows - len(values), values.shape[1]), values.dtype)]
    )


def best(scores, ranks, k):
    """The k best by (score, rank), both descending."""
    import jax

    scores, ranks = jax.lax.sort((-scores, -ranks), num_keys=2)
    return -scores[..., :k], -ranks[..., :k]


@functools.lru_cache(maxsize=32)
def _merge_devices(k: int, sharding: Any):
    import jax
    import jax.numpy as jnp

    def merge(scores, ranks):
        tile = scores.shape[1]
        scores, ranks = (
            jnp.moveaxis(x, 0, 1).reshape(tile, -1) for x in (scores, ranks)
        )
        return best(scores, ranks, k)

    return jax.jit(merge, out_shardings=(sharding, sharding))


@functools.lru_cache(maxsize=32)
def _step(mesh: Any, k: int, group: int, similarity: str, recall: float | None):
    """Compiled: (running top k, queries, docs, ranks) to the new running top k."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from distill_jax.ops import similarity as similarities
    from distill_jax.ops import topk

    def score(queries, docs):
        if similarity == "cosine":
            queries = similarities.normalise(queries)
            docs = similarities.normalise(docs)
        if docs.dtype == jnp.float32:
            precision = jax.lax.Precision.HIGHEST  # tf32 would reorder near ties
        else:
            precision, queries = None, queries.astype(docs.dtype)
        scores = jnp.einsum(
            "qd,nd->qn",
            queries,
            docs,
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        return jnp.where(scores == 0, 0.0, scores)  # -0.0 ties with 0.0

    def step(state, queries, docs, ranks):
        scores = jnp.where(ranks >= 0, score(queries, docs), -jnp.inf)
        if recall is None:
            values, positions = topk.top_k(scores, k, block=group)
        else:
            values, positions = jax.lax.approx_max_k(scores, k, recall_target=recall)
        found = jnp.where(jnp.isneginf(values), -1, ranks[positions])
        old_values, old_found = state[0][0], state[1][0]
        scores, ranks = best(
            jnp.concatenate([old_values, values], -1),
            jnp.concatenate([old_found, found], -1),
            k,
        )
        return scores[None], ranks[None]

    sharded, whole = PartitionSpec("docs"), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=((sharded, sharded), whole, sharded, sharded),
            out_specs=(sharded, sharded),
        )
    )
