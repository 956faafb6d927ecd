"""The folders of sentence-transformers, PyLate and Stanford's ColBERT to students.

Both layouts of sentence-transformers are read: the old one (flags of the pooling,
``max_seq_length``) and that of version 6 (``pooling_mode``, ``query_length``).
"""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.ir.errors import UserError
from distill_jax.ir.tokenizer import Tokenizer
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.weights import hugging_face, safe
from distill_jax.models.weights.folders import Folder, read_json
from distill_jax.models.weights.students import assemble

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_OUR_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh"}
# Theirs takes log(1 + x) of what it is given by "relu"; the longer name does so twice.
_SPLADE = {"relu": "log1p_relu", "log1p_relu": "log1p_log1p_relu"}


def read_dual(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """Transformer, Pooling, perhaps Dense, perhaps Normalize."""
    names = [name for name, _ in folder.modules]
    allowed = (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
    )
    if names not in allowed:
        raise UserError(
            f"{folder.path}/modules.json is {' - '.join(names)}",
            "a dual encoder is Transformer - Pooling [- Dense] [- Normalize]",
        )
    modules = dict(folder.modules)
    base = hugging_face.backbone(folder, tokenizer, root=modules["Transformer"])
    found: dict[str, Any] = {
        "pooling": _pooling(modules["Pooling"]),
        "normalise": "Normalize" in names,
        **_lengths(folder, modules["Transformer"], base),
        **_prompts(folder),
    }
    if found["query_prefix"] or found["doc_prefix"]:
        _includes_prompt(modules["Pooling"])
    given: dict[str, np.ndarray] = {}
    if "Dense" in names:
        given, dense = _dense(modules["Dense"])
        found |= dense
    similarity = _top(folder).get("similarity_fn_name")
    if similarity in ("dot", "dot_score", "cosine"):
        found["similarity"] = similarity.removesuffix("_score")
    elif similarity is not None:
        raise UserError(
            f"{folder.path}: similarity_fn_name is {similarity!r}",
            "only dot and cosine are read",
        )
    fields = {**found, **stated(folder), **fields}
    return assemble("dual_encoder", base, given, seed=seed, **fields)


def read_splade(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """A masked language model and SpladePooling."""
    modules = dict(folder.modules)
    root = folder.modules[0][1]
    base = hugging_face.backbone(folder, tokenizer, root=root)
    config = read_json(modules["SpladePooling"] / "config.json", {})
    activation = config.get("activation_function", "relu")
    if activation not in _SPLADE:
        raise UserError(
            f"{modules['SpladePooling']}: activation_function {activation!r}",
            f"one of {', '.join(_SPLADE)} is read",
        )
    found = {
        "pooling": config.get("pooling_strategy", "max"),
        "query_activation": _SPLADE[activation],
        "doc_activation": _SPLADE[activation],
        **_lengths(folder, root, base),
        **_prompts(folder),
    }
    fields = {**found, **stated(folder), **fields}
    return assemble("splade", base, seed=seed, **fields)


def read_pylate(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """PyLate's ColBERT, or a MultiVectorEncoder of sentence-transformers 6."""
    modules = dict(folder.modules)
    if "Dense" not in modules:
        raise UserError(f"{folder.path}/modules.json has no Dense projection")
    root, top = folder.modules[0][1], _top(folder)
    inner = read_json(root / "sentence_bert_config.json", {})
    tokenizer = with_pad(tokenizer)
    base = hugging_face.backbone(folder, tokenizer, root=root)
    given, dense = _dense(modules["Dense"])
    if dense["projection_bias"] or dense["projection_activation"] != "identity":
        raise UserError(
            f"{modules['Dense']}: a ColBERT's projection has no bias and no activation",
            "train a new projection: load the folder of its Transformer",
        )
    prompts = top.get("prompts") or {}
    expansion = inner.get("query_expansion", top.get("query_expansion", {}))
    strategy = (expansion or {}).get("strategy", "fixed")
    if strategy != "fixed":
        raise UserError(
            f"{folder.path}: query expansion of the strategy {strategy!r}",
            'only "fixed" is read',
        )
    words = top.get("skiplist_words")
    if words is None and "MultiVectorMask" in modules:
        mask = read_json(modules["MultiVectorMask"] / "config.json", {})
        words = mask.get("skiplist_words") or []
    words = list(string.punctuation) if words is None else words
    found = {
        "dim": dense["projection"],
        "query_length": top.get("query_length")
        or (expansion or {}).get("length")
        or inner.get("query_length")
        or 32,
        "doc_length": top.get("document_length") or inner.get("document_length") or 180,
        "expand": expansion is not None and top.get("do_query_expansion", True),
        "attend_to_expansion": bool(
            top.get("attend_to_expansion_tokens", (expansion or {}).get("attend"))
        ),
    }
    markers = (
        top.get("query_prefix", prompts.get("query", "[Q] ")),
        top.get("document_prefix", prompts.get("document", "[D] ")),
    )
    made = assemble(
        "colbert", base, given, seed=seed, **{**found, **stated(folder), **fields}
    )
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
        **{**found, **stated(folder), **fields},
    )
    markers = (
        meta.get("query_token_id") or "[unused0]",
        meta.get("doc_token_id") or "[unused1]",
    )
    words = list(string.punctuation) if meta.get("mask_punctuation", True) else []
    return _marked(made, markers, words, folder.path)


def joined(towers: list[Pretrained]) -> Pretrained:
    """One student of a query encoder and a document encoder.

    Raises:
        UserError: they are not of one kind and size, or read different vocabularies.
    """
    queries, docs = towers
    ours, theirs = queries.spec, docs.spec
    sides = {"query_prefix", "query_length", "query_activation"}
    changes: dict[str, Any] = {"tied": False}
    for field in dataclasses.fields(ours):
        if field.name in sides:
            changes[field.name] = getattr(ours, field.name)
    spec = dataclasses.replace(theirs, **changes)
    same = dataclasses.replace(ours, **{n: getattr(theirs, n) for n in _sided(ours)})
    if same != theirs or queries.tokenizer.digest != docs.tokenizer.digest:
        raise UserError(
            f"{queries.source} and {docs.source} are encoders of different forms",
            "two towers have one architecture, pooling and vocabulary",
        )
    params = {
        "query_tower": queries.params["tower"],
        "doc_tower": docs.params["tower"],
    }
    return docs.replace(spec=spec, params=params)


def _sided(spec: Any) -> list[str]:
    """The fields that queries and documents have apart."""
    names = [field.name for field in dataclasses.fields(spec)]
    return [name for name in names if name.startswith(("query_", "doc_"))]


def stated(folder: Folder) -> dict[str, Any]:
    """The fields of the spec that our own export noted in the folder."""
    note = folder.config.get("distill_jax") or {}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in note.get("fields", {}).items()
    }


def with_pad(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer padding with [PAD]: PyLate saves [MASK] as its padding."""
    return tokenizer.with_special(pad="[PAD]")


def _marked(
    pretrained: Pretrained, markers: tuple[str, str], words: list[str], path: Path
) -> Pretrained:
    """The student with the markers and the skip list that the folder names."""
    tokenizer = pretrained.tokenizer
    ids = []
    for text in markers:
        found = [tokenizer.find(form) for form in (text, text.strip())]
        found = [token for token in found if token is not None]
        if not found:
            raise UserError(
                f"{path}: the marker {text!r} is no token of the vocabulary",
                "only ColBERT models whose markers are single tokens are read",
            )
        ids.append(found[0])
    skipped = [tokenizer.find(word) for word in words]
    skiplist = sorted({token for token in skipped if token is not None})
    spec = dataclasses.replace(
        pretrained.spec,
        query_marker=ids[0],
        doc_marker=ids[1],
        skiplist=tuple(token for token in skiplist if token != tokenizer.unk_id),
    )
    return pretrained.replace(spec=spec)


def _top(folder: Folder) -> dict:
    return folder.json("config_sentence_transformers.json")


def _pooling(path: Path) -> str:
    config = read_json(path / "config.json", {})
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLINGS.items() if config.get(flag)]
        modes = modes or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _OUR_POOLING:
        raise UserError(
            f"{path}: the pooling {' + '.join(map(str, modes))}",
            f"one of {', '.join(_OUR_POOLING)} is read",
        )
    return _OUR_POOLING[modes[0]]


def _includes_prompt(path: Path) -> None:
    if read_json(path / "config.json", {}).get("include_prompt", True) is False:
        raise UserError(
            f"{path}: include_prompt is false, prompts are left out of the pooling",
            "that is not read; give query_prefix='' and doc_prefix='' to go without",
        )


def _dense(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    config = read_json(path / "config.json", {})
    tensors = safe.open_folder(path)
    weight = np.asarray(tensors["linear.weight"], np.float32)
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS or config.get("use_residual"):
        raise UserError(
            f"{path}: a Dense with {activation} and use_residual "
            f"{bool(config.get('use_residual'))}",
            "Identity and Tanh without a residual are read",
        )
    given = {"projection.kernel": np.ascontiguousarray(weight.T)}
    if "linear.bias" in tensors:
        given["projection.bias"] = np.asarray(tensors["linear.bias"], np.float32)
    return given, {
        "projection": weight.shape[0],
        "projection_bias": "linear.bias" in tensors,
        "projection_activation": _ACTIVATIONS[activation],
    }


def _lengths(folder: Folder, root: Path, base: Any) -> dict[str, int]:
    """Tokens at most, special tokens included, as sentence-transformers counts."""
    inner = read_json(root / "sentence_bert_config.json", {})
    config = read_json(root / "tokenizer_config.json", {})
    most = inner.get("max_seq_length") or config.get("model_max_length") or 512
    most = int(min(most, getattr(base.sizes, "max_positions", 1 << 20)))
    most = 512 if most > 1 << 16 else most  # a stated infinity
    return {
        "query_length": int(inner.get("query_length") or most),
        "doc_length": int(inner.get("document_length") or most),
    }


def _prompts(folder: Folder) -> dict[str, str]:
    top = _top(folder)
    prompts = top.get("prompts") or {}
    default = prompts.get(top.get("default_prompt_name") or "", "")
    doc = next((prompts[n] for n in ("document", "passage") if n in prompts), default)
    return {"query_prefix": prompts.get("query", default), "doc_prefix": doc}
