"""Language models of Llama's line, with their vocabulary heads and chat templates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.causal import CausalSpec
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders, safe
from distill_jax.weights.folders import Folder, read_json, recognise
from distill_jax.weights.hugging_face import backbone
from distill_jax.weights.places import locate


def is_language_model(name: str) -> bool:
    """Whether ``name`` is a folder, or a repository, of a ...ForCausalLM."""
    if name == "initial" or name.startswith(("stage:", "fresh:")):
        return False
    try:
        return _is_causal(recognise(locate(name)).config)
    except UserError:
        return False  # whoever loads it says what is wrong


def _is_causal(config: dict) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForCausalLM")


def read(folder: Folder, tokenizer: Tokenizer, dtype: str | None = None) -> Pretrained:
    """A ...ForCausalLM whole: every layer, the head, the template.

    Raises:
        UserError: another model, or one without an end token.
    """
    config = folder.config
    family = encoders.family_of(config, f"{folder.path}/config.json")
    if not _is_causal(config) or "linear" not in family.heads:
        raise UserError(
            f"{folder.path}: no language model of Llama's line",
            "give a ...ForCausalLM, or a T5 with its decoder",
        )
    if tokenizer.eos_id is None or tokenizer.pad_id is None:
        raise UserError(
            f"{folder.path}: no eos_token or no pad_token in tokenizer_config.json",
            "add them",
        )
    base = backbone(folder, tokenizer)
    changes: dict[str, Any] = {"pad_id": tokenizer.pad_id}
    changes |= {"dtype": dtype} if dtype else {}
    sizes = dataclasses.replace(base.sizes, **changes)
    tensors = safe.open_folder(folder.path)
    own = "lm_head.weight" in tensors and not config.get("tie_word_embeddings", False)
    params: dict[str, Any] = {"encoder": base.params}
    if own:
        head = np.asarray(tensors["lm_head.weight"], np.float32)
        params["lm_head"] = np.ascontiguousarray(head.T)
    cap = config.get("final_logit_softcapping")
    spec = CausalSpec(
        backbone=sizes,
        tied=not own,
        cap=float(cap) if cap else None,
        chat_template=_chat_template(folder.path),
        special_tokens=_special_tokens(folder.path),
        eos_id=tokenizer.eos_id,
    )
    return Pretrained(spec, params, tokenizer, str(folder.path))


def _special_tokens(path: Path) -> tuple[tuple[str, str], ...]:
    config = read_json(path / "tokenizer_config.json", {})
    found = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in found.items()
    }
    return tuple((name, str(text)) for name, text in texts.items() if text)


def _chat_template(path: Path) -> str:
    """The folder's template of chats, "" without."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text("utf-8")
    found = read_json(path / "tokenizer_config.json", {}).get("chat_template") or ""
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found}
        found = named.get("default") or ""
    return str(found)
