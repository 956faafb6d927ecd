"""ColBERT folders to students: PyLate's, Stanford's, and MultiVectorEncoder's."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.colbert import UNMARKED_WRAP
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import hugging_face, safe
from distill_jax.weights.folders import Folder, read_json, top
from distill_jax.weights.sentence_folders import dense
from distill_jax.weights.students import assemble


def read_pylate(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """PyLate's ColBERT, or a MultiVectorEncoder of sentence-transformers 6."""
    modules = _modules(folder)
    root, said = folder.modules[0][1], top(folder)
    inner = read_json(root / "sentence_bert_config.json", {})
    tokenizer = with_pad(tokenizer)
    base = hugging_face.backbone(folder, tokenizer, root=root)
    given, projection = dense(modules["Dense"])
    plain = projection["projection_activation"] == "identity"
    if projection["projection_bias"] or not plain:
        raise UserError(
            f"{modules['Dense']}: a ColBERT's projection has no bias and no activation",
            "train a new projection: load the folder of its Transformer",
        )
    prompts = said.get("prompts") or {}
    # sentence-transformers expands only where it says so, PyLate unless it says not.
    plain = said.get("model_type") == "MultiVectorEncoder"
    most = hugging_face.longest(root, base.sizes) if plain else None
    usual = None if plain else {}
    expansion = inner.get("query_expansion", said.get("query_expansion", usual))
    strategy = (expansion or {}).get("strategy", "fixed")
    if strategy != "fixed":
        raise UserError(
            f"{folder.path}: query expansion of the strategy {strategy!r}",
            'only "fixed" is read',
        )
    words = said.get("skiplist_words")
    if words is None and "MultiVectorMask" in modules:
        words = _masked_words(modules["MultiVectorMask"])
    words = list(string.punctuation) if words is None else words
    found = {
        "dim": projection["projection"],
        "query_length": said.get("query_length")
        or (expansion or {}).get("length")
        or inner.get("query_length")
        or most
        or 32,
        "doc_length": said.get("document_length")
        or inner.get("document_length")
        or most
        or 180,
        "expand": expansion is not None and said.get("do_query_expansion", True),
        "attend_to_expansion": bool(
            said.get("attend_to_expansion_tokens", (expansion or {}).get("attend"))
        ),
    }
    if "query_prefix" in said:
        # PyLate's layout: markers and prompts are apart.
        markers = (said["query_prefix"], said.get("document_prefix", "[D] "))
        found["query_prefix"] = prompts.get("query") or ""
        found["doc_prefix"] = prompts.get("document") or ""
    else:
        names = (("query", "[Q] "), ("document", "[D] "))
        markers = tuple(prompts.get(name, usual) or "" for name, usual in names)
    made = assemble("colbert", base, given, seed=seed, **{**found, **fields})
    return _marked(made, markers, words, folder.path)


def read_stanford(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """Stanford's ColBERT: ``bert.*``, ``linear.weight`` and ``artifact.metadata``."""
    meta = read_json(folder.path / "artifact.metadata", {})
    tokenizer = with_pad(tokenizer)
    tensors = safe.open_folder(folder.path)
    if "linear.weight" not in tensors:
        raise UserError(
            f"{folder.path}: HF_ColBERT without linear.weight", "download it again"
        )
    kernel = np.ascontiguousarray(np.asarray(tensors["linear.weight"], np.float32).T)
    base = hugging_face.backbone(folder, tokenizer)
    if meta.get("similarity", "cosine") != "cosine":
        raise UserError(
            f"{folder.path}/artifact.metadata: similarity {meta['similarity']!r}",
            "only cosine is read",
        )
    found = {
        "dim": kernel.shape[1],
        "query_length": meta.get("query_maxlen") or 32,
        "doc_length": meta.get("doc_maxlen") or 180,
        "attend_to_expansion": bool(meta.get("attend_to_mask_tokens", False)),
    }
    made = assemble(
        "colbert",
        base,
        {"projection.kernel": kernel},
        seed=seed,
        **{**found, **fields},
    )
    markers = (
        meta.get("query_token_id") or "[unused0]",
        meta.get("doc_token_id") or "[unused1]",
    )
    words = list(string.punctuation) if meta.get("mask_punctuation", True) else []
    return _marked(made, markers, words, folder.path)


def _modules(folder: Folder) -> dict[str, Path]:
    """The modules by name.

    Raises:
        UserError: not one projection, or scores of another form.
    """
    names = [name for name, _ in folder.modules]
    ours = "MultiVectorMask" in names  # PyLate's normalise without saying so
    if names.count("Dense") != 1 or (ours and "Normalize" not in names):
        raise UserError(
            f"{folder.path}/modules.json is {' - '.join(names)}",
            "a ColBERT is Transformer - Dense [- MultiVectorMask - Normalize]",
        )
    similarity = top(folder).get("similarity_fn_name") or "maxsim"
    if str(similarity).lower() == "meanmaxsim":
        raise UserError(
            f"{folder.path}: similarity_fn_name is {similarity!r}",
            "only MaxSim, the sum over query tokens, is read",
        )
    return dict(folder.modules)


def _masked_words(path: Path) -> list[str]:
    """The words that documents leave out."""
    mask = read_json(path / "config.json", {})
    words = mask.get("skiplist_words") or []
    tasks = mask.get("skiplist_tasks", ["document"])
    if mask.get("keep_only_token_ids") or (words and tasks != ["document"]):
        raise UserError(
            f"{path}: it keeps only some tokens, or leaves words out of {tasks}",
            "only a list of words that documents leave out is read",
        )
    return words


def with_pad(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer padding with [PAD]: PyLate saves [MASK] as its padding."""
    has_own = tokenizer.find("[PAD]") is not None
    return tokenizer.with_special(pad="[PAD]") if has_own else tokenizer


def _marked(
    pretrained: Pretrained, markers: tuple[str, ...], words: list[str], path: Path
) -> Pretrained:
    """The student with the markers and the skip list that the folder names."""
    tokenizer = pretrained.tokenizer
    ids: list[int | None] = []
    if not any(text.strip() for text in markers):
        markers, ids = (), [None, None]
    for text in markers:
        found = [tokenizer.find(form) for form in (text, text.strip())]
        found = [token for token in found if token is not None]
        if not found:
            raise UserError(
                f"{path}: the marker {text!r} is not a token of the vocabulary",
                "only ColBERT models whose markers are single tokens are read",
            )
        ids.append(found[0])
    skipped = [tokenizer.find(word) for word in words]
    skiplist = sorted({token for token in skipped if token is not None})
    spec = dataclasses.replace(
        pretrained.spec,
        query_marker=ids[0],
        doc_marker=ids[1],
        wrap=UNMARKED_WRAP if ids[0] is None else pretrained.spec.wrap,
        skiplist=tuple(token for token in skiplist if token != tokenizer.unk_id),
    )
    return pretrained.replace(spec=spec)
