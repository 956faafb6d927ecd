"""Encoding a corpus once: bucketed, on all devices, kept on disk, resumed after a kill.

A folder of vectors is named by the digest of everything that they depend on (weights,
tokenizer, template with its prefix and length, dtype, corpus), so a later round cannot
read an earlier round's vectors, and a finished corpus is never encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.inference.forward import encode_features
from distill_jax.io import sums
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record, write_record
from distill_jax.retrieval.columns import Columns, QuantisedVectors, quantise
from distill_jax.retrieval.token_vectors import TokenVectors
from distill_jax.runtime.placement import platform

_FORMAT = 1
_RECORD = "embeddings.json"
# A kill loses at most one shard; within a shard texts are sorted by length.
_SHARD_CPU, _SHARD_TOKENS, _SHARD_VECTORS = 1024, 16384, 65536


def embed_docs(
    pretrained: Any,
    features: Any,
    directory: str | Path,
    *,
    corpus_digest: str | None = None,
    dtype: str | None = None,
    mesh: Any = None,
    tokens_per_batch: int | None = None,
    shard_docs: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """The vectors of a corpus, read from disk where they were computed before.

    On several hosts every process calls this; ``directory`` must be one that all of
    them see. Process 0 writes.

    Args:
        pretrained: a dual encoder, ColBERT or SPLADE (``models.pretrained``).
        features: ``ir.templates.Features`` of its document template.
        directory: holds one folder a digest.
        corpus_digest: the collection's; None goes by the token store's.
        dtype: "float32", "bfloat16", "float16" or "int8" (a scale a vector; dual
            encoders only). None takes float32, for ColBERT float16.
        mesh: devices, as in ``models.inference.encode_features``.
        tokens_per_batch: padded tokens computed at once.
        shard_docs: docs between two points that a kill falls back to.
        progress: called with the number of docs that are there already, then with
            the number just encoded, repeatedly.

    Returns:
        A dual encoder's [N, D] memory map (``QuantisedVectors`` for int8), ColBERT's
        ``TokenVectors``, SPLADE's CSR matrix [N, V].

    Raises:
        UserError: the model made nan or inf (with the doc's row), or the folder was
            damaged.
    """
    kind = pretrained.spec.kind
    dtype = dtype or _own_dtype(kind)
    count = len(features.stores[0])
    folder = folder_of(
        pretrained, features, directory, corpus_digest=corpus_digest, dtype=dtype
    )
    columns = Columns(folder, _dtypes(kind, dtype))
    shard_docs = _shard_docs(folder, kind, shard_docs)
    done = _agreed(len(columns.finished()))
    if progress is not None:
        progress(min(done * shard_docs, count))
    for shard, start in enumerate(range(0, count, shard_docs)):
        if shard < done:
            continue
        rows = np.arange(start, min(start + shard_docs, count))
        parts = _encode(
            pretrained, features, rows, dtype, mesh, tokens_per_batch, progress
        )
        if _writer():
            columns.append(shard, parts)
    if _writer() and not (folder / _RECORD).exists():
        record = {"format": _FORMAT, "kind": kind, "dtype": dtype, "docs": count}
        record |= {"width": _width(pretrained), "files": sums.take(folder)}
        write_record(folder / _RECORD, record)
    _barrier(folder.name)
    return read_embeddings(folder)


def folder_of(
    pretrained: Any,
    features: Any,
    directory: str | Path,
    *,
    corpus_digest: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Where ``embed_docs`` keeps the vectors that these arguments give."""
    dtype = dtype or _own_dtype(pretrained.spec.kind)
    return Path(directory) / embeddings_key(pretrained, features, dtype, corpus_digest)


def _own_dtype(kind: str) -> str:
    return "float16" if kind == "colbert" else "float32"


def embeddings_key(
    pretrained: Any, features: Any, dtype: str, corpus_digest: str | None = None
) -> str:
    """Digest of everything that the vectors of a corpus depend on."""
    return digest(
        "embeddings",
        _FORMAT,
        pretrained.doc_digest,
        features.template.to_json(),
        [store.digest for store in features.stores],
        corpus_digest,
        dtype,
    )


def read_embeddings(folder: str | Path) -> Any:
    """What ``embed_docs`` left in a finished folder.

    Raises:
        UserError: it is not finished, or damaged.
    """
    folder = Path(folder)
    if not (folder / _RECORD).is_file():
        raise UserError(
            f"{folder}: the vectors are not complete",
            "run the encoding again; it goes on where it was stopped",
        )
    todo = f"delete {folder}: it is encoded again"
    record = read_record(
        folder / _RECORD, todo, kind=str, docs=int, width=int, dtype=str
    )
    sums.check(folder, record.get("files", {}), todo)
    kind, docs, width = record["kind"], record["docs"], record["width"]
    columns = Columns(folder, _dtypes(kind, record["dtype"])).read()
    try:
        if kind == "colbert":
            offsets = np.concatenate([[0], np.cumsum(columns["lengths"])])
            vectors = columns["vectors"].reshape(-1, width)
            return TokenVectors(vectors, offsets.astype(np.int64)).checked(docs)
        if kind == "splade":
            from scipy.sparse import csr_matrix

            indptr = np.concatenate([[0], np.cumsum(columns["lengths"])])
            parts = (columns["weights"], columns["features"], indptr.astype(np.int64))
            return csr_matrix(parts, shape=(docs, width))
        vectors = columns["vectors"].reshape(docs, width)
        if record["dtype"] == "int8":
            return QuantisedVectors(vectors, columns["scales"])
        return vectors
    except ValueError as error:
        raise UserError(
            f"{folder}: the vectors do not fit their record ({error})",
            "delete the folder and encode again",
        ) from error


def _dtypes(kind: str, dtype: str) -> dict[str, str]:
    if kind == "splade":
        return {"weights": "float32", "features": "int32", "lengths": "int32"}
    if kind == "colbert":
        return {"vectors": dtype, "lengths": "int32"}
    return {"vectors": dtype} | ({"scales": "float32"} if dtype == "int8" else {})


def _shard_docs(folder: Path, kind: str, asked: int | None) -> int:
    """Docs per shard; a restart keeps the number of the first run."""
    kept = folder / "shards.json"
    if kept.exists():
        todo = f"delete {folder}: it is encoded again"
        docs = read_record(kept, todo, docs=int)["docs"]
        if docs < 1:
            raise UserError(f"{kept}: damaged, {docs} docs a shard", todo)
    elif asked is not None:
        docs = asked
    elif platform() == "cpu":
        docs = _SHARD_CPU
    else:
        docs = _SHARD_TOKENS if kind == "colbert" else _SHARD_VECTORS
    if _writer():
        write_record(kept, {"docs": docs})
    return _agreed(docs)


def _encode(
    pretrained, features, rows, dtype, mesh, tokens_per_batch, progress
) -> dict[str, np.ndarray]:
    """One shard's columns, in the order of the rows."""
    kind = pretrained.spec.kind
    positions, parts = [], []
    for at, part in encode_features(
        pretrained,
        "doc",
        features,
        rows,
        mesh=mesh,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    ):
        positions.append(at)
        _check(kind, part, rows[at])
        parts.append(part)
    order = np.argsort(np.concatenate(positions), kind="stable")
    if kind == "splade":
        from scipy.sparse import vstack

        joined: Any = vstack(parts, format="csr")
        joined = joined[order]
        lengths = np.diff(joined.indptr)
        return {"weights": joined.data, "features": joined.indices, "lengths": lengths}
    if kind == "colbert":
        texts = [text for part in parts for text in part.split()]
        lengths = np.array([len(texts[i]) for i in order])
        return {
            "vectors": np.concatenate([texts[i] for i in order]),
            "lengths": lengths,
        }
    vectors = np.concatenate(parts)[order]
    if dtype == "int8":
        codes, scales = quantise(vectors)
        return {"vectors": codes, "scales": scales}
    return {"vectors": vectors}


def _check(kind: str, part: Any, rows: np.ndarray) -> None:
    """Refuses what no model in order would make.

    Normalising turns a nan into zeros, so vectors of zeros count as well.
    """
    if kind == "colbert":
        good = np.isfinite(part.values).all()
    elif kind == "splade":
        good = np.isfinite(part.data).all()
    else:
        good = (np.isfinite(part).all(1) & (part != 0).any(1)).all()
    if not good:
        raise UserError(
            f"the model made nan, inf or only zeros for a doc in rows {rows.min()} to "
            f"{rows.max()}",
            "encode with compute dtype float32, or look at the checkpoint",
        )


def _width(pretrained: Any) -> int:
    """D, or V of SPLADE."""
    spec = pretrained.spec
    return spec.dim if spec.kind == "colbert" else spec.width


def _writer() -> bool:
    import jax

    return jax.process_index() == 0


def _agreed(number: int) -> int:
    """Process 0's number, in every process."""
    import jax

    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _barrier(name: str) -> None:
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
