"""Static embeddings: a table of words whose mean is the vector of a text.

The folders of sentence-transformers' ``StaticEmbedding`` and of model2vec, in and out.
No special tokens are added, and a text is cut only where tokenizer.json says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import safe
from distill_jax.weights.folders import Folder, read_json
from distill_jax.weights.sentence_folders import dense_fields, prompts, whole
from distill_jax.weights.students import Base, assemble

# The library has no limit. Ours only bounds the memory of a batch.
_LENGTHS = {"query_length": 4096, "doc_length": 4096}


def read(folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict) -> Pretrained:
    """StaticEmbedding, perhaps Dense, perhaps Normalize.

    Raises:
        UserError: other modules, or a tokenizer that cannot pad.
    """
    names = [name for name, _ in folder.modules]
    ends = names[1:-1] if names[-1:] == ["Normalize"] else names[1:]
    if names[:1] != ["StaticEmbedding"] or set(ends) - {"Dense"}:
        raise UserError(
            f"{folder.path}/modules.json is {' - '.join(names)}",
            "static embeddings are StaticEmbedding [- Dense ...] [- Normalize]",
        )
    root = folder.modules[0][1]
    if tokenizer.pad_id is None:
        raise UserError(
            f"{root}/tokenizer.json has no padding token",
            'give tokenizer= one with a "pad_token" in tokenizer_config.json',
        )
    words = _table(safe.open_folder(root), root)
    base = Base(
        sizes_of(*words.shape),
        {"embeddings": {"word": words}},
        tokenizer,
        str(folder.path),
    )
    found: dict[str, Any] = {
        "pooling": "mean",
        "normalise": "Normalize" in names,
        **_lengths(root),
        **prompts(folder, tokenizer, fields),
    }
    given, projections = dense_fields(folder)
    found |= projections
    found |= whole(folder, found["normalise"])
    return assemble("dual_encoder", base, given, seed=seed, **{**found, **fields})


def sizes_of(vocab_size: int, width: int) -> BertSizes:
    """An encoder that is nothing but its embeddings."""
    return BertSizes(
        family="static",
        vocab_size=vocab_size,
        d_model=width,
        embedding_size=width,
        d_ff=width,
        heads=1,
        layers=0,
        max_positions=1 << 20,
        type_vocab=0,
        positions="none",
        embedding_norm=False,
        dropout=0.0,
        attention_dropout=0.0,
    )


def _table(tensors: Mapping[str, np.ndarray], root: Path) -> np.ndarray:
    """The row of each token, float32[V, D].

    model2vec keeps one row for several tokens (``mapping``), and a factor of each
    token (``weights``).
    """
    if "embedding.weight" in tensors:
        return np.asarray(tensors["embedding.weight"], np.float32)
    if "embeddings" not in tensors:
        raise UserError(
            f"{root}: neither embedding.weight nor embeddings in the weights",
            "give a folder that sentence-transformers or model2vec saved",
        )
    rows = np.asarray(tensors["embeddings"], np.float32)
    if "mapping" in tensors:
        rows = rows[np.asarray(tensors["mapping"], np.int64)]
    if "weights" in tensors:
        rows = rows * np.asarray(tensors["weights"], np.float32)[:, None]
    return np.ascontiguousarray(rows)


def _lengths(root: Path) -> dict[str, int]:
    """Tokens at most, where tokenizer.json cuts."""
    truncation = (read_json(root / "tokenizer.json", {}) or {}).get("truncation") or {}
    most = truncation.get("max_length")
    return dict.fromkeys(_LENGTHS, int(most)) if most else dict(_LENGTHS)
