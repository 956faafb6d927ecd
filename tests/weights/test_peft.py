"""Adapters in the form of ``peft``: on the base they give the merged model."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from distill_jax.export import hugging_face
from distill_jax.models import lora, t5
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import bert_sizes
from distill_jax.models.pretrained import (
    Pretrained,
    flatten,
    initial_params,
    unflatten,
)
from distill_jax.models.reranker import RerankerSpec
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders, peft
from distill_jax.weights.t5 import write as write_t5

LORA = lora.LoRA(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(["a few words of a text", "and another one"], 60)


def adapted(tokenizer, spec) -> tuple[Pretrained, dict, dict]:
    """A base, its adapters (B is not 0), and the merged parameters."""
    params = jax.device_get(initial_params(spec, 0))
    base = Pretrained(spec, params, tokenizer, source="hf:some/base")
    _, leaves = lora.parted(LORA.adapted(params, 0))
    random = np.random.default_rng(0)
    for name, leaf in leaves.items():
        if name.endswith("lora_b"):
            leaves[name] = random.normal(size=leaf.shape).astype(np.float32)
    flat = {**flatten(params), **leaves}
    return base, leaves, jax.device_get(lora.merged(unflatten(flat)))


def bert(**changes):
    return bert_sizes("tiny", vocab_size=128, **changes)


def theirs(spec, params) -> dict[str, np.ndarray]:
    """Tensors of the bare encoder under transformers' names."""
    if isinstance(spec.backbone, t5.T5Sizes):
        return write_t5(spec.backbone, params["backbone"])[1]
    tower = params["tower"]["encoder"] if "tower" in params else params["backbone"]
    return encoders.write(spec.backbone, {"encoder": tower})[1]


@pytest.mark.parametrize("kind", ["dual_encoder", "cross_encoder", "t5"])
def test_the_base_and_the_products_are_the_merged_tensors(tmp_path, tokenizer, kind):
    spec = {
        "dual_encoder": lambda: DualEncoderSpec(backbone=bert()),
        "cross_encoder": lambda: RerankerSpec(backbone=bert(), head="bert_classifier"),
        "t5": lambda: RerankerSpec(backbone=t5.sizes("tiny", vocab_size=128)),
    }[kind]()
    base, leaves, merged = adapted(tokenizer, spec)
    assert peft.write(tmp_path, base, leaves, share=0.5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["lora_alpha"] / config["r"] == 1.0  # half of alpha / rank = 2
    found = load_file(tmp_path / "adapter_model.safetensors")
    before, after = theirs(spec, base.params), theirs(spec, merged)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in config["target_modules"]}
    assert len(found) == 2 * len(moved)
    for name in moved:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (found[f"{stem}.lora_{x}.weight"] for x in "AB")
        np.testing.assert_allclose(after[name], before[name] + 2 * (b @ a), atol=1e-5)


def test_matrices_that_transformers_keeps_as_one_have_no_adapter(tmp_path, tokenizer):
    spec = DualEncoderSpec(backbone=dataclasses.replace(bert(), family="modernbert"))
    base, leaves, _ = adapted(tokenizer, spec)
    assert not peft.write(tmp_path / "none", base, leaves)
    assert not (tmp_path / "none").exists()


def test_two_towers_have_no_adapter(tmp_path, tokenizer):
    base, leaves, _ = adapted(tokenizer, DualEncoderSpec(backbone=bert(), tied=False))
    assert not peft.write(tmp_path / "none", base, leaves)


def test_peft_gives_the_merged_encoders_states(tmp_path, tokenizer):
    library = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    base, leaves, merged = adapted(tokenizer, DualEncoderSpec(backbone=bert()))
    assert peft.write(tmp_path / "adapter", base, leaves)
    hugging_face.write(base, tmp_path / "base")
    hugging_face.write(base.replace(params=merged), tmp_path / "merged")
    ids = torch.tensor([[2, 7, 9, 11, 3], [2, 30, 4, 5, 3]])
    with torch.no_grad():
        whole = AutoModel.from_pretrained(tmp_path / "merged").eval()
        start = AutoModel.from_pretrained(tmp_path / "base").eval()
        before = start(input_ids=ids).last_hidden_state
        wanted = whole(input_ids=ids).last_hidden_state
        model = library.PeftModel.from_pretrained(start, tmp_path / "adapter").eval()
        found = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (before - wanted).abs().max() > 0.1
