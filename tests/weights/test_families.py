"""Every encoder family against transformers' own classes, on random tiny weights."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.inference import programs
from distill_jax.io.errors import UserError
from distill_jax.models.bert import BertEncoder
from distill_jax.models.pooling import POOLS
from distill_jax.models.pretrained import flatten
from distill_jax.runtime.sharding import partition_of
from distill_jax.weights import encoders
from distill_jax.weights.safe import open_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "num_labels": 1,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}
NARROW = {**SMALL, "embedding_size": 12}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# Low, so that both are felt.
CAPS = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}
DISTANCES = {
    **{"relative_attention": True, "share_att_key": True, "type_vocab_size": 0},
    **{"norm_rel_ebd": "layer_norm", "position_biased_input": False},
    **{"pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16, "pooler_dropout": 0.0},
}
# name -> (transformers' stem, config)
FORMS: dict[str, tuple[str, dict]] = {
    "bert": ("Bert", SMALL),
    "bert-relu": ("Bert", {**SMALL, "hidden_act": "relu", "type_vocab_size": 1}),
    "electra": ("Electra", NARROW),
    "ernie": ("Ernie", SMALL),
    "roberta": ("Roberta", SMALL),
    "xlm-roberta": ("XLMRoberta", SMALL),
    "camembert": ("Camembert", SMALL),
    "mpnet": ("MPNet", SMALL),
    "distilbert": (
        "DistilBert",
        {
            **{"vocab_size": 60, "dim": 16, "hidden_dim": 24, "n_layers": 3},
            **{"n_heads": 4, "max_position_embeddings": 66, "pad_token_id": 1},
            "num_labels": 1,
        },
    ),
    "albert": ("Albert", NARROW),
    "deberta": ("DebertaV2", {**SMALL, **DISTANCES, "position_buckets": 8}),
    "deberta-near": (
        "DebertaV2",
        {**SMALL, **DISTANCES, "position_buckets": -1, "max_relative_positions": 12},
    ),
    "modernbert": ("ModernBert", {**SMALL, "local_attention": 8}),
    "modernbert-biases": (
        "ModernBert",
        {
            **{**SMALL, "local_attention": 6, "norm_bias": True},
            **{"attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        },
    ),
    "nomic": ("NomicBert", {**SMALL, "hidden_act": "silu"}),
    "gte": ("Gte", {**SMALL, "type_vocab_size": 1}),
    "gte-untyped": ("Gte", {**SMALL, "type_vocab_size": 0}),
    "eurobert": ("EuroBert", GROUPED),
    "llama": ("Llama", GROUPED),
    "llama3": ("Llama", {**GROUPED, "rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 6, **CAPS}),
    "gemma2-uncapped": (
        "Gemma2",
        {**GROUPED, "head_dim": 8, "attn_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3Text",
        {**GROUPED, "head_dim": 8, "sliding_window": 6, **WINDOWS},
    ),
    "embeddinggemma": (
        "Gemma3Text",
        {
            **{**GROUPED, "head_dim": 8, "sliding_window": 6, **WINDOWS},
            "use_bidirectional_attention": True,
        },
    ),
}


def config_of(name: str):
    stem, values = FORMS[name]
    return getattr(transformers, f"{stem}Config")(**values)


def drawn(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + noise * 0.2)
    return model.eval()


def saved(name: str, head: str, folder):
    """A random model of the family's class for a head, saved as its users save it."""
    config = config_of(name)
    cls = getattr(transformers, f"{FORMS[name][0]}{head}")
    model = drawn(cls(config))
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text())


def batch(length: int = 30):
    random = np.random.default_rng(0)
    tokens = random.integers(5, 60, (4, length)).astype(np.int32)
    mask = np.arange(length) < np.array([length, 17, 9, 3])[:, None]
    return np.where(mask, tokens, 1), mask


def theirs(model, tokens, mask):
    with torch.inference_mode():
        found = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        )
    return found[0].numpy()


def close(ours, expected, mask=None, tolerance=1e-5):
    ours, expected = np.asarray(ours, np.float32), np.asarray(expected)
    if mask is not None:
        ours, expected = ours[mask], expected[mask]
    scale = np.abs(expected).max()
    assert np.abs(ours - expected).max() <= tolerance * scale


def module(maker, sizes, params):
    graphdef = nnx.split(nnx.eval_shape(lambda: maker(sizes, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graphdef, nnx.State(params))


def encode(encoder, tokens, mask, **how):
    return jax.jit(lambda t, m: encoder(t, mask=m, **how))(tokens, mask)


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("name", FORMS)
def test_hidden_states_are_those_of_transformers(name, tmp_path):
    model, config = saved(name, "Model", tmp_path / "in")
    sizes, params, _ = encoders.read(config, open_folder(tmp_path / "in"))
    encoder = module(BertEncoder, sizes, params["encoder"])
    tokens, mask = batch()
    expected = theirs(model, tokens, mask)
    hidden = encode(encoder, tokens, mask)
    close(hidden, expected, mask)
    leading = encode(encoder, tokens, mask, positions=2)
    close(leading, expected[:, :2])
    half = dataclasses.replace(sizes, dtype="bfloat16")
    rough = module(BertEncoder, half, params["encoder"])
    close(encode(rough, tokens, mask), expected, mask, 0.08)
    spec = types.SimpleNamespace(
        backbone=dataclasses.replace(sizes, dtype="int8"),
    )
    codes = programs.narrowed(spec, params["encoder"])
    rough = module(BertEncoder, spec.backbone, codes)
    # The greatest error is of one rounding in thousands; the length of all is not.
    near = encode(rough, tokens, mask)[mask] - expected[mask]
    assert np.linalg.norm(near) <= 0.05 * np.linalg.norm(expected[mask])
    for path in flatten(params["encoder"]):
        assert partition_of(f"tower.encoder.{path}") is not None
    # And out again: their class from our folder.
    config, tensors = encoders.write(sizes, params)
    (tmp_path / "out").mkdir()
    from distill_jax.export.folders import write_model

    write_model(tmp_path / "out", config, tensors, None)
    cls = getattr(transformers, f"{FORMS[name][0]}Model")
    again, said = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all("pooler" in key for key in said["missing_keys"])
    assert not said["unexpected_keys"]
    close(theirs(again.eval(), tokens, mask), expected, mask)


WITHOUT_CLASSIFIER = ("nomic", "eurobert")
CLASSIFIED = [name for name in FORMS if name not in WITHOUT_CLASSIFIER]


@pytest.mark.parametrize("name", CLASSIFIED)
def test_classifiers_give_the_logits_of_transformers(name, tmp_path):
    model, config = saved(name, "ForSequenceClassification", tmp_path)
    head = encoders.family_of(config).classifier
    sizes, params, _ = encoders.read(config, open_folder(tmp_path), head=head)
    encoder = module(BertEncoder, sizes, params["encoder"])
    classify = module(encoders.HEADS[head], sizes, params["head"])
    tokens, mask = batch()
    hidden = encode(encoder, tokens, mask)
    last = head == "linear"
    pooled = POOLS["last"](hidden, jnp.asarray(mask)) if last else hidden[:, 0]
    close(classify(pooled), theirs(model, tokens, mask))
    config, tensors = encoders.write(sizes, params, head=head)
    from distill_jax.export.folders import write_model

    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", config, tensors, None)
    again, said = type(model).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    close(theirs(again.eval(), tokens, mask), theirs(model, tokens, mask))


MASKED = [
    name
    for name in FORMS
    if encoders.FAMILIES[config_of(name).model_type].heads.get("mlm")
]


@pytest.mark.parametrize("name", MASKED)
def test_vocabulary_heads_give_the_logits_of_transformers(name, tmp_path):
    model, config = saved(name, "ForMaskedLM", tmp_path)
    tensors = open_folder(tmp_path)
    sizes, params, _ = encoders.read(config, tensors, head="mlm")
    encoder = module(BertEncoder, sizes, params["encoder"])
    activation = encoders.head_activation(sizes)

    def maker(sizes, rngs):
        return encoders.HEADS["mlm"](sizes, rngs=rngs, activation=activation)

    head = module(maker, sizes, params["head"])
    tokens, mask = batch()
    hidden = encode(encoder, tokens, mask)
    logits = head(hidden, encoder.embeddings.word[...])
    close(logits, theirs(model, tokens, mask), mask)


@pytest.mark.parametrize(
    "change", [{"use_bidirectional_attention": True}, {"hidden_act": "relu"}]
)
def test_a_gemma_of_another_form_is_refused(change):
    config = {**config_of("gemma").to_dict(), **change}
    with pytest.raises(UserError, match=next(iter(change))):
        encoders.sizes_of(config, {})
