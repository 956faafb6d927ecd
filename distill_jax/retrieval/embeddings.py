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
from distill_jax.inference.vectors import Form, form_of
from distill_jax.io import mirror, sums
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.io.reading import read_record, write_record
from distill_jax.ops.vector_form import VectorForm
from distill_jax.retrieval.columns import Columns
from distill_jax.retrieval.stored_forms import FORMS, StoredForm, stored_form
from distill_jax.runtime.placement import platform

_FORMAT = 2
_RECORD = "embeddings.json"
# A kill loses at most one shard; within a shard texts are sorted by length.
_SHARD_CPU = 1024


def embed_docs(
    pretrained: Any,
    features: Any,
    directory: str | Path,
    *,
    rows: np.ndarray | None = None,
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
        features: ``text.features.Features`` of its document template.
        directory: holds one folder a digest.
        rows: int[N], rows of the features; None takes all. The digest of the features'
            store has to tell which.
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
    stored = stored_form(pretrained.spec)
    dtype = dtype or stored.dtype
    rows = np.arange(len(features.stores[0])) if rows is None else rows
    count = len(rows)
    folder = folder_of(
        pretrained, features, directory, corpus_digest=corpus_digest, dtype=dtype
    )
    columns = Columns(folder, stored.dtypes(dtype))
    shard_docs = _shard_docs(folder, stored, shard_docs)
    done = _agreed(len(columns.finished()))
    if progress is not None:
        progress(min(done * shard_docs, count))
    for shard, start in enumerate(range(0, count, shard_docs)):
        if shard < done:
            continue
        some = rows[start : start + shard_docs]
        parts = _encode(
            pretrained, features, some, dtype, mesh, tokens_per_batch, progress
        )
        if _writer():
            columns.append(shard, parts)
    if _writer() and not (folder / _RECORD).exists():
        record = {"format": _FORMAT, "vectors": pretrained.spec.vectors.value}
        record |= {"dtype": dtype, "docs": count}
        record |= {"width": stored.width(pretrained.spec), "files": sums.take(folder)}
        write_record(folder / _RECORD, record)
        mirror.push(folder)
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
    dtype = dtype or stored_form(pretrained.spec).dtype
    return Path(directory) / embeddings_key(pretrained, features, dtype, corpus_digest)


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
        folder / _RECORD, todo, vectors=str, docs=int, width=int, dtype=str
    )
    sums.check(folder, record.get("files", {}), todo)
    docs, width, dtype = record["docs"], record["width"], record["dtype"]
    try:
        stored = FORMS[VectorForm(record["vectors"])]
        columns = Columns(folder, stored.dtypes(dtype)).read()
        return stored.vectors(columns, docs, width, dtype)
    except ValueError as error:
        raise UserError(
            f"{folder}: the vectors do not fit their record ({error})",
            "delete the folder and encode again",
        ) from error


def _shard_docs(folder: Path, stored: StoredForm, given: int | None) -> int:
    """Docs per shard; a restart keeps the number of the first run."""
    kept = folder / "shards.json"
    if kept.exists():
        todo = f"delete {folder}: it is encoded again"
        docs = read_record(kept, todo, docs=int)["docs"]
        if docs < 1:
            raise UserError(f"{kept}: damaged, {docs} docs a shard", todo)
    elif given is not None:
        docs = given
    elif platform() == "cpu":
        docs = _SHARD_CPU
    else:
        docs = stored.shard
    if _writer():
        write_record(kept, {"docs": docs})
    return _agreed(docs)


def _encode(
    pretrained, features, rows, dtype, mesh, tokens_per_batch, progress
) -> dict[str, np.ndarray]:
    """One shard's columns, in the order of the rows."""
    form = form_of(pretrained.spec)
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
        _check(form, part, rows[at])
        parts.append(part)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return stored_form(pretrained.spec).columns(form.join(parts, order), dtype)


def _check(form: Form, part: Any, rows: np.ndarray) -> None:
    if not form.good(part):
        raise UserError(
            f"the model made nan, inf or only zeros for a doc in rows {rows.min()} to "
            f"{rows.max()}",
            "encode with compute dtype float32, or look at the checkpoint",
        )


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
