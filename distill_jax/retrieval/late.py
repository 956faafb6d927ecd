"""Late interaction over a corpus (ColBERT): cheap candidates, exact MaxSim.

Candidates are the neighbours of a query's fixed-dimensional encoding (``muvera.py``)
among those of the docs; they are scored again by MaxSim over all their tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.retrieval import folder, maxsim
from distill_jax.retrieval.exact import Exact, best
from distill_jax.retrieval.muvera import FixedDimensional
from distill_jax.retrieval.postings import check_k
from distill_jax.retrieval.residual import Codec, Codes
from distill_jax.retrieval.scann import Scann
from distill_jax.retrieval.ties import rows_of, tie_ranks
from distill_jax.retrieval.token_vectors import TokenVectors
from distill_jax.retrieval.vectors import as_float32, blocks
from distill_jax.runs.run import Run

# Queries that an exhaustive search scores against a tile of docs at once.
_QUERIES = 32
_SAMPLE = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class LateInteraction:
    """``LateInteraction.build(docs, ids).search(queries, k)``; docs are [T_i, D] sets.

    Attributes:
        tokens: the docs' token vectors, as they are stored.
        encoding: how token sets become single vectors.
        index: ``Exact`` or ``Scann`` over the docs' encodings.
        doc_ids, ranks: as in ``Exact``.
        report: build seconds, bytes a token, what the compression lost.
        source: digest of the model and texts of the vectors, or "".
    """

    tokens: TokenVectors
    encoding: FixedDimensional
    index: Any
    doc_ids: Sequence[str]
    ranks: np.ndarray
    report: dict[str, Any]
    source: str = ""

    @classmethod
    def build(
        cls,
        docs: Any,
        doc_ids: Sequence[str] | None = None,
        *,
        compression: str | int | None = "float16",
        index: str = "exact",
        repetitions: int = 20,
        bits: int = 4,
        projection: int | None = 16,
        seed: int = 0,
        source: str = "",
        mesh: Any = None,
        **scann: Any,
    ) -> LateInteraction:
        """Encodes the docs for the search of candidates, and compresses their tokens.

        Args:
            docs: a list of float [T_i, D], (flat [T, D], offsets [N + 1]), or
                ``TokenVectors``; unit length if residual codes are to be used.
            compression: None keeps the vectors as they are, "float16", or the bits of
                a dimension's residual (2 is PLAID's usual choice).
            index: of the encodings, "exact" or "scann".
            repetitions, bits, projection, seed: see ``muvera.FixedDimensional``; memory
                is ``4 N repetitions 2^bits projection`` bytes.
            source: digest of weights and corpus, which ``load`` can ask for.
            mesh: devices of the exact search of candidates.
            scann: options of ``Scann.build``.

        Raises:
            UserError: no docs, a nan or an infinity (with its doc), ids or dimensions
                that do not fit, unknown options.
        """
        started = time.perf_counter()
        docs = TokenVectors.of(docs)
        if not len(docs):
            raise UserError("late interaction over no docs", "encode the corpus first")
        if doc_ids is None:
            doc_ids = [str(row) for row in range(len(docs))]
        if len(doc_ids) != len(docs):
            raise UserError(
                f"token vectors of {len(docs)} docs but {len(doc_ids)} doc ids",
                "the vectors are of another corpus; encode this one",
            )
        _check_finite(docs, "doc", doc_ids)
        encoding = FixedDimensional(
            width=docs.width,
            repetitions=repetitions,
            bits=bits,
            projection=projection,
            seed=seed,
        )
        encoded = encoding.encode(docs, "doc")
        if index == "exact":
            searched: Any = Exact.build(encoded, doc_ids, mesh=mesh)
        elif index == "scann":
            searched = Scann.build(encoded, doc_ids, **scann)
        else:
            raise UserError(f"no index {index!r}", "choose 'exact' or 'scann'")
        stored, lost = _compress(docs, compression, seed)
        report = {
            "docs": len(docs),
            "tokens": len(docs.values),
            "candidate_dimensions": encoding.dimension,
            "build_s": time.perf_counter() - started,
            **lost,
        }
        ranks = tie_ranks(doc_ids)
        return cls(stored, encoding, searched, doc_ids, ranks, report, source)

    def search(
        self,
        queries: Any,
        k: int,
        query_ids: Sequence[str] | None = None,
        *,
        candidates: int | None = None,
        exhaustive: bool = False,
    ) -> Run:
        """The k docs of greatest MaxSim among the candidates of each query.

        Args:
            queries: token vectors in any form that ``build`` takes.
            candidates: docs that are scored by MaxSim; None takes the greater of 1000
                and 10 k. As many as there are docs means all of them.
            exhaustive: score all docs, in tiles; nothing is approximated but what the
                stored vectors lost.

        A query without tokens finds nothing: rows of -1.

        Raises:
            UserError: another dimension than the docs', a nan or an infinity.
        """
        queries = TokenVectors.of(queries)
        if query_ids is None:
            query_ids = [str(row) for row in range(len(queries))]
        if len(queries) != len(query_ids):
            raise UserError(f"{len(queries)} queries but {len(query_ids)} query ids")
        if len(queries.values) and queries.width != self.tokens.width:
            raise UserError(
                f"query tokens of dimension {queries.width}, the index has "
                f"{self.tokens.width}",
                "encode queries and docs with the same model",
            )
        _check_finite(queries, "query", query_ids)
        k = min(check_k(k), len(self.doc_ids))
        wanted = max(k, candidates or max(1000, 10 * k))
        if not len(queries.values):
            shape = (len(queries), k)
            rows, scores = np.full(shape, -1), np.full(shape, -np.inf)
        elif exhaustive or wanted >= len(self.doc_ids):
            rows, scores = self._search_all(queries, k)
        else:
            encoded = self.encoding.encode(queries, "query")
            rows = self.index.search(encoded, wanted).rows
            scores = maxsim.score_lists(queries, self.tokens, rows)
        rows = np.where((queries.lengths == 0)[:, None], -1, rows)
        return Run(tuple(query_ids), rows, scores, self.doc_ids).top(k)

    def _search_all(self, queries: TokenVectors, k: int) -> tuple[Any, Any]:
        import jax.numpy as jnp

        padded, where = maxsim.pad_queries(queries)
        missing = -len(padded) % _QUERIES
        padded = np.pad(padded, [(0, missing), (0, 0), (0, 0)])
        where = np.pad(where, [(0, missing), (0, 0)])
        groups = range(0, len(padded), _QUERIES)
        empty = (
            jnp.full((_QUERIES, k), -jnp.inf),
            jnp.full((_QUERIES, k), -1, jnp.int32),
        )
        states = [empty for _ in groups]
        # Docs outside, queries inside: stored vectors are read and decoded once.
        for rows in maxsim.tiles_of(self.tokens):
            ranks = jnp.asarray(self.ranks[rows])[None].repeat(_QUERIES, 0)
            for place, start in enumerate(groups):
                part = slice(start, start + _QUERIES)
                scores = maxsim.score_all(
                    (padded[part], where[part]), self.tokens, rows
                )
                both = jnp.concatenate([states[place][0], scores], 1)
                found = jnp.concatenate([states[place][1], ranks], 1)
                states[place] = best(both, found, k)
        scores = np.concatenate([np.asarray(state[0]) for state in states])
        found = np.concatenate([np.asarray(state[1]) for state in states])
        kept = slice(0, len(queries))
        return rows_of(self.ranks, found[kept]), scores[kept]

    def save(self, directory: str | Path) -> None:
        """Writes the index as a folder, with the index of candidates inside."""
        values = self.tokens.values
        arrays = {
            "offsets": self.tokens.offsets,
            **folder.pack_strings("ids", self.doc_ids),
        }
        if isinstance(values, Codes):
            codec = values.codec
            arrays |= {"token_ids": values.ids, "packed": values.packed}
            arrays |= {"centroids": codec.centroids, "cuts": codec.cuts}
            arrays["levels"] = codec.levels
        else:
            arrays["values"] = values
        meta = {
            "encoding": dataclasses.asdict(self.encoding),
            "index": type(self.index).__name__,
            "report": self.report,
            "source": self.source,
        }
        self.index.save(Path(directory) / "candidates")
        folder.write(directory, "late", arrays, meta)

    @classmethod
    def load(cls, directory: str | Path, source: str | None = None) -> LateInteraction:
        """Reads a saved index; token vectors stay on disk."""
        with folder.described(directory):
            arrays, meta = folder.read(directory, "late")
            folder.check_source(directory, meta, source)
            if "packed" in arrays:
                codec = Codec(
                    *(np.array(arrays[n]) for n in ("centroids", "cuts", "levels"))
                )
                values: Any = Codes(codec, arrays["token_ids"], arrays["packed"])
            else:
                values = arrays["values"]
            doc_ids = folder.unpack_strings("ids", arrays)
            kinds = {"Exact": Exact, "Scann": Scann}
            if meta["index"] not in kinds:
                raise UserError(f"{directory}: unknown index {meta['index']!r}")
            return cls(
                tokens=TokenVectors(values, np.array(arrays["offsets"])).checked(
                    len(doc_ids)
                ),
                encoding=FixedDimensional(**meta["encoding"]),
                index=kinds[meta["index"]].load(Path(directory) / "candidates"),
                doc_ids=doc_ids,
                ranks=tie_ranks(doc_ids),
                report=meta["report"],
                source=meta["source"],
            )


def _compress(
    docs: TokenVectors, how: str | int | None, seed: int
) -> tuple[TokenVectors, dict[str, Any]]:
    """The docs as they are stored, and what was lost on a sample of tokens."""
    values = docs.values
    if how is None or how == str(getattr(values, "dtype", "")):
        stored: Any = values
    elif how == "float16":
        stored = np.empty(values.shape, np.float16)
        for block in blocks(values):
            stored[block] = values[block]
    elif isinstance(how, int):
        stored = Codec.train(values, bits=how, seed=seed).encode(values)
    else:
        raise UserError(
            f"no compression {how!r}", "choose None, 'float16', or 1, 2, 4 or 8 bits"
        )
    if isinstance(stored, Codes):
        size = stored.packed.nbytes + stored.ids.nbytes
    else:
        size = stored.size * stored.dtype.itemsize
    lost: dict[str, Any] = {
        "compression": how,
        "bytes_per_token": size / max(1, len(values)),
    }
    if len(values):
        rows = np.arange(0, len(values), max(1, len(values) // _SAMPLE))
        before, after = as_float32(values[rows]), as_float32(stored[rows])
        error = np.square(before - after).sum() / max(np.square(before).sum(), 1e-12)
        lost["relative_error"] = float(np.sqrt(error))
    return TokenVectors(stored, docs.offsets), lost


def _check_finite(texts: TokenVectors, what: str, ids: Sequence[str]) -> None:
    values = texts.values
    if isinstance(values, Codes):
        return
    for block in blocks(values):
        part = as_float32(values[block])
        if not np.isfinite(np.dot(part.reshape(-1), part.reshape(-1))):
            bad = np.flatnonzero(~np.isfinite(part).all(1))
            if len(bad):
                token = block.start + int(bad[0])
                row = int(np.searchsorted(texts.offsets, token, "right")) - 1
                raise UserError(
                    f"a token vector of {what} {ids[row]!r} holds nan or inf",
                    "look at the model that encoded it; nothing was searched",
                )
