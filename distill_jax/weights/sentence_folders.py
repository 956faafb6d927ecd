"""The folders of sentence-transformers to dual encoders and SPLADE.

Both layouts of sentence-transformers are read: the old one (flags of the pooling,
``max_seq_length``) and that of version 6 (``pooling_mode``, ``query_length``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders, hugging_face, safe
from distill_jax.weights.folders import Folder, read_json, stated, top
from distill_jax.weights.students import assemble

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_OUR_POOLING = {
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
}
_ACTIVATIONS = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
# Theirs takes log(1 + x) of what it is given by "relu"; the longer name does so twice.
_SPLADE = {"relu": "log1p_relu", "log1p_relu": "log1p_log1p_relu"}


def read_dual(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """Transformer, Pooling, perhaps Dense, perhaps Normalize."""
    names = [name for name, _ in folder.modules]
    ends = names[2:-1] if names[-1:] == ["Normalize"] else names[2:]
    if names[:2] != ["Transformer", "Pooling"] or set(ends) - {"Dense"}:
        raise UserError(
            f"{folder.path}/modules.json is {' - '.join(names)}",
            "a dual encoder is Transformer - Pooling [- Dense ...] [- Normalize]",
        )
    modules = dict(folder.modules)
    base = hugging_face.backbone(folder, tokenizer, root=modules["Transformer"])
    found: dict[str, Any] = {
        "pooling": _pooling(modules["Pooling"]),
        "normalise": "Normalize" in names,
        **_lengths(folder, modules["Transformer"], base),
        **prompts(folder, tokenizer, fields),
    }
    if found["query_prefix"] or found["doc_prefix"]:
        _includes_prompt(modules["Pooling"])
    given, projections = dense_fields(folder)
    found |= projections
    found |= whole(folder, found["normalise"])
    fields = {**found, **stated(folder, most=found["doc_length"]), **fields}
    return assemble("dual_encoder", base, given, seed=seed, **fields)


def dense_fields(folder: Folder) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The Dense modules: their parameters, and their fields in a spec."""
    paths = [path for name, path in folder.modules if name == "Dense"]
    if not paths:
        return {}, {}
    given, found = dense(paths[0])
    found["more_projections"] = _further(paths[1:], given)
    return given, found


def whole(folder: Folder, normalised: bool) -> dict[str, Any]:
    """Similarity and width of a dual encoder.

    Raises:
        UserError: another similarity than dot and cosine.
    """
    found: dict[str, Any] = {}
    if top(folder).get("truncate_dim"):
        found["truncate_dim"] = int(top(folder)["truncate_dim"])
    similarity = top(folder).get("similarity_fn_name")
    if similarity in ("dot", "dot_score", "cosine"):
        found["similarity"] = similarity.removesuffix("_score")
    elif similarity is not None:
        raise UserError(
            f"{folder.path}: similarity_fn_name is {similarity!r}",
            "only dot and cosine are read",
        )
    elif not normalised:
        # The library's own default; of unit vectors both are one.
        found["similarity"] = "cosine"
    return found


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
    _only(folder, max_active_dims=None, similarity_fn_name="dot")
    found = {
        "pooling": config.get("pooling_strategy", "max"),
        "query_activation": _SPLADE[activation],
        "doc_activation": _SPLADE[activation],
        **_lengths(folder, root, base),
        **prompts(folder, tokenizer, fields),
    }
    # The head's activation is the encoder's, in some families the gelu always.
    found["head_activation"] = encoders.head_activation(base.sizes)
    fields = {**found, **stated(folder, most=found["doc_length"]), **fields}
    return assemble("splade", base, seed=seed, **fields)


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


def _only(folder: Folder, **read: Any) -> None:
    """Refuses a setting that changes scores and is read in one form, or None, only."""
    for name, value in read.items():
        found = top(folder).get(name)
        if found not in (None, value):
            raise UserError(
                f"{folder.path}/config_sentence_transformers.json: {name} is {found!r}",
                (f"only {value!r} is read" if value else "that is not read")
                + "; take the entry out to go without it",
            )


def _pooling(path: Path) -> str:
    config = read_json(path / "config.json")
    if config is None:
        raise UserError(
            f"{path}: no config.json of the pooling", "fetch the model again"
        )
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


def dense(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A Dense module: parameters of the projection, and its fields in a spec.

    Raises:
        UserError: an activation that is not read, or a residual.
    """
    config = read_json(path / "config.json", {})
    tensors = safe.open_folder(path)
    weight = np.asarray(tensors["linear.weight"], np.float32)
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS or config.get("use_residual"):
        raise UserError(
            f"{path}: a Dense with {activation} and use_residual "
            f"{bool(config.get('use_residual'))}",
            f"{', '.join(_ACTIVATIONS)} without a residual are read",
        )
    given = {"projection.kernel": np.ascontiguousarray(weight.T)}
    if "linear.bias" in tensors:
        given["projection.bias"] = np.asarray(tensors["linear.bias"], np.float32)
    return given, {
        "projection": weight.shape[0],
        "projection_bias": "linear.bias" in tensors,
        "projection_activation": _ACTIVATIONS[activation],
    }


def _further(paths: list[Path], given: dict[str, np.ndarray]) -> tuple:
    """``more_projections`` of the Dense modules; their parameters go into ``given``."""
    made = []
    for i, path in enumerate(paths):
        params, fields = dense(path)
        for name, array in params.items():
            given[f"project.dense_{i}.{name.rsplit('.', 1)[-1]}"] = array
        made.append(tuple(fields.values()))
    return tuple(made)


def _lengths(folder: Folder, root: Path, base: Any) -> dict[str, int]:
    """Tokens at most, special tokens included, as sentence-transformers counts."""
    inner = read_json(root / "sentence_bert_config.json", {})
    cased = base.tokenizer.encode("A") != base.tokenizer.encode("a")
    if inner.get("do_lower_case") and cased:
        raise UserError(
            f"{root}: texts are lowercased before a cased tokenizer",
            'give tokenizer= one with "do_lower_case": true in tokenizer_config.json',
        )
    most = hugging_face.longest(root, base.sizes)
    return {
        "query_length": int(inner.get("query_length") or most),
        "doc_length": int(inner.get("document_length") or most),
    }


def prompts(folder: Folder, tokenizer: Tokenizer, fields: dict) -> dict[str, str]:
    """The prefixes of queries and documents that the folder names."""
    said = top(folder).get("prompts") or {}
    # null and "" are a prompt of their own: none.
    default = top(folder).get("default_prompt_name") or ""
    if default and default not in said:
        raise UserError(
            f"{folder.path}: default_prompt_name is {default!r}, which is none of its "
            f"prompts{near(str(default), said)}",
            "correct config_sentence_transformers.json",
        )
    default = said.get(default) or ""
    sides = {
        "query_prefix": ("query",),
        "doc_prefix": ("document", "passage", "corpus"),
    }
    found = {}
    for name, keys in sides.items():
        given = [said[key] for key in keys if key in said]
        found[name] = (given[0] or "") if given else default
    for name, prompt in found.items():
        if tokenizer.merges and prompt and prompt != f"{prompt.strip()} ":
            # Nothing comes between the prompt and the text.
            found[name] = f"{prompt}{{join}}"
        elif name not in fields:
            _apart(prompt, tokenizer, folder.path)
    return found


def _apart(prompt: str, tokenizer: Tokenizer, path: Path) -> None:
    """Refuses a prompt that would run into the text: a template has a blank there."""
    ends = not prompt or prompt[-1].isspace()
    if not ends and tokenizer.encode(f"{prompt}a") != tokenizer.encode(f"{prompt} a"):
        raise UserError(
            f"{path}: the prompt {prompt!r} does not end in a space",
            "give query_prefix= and doc_prefix=; a space is added after them",
        )
