"""Approximate nearest neighbours by ScaNN: a tree of leaves, 4-bit codes, reordering.

The settings come from the size of the corpus; the width of the search comes from a
measurement. After a build, sample queries are searched exactly, and the narrowest (by
time) search that reaches the wanted recall is kept; ``report["met"]`` says whether one
does.

Facts of ScaNN 1.4 that the code works around: a saved index names absolute paths unless
set otherwise; nan is accepted silently; a tree needs as many docs as leaves, and codes
in a tree at least 16.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.retrieval import folder, scann_assets, scann_build
from distill_jax.retrieval.exact import Exact
from distill_jax.retrieval.postings import check_k
from distill_jax.retrieval.scann_import import module
from distill_jax.retrieval.vectors import (
    as_float32,
    check_docs,
    check_queries,
    normalise,
)
from distill_jax.runs.run import Run

_SAMPLE = 256
_ASSETS = "scann"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Width:
    """How widely a search looks.

    Attributes:
        leaves: leaves of the tree that are opened; None where there is no tree.
        reorder: docs that are scored again with their full vectors.
    """

    leaves: int | None = None
    reorder: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Scann:
    """``Scann.build(vectors, doc_ids, recall=0.95).search(queries, k)``.

    Attributes:
        searcher: ScaNN's own object.
        doc_ids, similarity: as in ``Exact``.
        dimension: D.
        default: the width of a search that names none.
        report: recall@k against ``Exact`` on sample queries, the wanted recall and
            whether it was met, build seconds, docs, the settings, queries a second.
        source: digest of the model and texts of the vectors, or "".
        threads: of a search.
    """

    searcher: Any
    doc_ids: Sequence[str]
    similarity: str
    dimension: int
    default: Width
    report: dict[str, Any]
    source: str = ""
    threads: int = 1

    @classmethod
    def build(
        cls,
        vectors: Any,
        doc_ids: Sequence[str] | None = None,
        *,
        similarity: str = "dot",
        recall: float = 0.99,
        k: int = 10,
        queries: Any = None,
        leaves: int | None = None,
        block: int = 2,
        soar: float | None = None,
        anisotropic: float = 0.2,
        source: str = "",
        threads: int | None = None,
        tune: bool = True,
    ) -> Scann:
        """Builds an index and sets the width of its search.

        Args:
            vectors: [N, D], in memory or mapped; ScaNN holds a float32 copy, which a
                large corpus writes to a file of its size, in TMPDIR.
            doc_ids: "0", "1", ... for None.
            similarity: "dot" or "cosine".
            recall: wanted share of the exact k best, in the mean over queries.
            k: at which recall is measured; a search may ask for another k.
            queries: query vectors to measure with, [M, D]. None takes docs, each
                mixed with another: real queries lie off the docs, and are harder.
            leaves: of the tree; None chooses about sqrt(N), and no tree below
                20,000 docs. A tree that would have under 4 docs a leaf is not made.
            block: dimensions that share a 4-bit code.
            soar: strength of the second, orthogonal assignment of each doc to a leaf
                (1.5 is usual); None for one leaf a doc, which is faster to build and,
                up to millions of docs, to search.
            anisotropic: threshold of anisotropic quantisation.
            source: digest of weights and corpus, which ``load`` can ask for.
            threads: None takes what the machine has.
            tune: False measures nothing; searches then name their own ``width``.

        Raises:
            UserError: see ``vectors.check_docs`` and ``module``; no room for the file.
        """
        doc_ids = check_docs(vectors, doc_ids, similarity)
        threads = threads or os.cpu_count() or 1
        count, dimension = vectors.shape
        started = time.perf_counter()
        few = count < scann_build.BRUTE_FORCE if leaves is None else count < 4 * leaves
        if few or count < 64:
            settings: dict[str, Any] = {"kind": "brute force"}
            searcher = scann_build.brute_force(vectors, similarity, k, threads)
        else:
            plan = scann_build.Tree(
                leaves=leaves or round(count**0.5),
                block=block,
                soar=soar,
                anisotropic=anisotropic,
            )
            settings = {"kind": "tree", **dataclasses.asdict(plan)}
            searcher = scann_build.tree(vectors, similarity, k, threads, plan)
        searcher.set_num_threads(threads)
        index = cls(
            searcher=searcher,
            doc_ids=doc_ids,
            similarity=similarity,
            dimension=dimension,
            default=Width(),
            report={
                "docs": count,
                "build_s": time.perf_counter() - started,
                **settings,
            },
            source=source,
            threads=threads,
        )
        return index.tuned(vectors, queries, recall=recall, k=k) if tune else index

    def tuned(self, docs: Any, queries: Any, *, recall: float, k: int) -> Scann:
        """The same index with the fastest search that reaches ``recall`` at ``k``.

        Args:
            docs: the vectors it was built from, for the exact answer.
            queries: query vectors; None as in ``build``.
        """
        import jax

        if not 0 < recall <= 1:
            raise UserError(f"a recall of {recall}", "give one above 0, up to 1")
        if queries is None:
            step = max(1, len(self.doc_ids) // _SAMPLE)
            some = as_float32(docs[::step][:_SAMPLE])
            if self.similarity == "cosine":
                some = normalise(some)
            queries = 0.5 * (some + np.roll(some, 1, axis=0))
        queries, _ = check_queries(queries, self.dimension, None)
        queries = queries[:: max(1, len(queries) // _SAMPLE)][: 2 * _SAMPLE]
        # Of this process: others may not be tuning.
        mesh = jax.sharding.Mesh(jax.local_devices(), ("docs",))
        exact = Exact.build(docs, self.doc_ids, similarity=self.similarity, mesh=mesh)
        truth = exact.search(queries, k)
        trials = []
        for width in self._widths(k):
            if any(t["recall"] >= recall and _wider(width, t["width"]) for t in trials):
                continue  # wider than one that is good enough
            started = time.perf_counter()
            found = self.search(queries, k, width=width)
            seconds = time.perf_counter() - started
            trials.append(
                {
                    "width": width,
                    "recall": recall_of(found, truth),
                    "queries_per_s": len(queries) / seconds,
                }
            )
        enough = [trial for trial in trials if trial["recall"] >= recall]
        if enough:
            best = max(enough, key=lambda trial: trial["queries_per_s"])
        else:
            best = max(trials, key=lambda trial: trial["recall"])
        report = {
            **self.report,
            "k": k,
            "wanted_recall": recall,
            "recall": best["recall"],
            "met": bool(enough),
            "queries_per_s": best["queries_per_s"],
            "leaves_searched": best["width"].leaves,
            "reordered": best["width"].reorder,
            "sample_queries": len(queries),
        }
        return dataclasses.replace(self, default=best["width"], report=report)

    def _widths(self, k: int) -> list[Width]:
        """Widths to try, narrow before wide."""
        if self.report["kind"] == "brute force":
            return [Width()]
        leaves, docs = self.report["leaves"], self.report["docs"]
        steps = sorted(
            {
                max(1, round(leaves * share))
                for share in 0.5 ** np.arange(10, -0.1, -0.5)
            }
        )
        reorder = sorted({min(k * many, docs) for many in (2, 4, 6, 8, 12, 16, 32)})
        return [Width(leaves=a, reorder=b) for a in steps for b in reorder]

    def search(
        self,
        query_vectors: Any,
        k: int,
        query_ids: Sequence[str] | None = None,
        *,
        width: Width | None = None,
    ) -> Run:
        """The k docs of greatest similarity that the search finds.

        Where the leaves that ``width`` opens hold fewer than k, more are opened.

        Raises:
            UserError: see ``vectors.check_queries``.
        """
        queries, query_ids = check_queries(query_vectors, self.dimension, query_ids)
        k = min(check_k(k), len(self.doc_ids))
        if not len(queries):
            rows, scores = np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
            return Run(query_ids, rows, scores, self.doc_ids)
        if self.similarity == "cosine":
            queries = normalise(queries)
        width = width or self.default
        reorder = None if width.reorder is None else max(width.reorder, 2 * k)
        rows = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        leaves, short = width.leaves, np.arange(len(queries))
        while len(short):
            found, near = self.searcher.search_batched_parallel(
                queries[short],
                final_num_neighbors=k,
                pre_reorder_num_neighbors=reorder and min(reorder, len(self.doc_ids)),
                leaves_to_search=leaves,
                batch_size=max(1, min(256, -(-len(short) // self.threads))),
            )
            # Places that the opened leaves could not fill hold nan.
            empty = np.isnan(near)
            rows[short] = np.where(empty, -1, found.astype(np.int64))
            scores[short] = np.where(empty, -np.inf, near)
            # The width serves recall only; a search never returns fewer than k for it.
            every = leaves is None or leaves >= self.report["leaves"]
            if every and reorder == len(self.doc_ids):
                break
            short = short[empty.any(1)]
            # By default, an index that reorders returns only the docs it reordered.
            reorder = len(self.doc_ids) if every else reorder
            leaves = leaves and min(2 * leaves, self.report["leaves"])
        return Run(query_ids, rows, scores, self.doc_ids)

    def save(self, directory: str | Path) -> None:
        """Writes the index as a folder that may be moved."""
        assets = Path(directory) / _ASSETS
        assets.mkdir(parents=True, exist_ok=True)
        self.searcher.serialize(str(assets), relative_path=True)
        meta = {
            "similarity": self.similarity,
            "dimension": self.dimension,
            "width": dataclasses.asdict(self.default),
            "report": self.report,
            "source": self.source,
            "files": {file.name: file.stat().st_size for file in assets.iterdir()},
        }
        folder.write(directory, "scann", folder.pack_strings("ids", self.doc_ids), meta)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        source: str | None = None,
        threads: int | None = None,
    ) -> Scann:
        """Reads a saved index.

        Args:
            source: when given, the index must carry the same.

        Raises:
            UserError: the folder is damaged, or of other weights or another corpus.
        """
        threads = threads or os.cpu_count() or 1
        with folder.described(directory):
            arrays, meta = folder.read(directory, "scann")
            folder.check_source(directory, meta, source)
            assets = Path(directory) / _ASSETS
            scann_assets.check(assets, meta["files"])
            doc_ids = folder.unpack_strings("ids", arrays)
            searcher = _searcher(assets)
            if searcher.size() != len(doc_ids):
                raise UserError(
                    f"{assets} holds {searcher.size()} docs, and there are "
                    f"{len(doc_ids)} ids",
                    "build the index again",
                )
            searcher.set_num_threads(threads)
            return cls(
                searcher=searcher,
                doc_ids=doc_ids,
                similarity=meta["similarity"],
                dimension=meta["dimension"],
                default=Width(**meta["width"]),
                report=meta["report"],
                source=meta["source"],
                threads=threads,
            )


def _searcher(assets: Path) -> Any:
    try:
        return module().load_searcher(str(assets), assets_backcompat_shim=False)
    except RuntimeError as error:
        raise UserError(f"{assets}: {error}", "build the index again") from error


def recall_of(run: Run, truth: Run) -> float:
    """The mean share of ``truth``'s docs that ``run`` has, of the same queries."""
    hits = [
        len(np.intersect1d(found, wanted[wanted >= 0])) / max(1, (wanted >= 0).sum())
        for found, wanted in zip(run.rows, truth.rows, strict=True)
    ]
    return float(np.mean(hits)) if hits else 1.0


def _wider(a: Width, b: Width) -> bool:
    return (a.leaves or 0) >= (b.leaves or 0) and (a.reorder or 0) >= (b.reorder or 0)
