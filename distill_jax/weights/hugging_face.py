"""Hugging Face folders: T5 and the encoder families, bare or with a task's head."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained, flatten
from distill_jax.models.reranker import CROSS_ENCODER
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders, safe, t5
from distill_jax.weights.folders import Folder, is_mono, read_json, stated, top
from distill_jax.weights.students import Base, assemble

_T5 = ("t5", "mt5", "umt5")
# Our path of the matrix whose columns are a head's outputs.
_LAST = r"head\.(classifier|out_proj|linear)\.kernel"


def backbone(folder: Folder, tokenizer: Tokenizer, root: Path | None = None) -> Base:
    """The encoder (of a T5 its decoder too), and a masked language model's head.

    Raises:
        UserError: another architecture, or names and shapes that do not fit.
    """
    root = root or folder.path
    config = read_json(root / "config.json", {})
    tensors = safe.open_folder(root)
    if _is_t5_config(config):
        tensors = _without_prefix(tensors, "transformer.")
        ignore = {name: tensors[name] for name in tensors if _is_t5(name)}
        sizes, params = t5.read(config, ignore, source=str(root))
        return Base(sizes, params, tokenizer, str(folder.path))
    family = encoders.family_of(config, f"{root}/config.json")
    known = [rule.theirs for rule in family.heads.get("mlm", ())][:1]
    has_mlm = any(name in tensors for name in known) and _is_masked_lm(config)
    head = "mlm" if has_mlm else None
    sizes, params, _ = encoders.read(config, tensors, head=head, source=str(root))
    return Base(
        sizes,
        params["encoder"],
        tokenizer,
        str(folder.path),
        params.get("head", {}),
    )


def read_classifier(
    folder: Folder, tokenizer: Tokenizer, seed: int, fields: dict
) -> Pretrained:
    """A ...ForSequenceClassification or a lightning-ir mono with one output.

    Raises:
        UserError: it has several outputs, or is neither a BERT nor an ELECTRA.
    """
    config, path = folder.config, folder.path
    if _is_t5_config(config):
        raise UserError(
            f"{path}: a classifier on a T5 is not read",
            "give a T5ForConditionalGeneration or a T5EncoderModel",
        )
    family = encoders.family_of(config, f"{path}/config.json")
    head = "linear" if is_mono(config) else family.classifier
    tensors = safe.open_folder(path)
    last = next(
        rule.theirs for rule in family.heads[head] if re.fullmatch(_LAST, rule.ours)
    )
    outputs = tensors[last].shape[0] if last in tensors else 1
    if config.get("pooling_strategy", "first") != "first" or "linear.bias" in tensors:
        raise UserError(
            f"{path}: a mono that pools by {config.get('pooling_strategy')!r}, or with "
            "a bias",
            "only a linear layer without bias on [CLS] is read",
        )
    if outputs > 2:
        raise UserError(
            f"{path}: a classifier of {outputs} classes; a cross-encoder has 1 or 2",
            "train one with num_labels=1",
        )
    if outputs == 2:
        tensors = _folded(tensors, last)
    sizes, params, _ = encoders.read(config, tensors, head=head, source=str(path))
    flat = flatten({"head": params["head"]})
    base = Base(sizes, params["encoder"], tokenizer, str(path))
    texts = read_json(path / "tokenizer_config.json", {})
    most = longest(path, sizes)
    usual = ["token_type_ids"] if tokenizer.kind == "bert" else []
    found = {
        "head": head,
        "prompt": _prompted(folder, kind := _noted_kind(folder)),
        # What its tokenizer does not give, the model takes for zeros.
        "token_types": "token_type_ids" in texts.get("model_input_names", usual),
    }
    if kind == "reranker" and not is_mono(config):
        # Llama's line scores at the last token, the others where they say.
        usual = "last" if head == "linear" else "cls"
        found["pooling"] = config.get("classifier_pooling", usual)
    if kind == "reranker":
        # The library cuts the joined pair, the longer text first.
        found["length"] = most
        found["query_length"] = config.get("query_length") or most
        found["doc_length"] = config.get("doc_length") or most
    fields = {**found, **stated(folder, most=most, prompt=found["prompt"]), **fields}
    return assemble(kind, base, flat, seed=seed, **fields)


def _noted_kind(folder: Folder) -> str:
    """A pairwise reranker has the layout of a pointwise one; our export marks it."""
    return (folder.config.get("distill_jax") or {}).get("kind", "reranker")


def _folded(tensors: Any, last: str) -> dict:
    """Two classes as one score, logit 1 minus logit 0, exactly."""
    changed = {}
    for name in (last, last.removesuffix("weight") + "bias"):
        if name in tensors:
            rows = np.asarray(tensors[name], np.float32)
            changed[name] = rows[1:2] - rows[0:1]
    return {**tensors, **changed}


def _prompted(folder: Folder, kind: str) -> str:
    """A cross-encoder's template, with its default prompt before the query."""
    prompts = top(folder).get("prompts") or {}
    prompt = prompts.get(top(folder).get("default_prompt_name") or "") or ""
    if not prompt:
        return ""
    if kind != "reranker" or "{" in prompt:
        raise UserError(
            f"{folder.path}/config_sentence_transformers.json: the prompt {prompt!r}",
            "take default_prompt_name out to go without it",
        )
    return CROSS_ENCODER.replace("{query}", f"{prompt}{{query}}")


def longest(root: Path, sizes: Any) -> int:
    """Tokens of a sequence at most, special tokens included, as the library counts."""
    inner = read_json(root / "sentence_bert_config.json", {})
    config = read_json(root / "tokenizer_config.json", {})
    most = inner.get("max_seq_length") or config.get("model_max_length") or 512
    most = int(min(most, getattr(sizes, "max_positions", 1 << 20)))
    return 512 if most > 1 << 17 else most  # a stated infinity


def read_model(
    folder: Folder, tokenizer: Tokenizer, kind: str | None, seed: int, fields: dict
) -> Pretrained:
    """A T5, BERT or ELECTRA that is not a cross-encoder.

    A T5 with a decoder is a reranker by default; other base models
    need an explicit kind.

    Raises:
        UserError: no ``kind`` is given and the folder does not say.
    """
    note = folder.config.get("distill_jax") or {}
    base = backbone(folder, tokenizer)
    if kind is None:
        kind = note.get("kind")
    if kind is None and getattr(base.sizes, "decoder_layers", 0):
        kind = "reranker"
    if kind is None:
        architecture = (folder.config.get("architectures") or ["a base model"])[0]
        raise UserError(
            f"{folder.path} is {architecture}: nothing says which student it is",
            "give kind= reranker, duo, dual_encoder, colbert, splade or generator",
        )
    if kind == note.get("kind"):
        fields = {**stated(folder), **fields}
    given: dict[str, np.ndarray] = {}
    if kind in ("reranker", "duo"):
        given = _token_classifier(folder, base)
        if given:
            fields.setdefault("head", "linear")
    return assemble(kind, base, given, seed=seed, **fields)


def _token_classifier(folder: Folder, base: Base) -> dict[str, np.ndarray]:
    """The linear head of a T5ForTokenClassification, read at position 0."""
    architecture = (folder.config.get("architectures") or [""])[0]
    if not architecture.endswith("ForTokenClassification"):
        return {}
    tensors = safe.open_folder(folder.path)
    weight = np.asarray(tensors["classifier.weight"], np.float32)
    if weight.shape[0] != 1 or not _is_t5_config(folder.config):
        raise UserError(
            f"{folder.path}: {architecture} with {weight.shape[0]} outputs",
            "a reranker has one, on a T5",
        )
    return {
        "head.kernel": np.ascontiguousarray(weight.T),
        "head.bias": np.asarray(tensors["classifier.bias"], np.float32),
    }


def _is_t5_config(config: dict) -> bool:
    return str(config.get("model_type", "")).lower() in _T5


def _is_masked_lm(config: dict) -> bool:
    architecture = (config.get("architectures") or [""])[0]
    return architecture.endswith(("ForMaskedLM", "ForPreTraining"))


def _is_t5(name: str) -> bool:
    return name.startswith(("shared.", "encoder.", "decoder.", "lm_head."))


def _without_prefix(tensors: Any, prefix: str) -> Any:
    if not any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): tensors[name] for name in tensors}
