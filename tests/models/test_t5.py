"""T5 against transformers' own, through folders, for every form."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models import attention, t5
from distill_jax.models.pretrained import build, initial_params
from distill_jax.weights import t5 as hf
from distill_jax.weights.safe import open_folder

TINY = {
    "vocab_size": 60,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 12,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
FORMS = {
    "1.0 tied relu": {"feed_forward_proj": "relu"},
    "1.1 untied gated": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "tied gated": {"feed_forward_proj": "gated-gelu"},
    "tied gated silu": {"feed_forward_proj": "gated-silu"},
    "umt5": {"feed_forward_proj": "gated-gelu"},
}
IDS = (7, 11, 3)


def tokens_of(seed=0, rows=5, length=23):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, TINY["vocab_size"], (rows, length)).astype(np.int32)
    for row, size in enumerate(rng.integers(2, length + 1, rows)):
        tokens[row, size:] = 0
    return tokens


def spread(model, torch, seed=0):
    """Random weights large enough that every part of the model is felt."""
    torch.set_num_threads(1)  # tiny products: threads only wait for each other
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layer_norm.weight"):
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif "relative_attention_bias" in name or name == "shared.weight":
                weight.copy_(torch.randn_like(weight))
            else:
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module", params=list(FORMS))
def folder(request, tmp_path_factory):
    """A folder that transformers wrote, and the model it reads back from it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("t5")
    stem = "UMT5" if request.param == "umt5" else "T5"
    config = getattr(transformers, f"{stem}Config")(**TINY, **FORMS[request.param])
    cls = getattr(transformers, f"{stem}ForConditionalGeneration")
    model = spread(cls(config), torch)
    if "untied" in request.param:
        # A fresh model is tied whatever its config says; a checkpoint is not.
        model.lm_head.weight = torch.nn.Parameter(
            0.3 * torch.randn(TINY["vocab_size"], TINY["d_model"])
        )
    model.save_pretrained(path)
    return path, cls.from_pretrained(path).eval()


def load(path, **overrides):
    config = json.loads((path / "config.json").read_text())
    sizes, params = hf.read(config, open_folder(path), **overrides)
    return sizes, nnx.merge(
        nnx.split(nnx.eval_shape(lambda: build(sizes, nnx.Rngs(0))))[0],
        nnx.State(params),
    )


def theirs(model, tokens, targets):
    import torch

    ids = torch.tensor(tokens).long()
    start = torch.tensor(np.pad(targets, ((0, 0), (1, 0)))[:, :-1]).long()
    with torch.no_grad():
        out = model(
            input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=start
        )
    return out.logits.numpy()


def test_every_target_position_has_transformers_logits(folder):
    path, model = folder
    _, ours = load(path)
    tokens = tokens_of()
    targets = np.random.default_rng(1).integers(1, 60, (5, 7))
    want = theirs(model, tokens, targets)
    got = ours.target_logits(jnp.asarray(tokens), jnp.asarray(targets))
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_first_step_has_transformers_logits_at_the_words(folder):
    path, model = folder
    _, ours = load(path)
    tokens = tokens_of(2)
    want = theirs(model, tokens, np.zeros((5, 1), int))[:, 0][:, list(IDS)]
    got = ours.first_step_logits(jnp.asarray(tokens), IDS)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_encoder_only_reads_the_encoder_of_the_same_folder(folder):
    torch = pytest.importorskip("torch")
    path, model = folder
    sizes, ours = load(path, encoder_only=True)
    assert sizes.decoder_layers == 0
    assert not hasattr(ours, "decoder")
    tokens = tokens_of(3)
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        want = model.encoder(input_ids=ids, attention_mask=(ids != 0).long())
    want = want.last_hidden_state.numpy()
    got = np.asarray(ours.encoder(jnp.asarray(tokens)))
    where = tokens != 0
    np.testing.assert_allclose(got[where], want[where], atol=1e-4)
    first = ours.encoder(jnp.asarray(tokens), positions=1)
    np.testing.assert_allclose(first[:, 0], want[:, 0], atol=1e-4)


def test_what_we_write_transformers_reads(folder, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    path, model = folder
    sizes, ours = load(path)
    params = nnx.to_pure_dict(nnx.state(ours, nnx.Param))
    config, tensors = hf.write(sizes, params)
    save_file(tensors, str(tmp_path / "model.safetensors"), {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = type(model).from_pretrained(tmp_path).eval()
    tokens, targets = tokens_of(4), np.ones((5, 3), int)
    want = theirs(model, tokens, targets)
    np.testing.assert_allclose(theirs(again, tokens, targets), want, atol=1e-5)
    stem = "UMT5" if sizes.layer_bias else "T5"
    cls = getattr(transformers, f"{stem}EncoderModel")
    encoder = cls.from_pretrained(tmp_path).eval()
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        out = encoder(input_ids=ids, attention_mask=(ids != 0).long())
    got = ours.encoder(jnp.asarray(tokens))
    np.testing.assert_allclose(
        np.asarray(got)[tokens != 0],
        out.last_hidden_state.numpy()[tokens != 0],
        atol=1e-4,
    )


def test_encoder_folder_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(**TINY, feed_forward_proj="gated-gelu")
    model = spread(transformers.T5EncoderModel(config), torch).eval()
    model.save_pretrained(tmp_path)
    sizes, ours = load(tmp_path)
    assert sizes.decoder_layers == 0
    tokens = tokens_of(5)
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=(ids != 0).long())
    got = np.asarray(ours.encoder(jnp.asarray(tokens)))
    where = tokens != 0
    np.testing.assert_allclose(
        got[where], want.last_hidden_state.numpy()[where], atol=1e-4
    )


def test_unknown_missing_and_misshapen_names_are_told_together(folder):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    tensors = dict(open_folder(path))
    norm = "encoder.final_layer_norm.weight"
    tensors["encoder.final_layernorm.weight"] = tensors.pop(norm)
    wrong = "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors[wrong] = tensors[wrong][:, :-1]
    with pytest.raises(UserError) as caught:
        hf.read(config, tensors)
    message = str(caught.value)
    assert len(message.splitlines()) == 2
    assert f"encoder.final_layernorm.weight (near {norm})" in message
    assert f"missing: {norm}" in message
    assert f"{wrong} [48, 31]" in message or f"{wrong} [31, 48]" in message


SMALL = t5.T5Sizes(
    vocab_size=50,
    d_model=24,
    d_ff=40,
    heads=3,
    d_kv=8,
    encoder_layers=2,
    decoder_layers=2,
)


def module(sizes, seed=0):
    """A T5 whose weights are large enough for the parts to matter."""
    made = build(sizes, nnx.Rngs(seed))
    params = nnx.to_pure_dict(nnx.state(made, nnx.Param))
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * jax.random.normal(next(keys), leaf.shape), params
    )
    return nnx.merge(nnx.split(made)[0], nnx.State(params))


@pytest.mark.parametrize("gated", [False, True])
def test_absorbed_first_step_equals_the_plain_decoder(gated):
    model = module(dataclasses.replace(SMALL, gated=gated, tied=not gated))
    tokens = jnp.asarray(tokens_of(6) % 50)
    with jax.default_matmul_precision("highest"):
        short = model.first_step_logits(tokens, IDS)
        plain = model.target_logits(tokens, jnp.zeros((5, 1), int))[:, 0]
    np.testing.assert_allclose(short, plain[:, list(IDS)], rtol=1e-5, atol=1e-5)


def test_absorbed_first_step_has_the_plain_gradient():
    model = module(SMALL)
    graph, state = nnx.split(model)
    tokens = jnp.asarray(tokens_of(6) % 50)

    def short(state):
        return nnx.merge(graph, state).first_step_logits(tokens, IDS)[:, 0].sum()

    def plain(state):
        made = nnx.merge(graph, state)
        return made.target_logits(tokens, jnp.zeros((5, 1), int))[:, 0, IDS[0]].sum()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        jax.jit(jax.grad(short))(state),
        jax.jit(jax.grad(plain))(state),
    )


def test_padding_does_not_change_a_score():
    model = module(SMALL)
    tokens = jnp.asarray(tokens_of(7) % 50)
    longer = jnp.pad(tokens, ((0, 0), (0, 9)))
    np.testing.assert_allclose(
        model.first_step_logits(longer, IDS),
        model.first_step_logits(tokens, IDS),
        atol=1e-5,
    )


@pytest.mark.long
@pytest.mark.parametrize("remat", ["matmuls", "full"])
def test_rematerialising_changes_neither_loss_nor_gradient(remat):
    tokens = jnp.asarray(tokens_of(8) % 50)
    params = initial_params(SMALL, 0)

    def run(sizes):
        graph = nnx.split(nnx.eval_shape(lambda: build(sizes, nnx.Rngs(0))))[0]

        def loss(params):
            made = nnx.merge(graph, nnx.State(params))
            rngs = nnx.Rngs(dropout=3)
            return made.first_step_logits(tokens, IDS, rngs=rngs).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    want, got = run(SMALL), run(dataclasses.replace(SMALL, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_dropout_only_in_training_and_different_by_key():
    model = module(SMALL)
    tokens = jnp.asarray(tokens_of(9) % 50)
    plain = model.first_step_logits(tokens, IDS)
    np.testing.assert_array_equal(plain, model.first_step_logits(tokens, IDS))
    one = model.first_step_logits(tokens, IDS, rngs=nnx.Rngs(dropout=1))
    same = model.first_step_logits(tokens, IDS, rngs=nnx.Rngs(dropout=1))
    two = model.first_step_logits(tokens, IDS, rngs=nnx.Rngs(dropout=2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, two)
    assert not np.allclose(one, plain)


def test_dropout_keeps_the_mean():
    x = jnp.ones((400, 7, 50))
    kept = attention.dropout(x, 0.1, jax.random.key(0), broadcast=(-2,))
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.01)
    np.testing.assert_array_equal(kept[:, 0], kept[:, 6])


def test_bfloat16_is_near_float32_and_scores_are_float32():
    tokens = jnp.asarray(tokens_of(10) % 50)
    model = module(SMALL)
    params = nnx.state(model, nnx.Param)
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    graph = nnx.split(nnx.eval_shape(lambda: build(half, nnx.Rngs(0))))[0]
    got = nnx.merge(graph, params).first_step_logits(tokens, IDS)
    assert got.dtype == jnp.float32
    want = model.first_step_logits(tokens, IDS)
    spread = float(jnp.abs(want).max())
    assert float(jnp.abs(got - want).max()) < 0.05 * spread


def test_float16_is_refused():
    with pytest.raises(UserError, match="float16"):
        t5.T5Sizes(dtype="float16")


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (1, 9), (5, 300), (300, 5)])
def test_relative_bias_is_the_table_at_the_bucket(bidirectional, shape):
    bias = attention.RelativeBias(
        3, bidirectional=bidirectional, stddev=1.0, rngs=nnx.Rngs(0)
    )
    queries, keys = shape
    got = np.asarray(bias(queries, keys))[0]
    table = np.asarray(bias.embedding[...])
    distance = np.arange(keys)[None] - np.arange(queries)[:, None]
    flat, inverse = np.unique(distance, return_inverse=True)
    buckets = attention.relative_buckets(flat, 32, 128, bidirectional)
    want = table[buckets[inverse.reshape(distance.shape)]].transpose(2, 0, 1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_transformers(bidirectional):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-600, 601)
    for buckets, far in ((32, 128), (8, 20), (4, 128)):
        want = modeling.T5Attention._relative_position_bucket(
            torch.tensor(distances), bidirectional, buckets, far
        )
        got = attention.relative_buckets(distances, buckets, far, bidirectional)
        np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.parametrize(
    ("name", "millions"),
    [("small", 60.5), ("base", 222.9), ("3b", 2851.6), ("v1_1_base", 247.6)],
)
def test_published_sizes_have_the_published_number_of_parameters(name, millions):
    sizes = t5.sizes(name)
    shapes = nnx.eval_shape(lambda: build(sizes, nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)
