"""Adapters as a folder that ``peft`` loads onto the model that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.reading import write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.t5 import T5Sizes
from distill_jax.weights import t5
from distill_jax.weights.encoders import family_named
from distill_jax.weights.tables import renamed


def write(
    folder: Path, base: Pretrained, adapters: Mapping[str, Any], *, share: float = 1.0
) -> bool:
    """``adapter_config.json`` and ``adapter_model.safetensors`` of the encoder.

    The modules have the names of ``AutoModel`` (T5: ``T5ForConditionalGeneration``).

    Args:
        base: the model under the adapters.
        adapters: ``lora_a`` [in, rank], ``lora_b`` [rank, out] and ``lora_scale`` by
            path; see ``models.lora``.
        share: of the adapters in the trained model, where weights were averaged.

    Returns:
        False, and nothing is written, where transformers has no such module: it keeps
        query, key and value as one matrix, or there are two towers.
    """
    from safetensors.numpy import save_file

    tensors, modules = {}, []
    for path, leaf in adapters.items():
        stem, _, what = path.rpartition(".lora_")
        if what == "scale":
            continue
        module = _module(base.spec.backbone, stem)
        if module is None:
            return False
        part = {"a": "lora_A", "b": "lora_B"}[what]
        tensors[f"base_model.model.{module}.{part}.weight"] = np.ascontiguousarray(
            np.asarray(leaf, np.float32).T
        )
        modules += [module] if what == "a" else []
    rank = next(leaf.shape[1] for k, leaf in adapters.items() if k.endswith("lora_a"))
    scale = next(leaf for k, leaf in adapters.items() if k.endswith("lora_scale"))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"), {"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": base.source.removeprefix("hf:"),
            "r": rank,
            "lora_alpha": float(scale) * rank * share,
            "lora_dropout": 0.0,
            "target_modules": sorted(modules),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )
    return True


def _module(sizes: Any, stem: str) -> str | None:
    """transformers' module of one of our layers, or None."""
    top, _, rest = stem.partition(".")
    if top not in ("tower", "backbone"):
        return None
    if isinstance(sizes, T5Sizes):
        rules: Any = t5.TABLE
        fused: Any = {}
    else:
        family = family_named(sizes.family)
        rules, fused = family.encoder, family.fused
        rest = rest if top == "tower" else f"encoder.{rest}"
    found = renamed(f"{rest}.kernel", rules, reading=False)
    if found is None:
        return None
    module = found[0].removesuffix(".weight")
    parts = [part for names in fused.values() for part in names]
    return None if any(module.endswith(f".{part}") for part in parts) else module
