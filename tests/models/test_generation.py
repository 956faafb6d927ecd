"""Decoding with a cache: token by token what transformers generates."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models import generation
from distill_jax.models.generation import Decoding, filtered, generate
from distill_jax.models.pretrained import abstract_params, graphdef_of
from distill_jax.weights import t5 as hf
from distill_jax.weights.safe import open_folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model and our sizes and parameters of the same folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # tiny products: threads only wait for each other
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=24,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=9,
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
    model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(24, 16))
    path = tmp_path_factory.mktemp("t5")
    model.save_pretrained(path)
    model = transformers.T5ForConditionalGeneration.from_pretrained(path).eval()
    config = json.loads((path / "config.json").read_text())
    sizes, params = hf.read(config, open_folder(path))
    return model, sizes, params


def sources(rows=12, length=9):
    rng = np.random.default_rng(3)
    tokens = rng.integers(2, 24, (rows, length)).astype(np.int32)
    for row, size in enumerate(rng.integers(2, length + 1, rows)):
        tokens[row, size:] = 0
    return tokens


def theirs(model, tokens, **options):
    import torch

    ids = torch.tensor(tokens).long()
    out = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        max_new_tokens=14,
        do_sample=False,
        **options,
    )
    out = out.numpy()[:, 1:]
    out = np.pad(out, ((0, 0), (0, 14 - out.shape[1])))
    # Its beam search fills up with the end token where the padding token is 0.
    ends = np.cumsum(out == 1, axis=1) - (out == 1)
    return np.where(ends > 0, 0, out)


def test_greedy_is_transformers_token_by_token(pair):
    model, sizes, params = pair
    tokens = sources()
    want = theirs(model, tokens, num_beams=1)
    got, _ = generate(sizes, params, tokens, Decoding(max_tokens=14))
    np.testing.assert_array_equal(got, want)
    ended = (want == 1).any(1)
    assert ended.any()  # the case covers rows that end and rows that do not
    assert len({tuple(row) for row in want.tolist()}) > 3


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_beam_search_is_transformers(pair, penalty):
    model, sizes, params = pair
    tokens = sources()
    want = theirs(
        model, tokens, num_beams=3, length_penalty=penalty, early_stopping="never"
    )
    how = Decoding(max_tokens=14, beams=3, length_penalty=penalty)
    got, score = generate(sizes, params, tokens, how)
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(score).all()


@pytest.mark.parametrize("layer_bias", [False, True])
def test_the_cache_gives_the_logits_of_the_whole_target(pair, layer_bias):
    _, sizes, params = pair
    if layer_bias:  # UMT5's; test_t5 compares its whole target with transformers
        sizes = dataclasses.replace(sizes, layer_bias=True)
        random = np.random.default_rng(1)
        params = jax.tree.map(
            lambda leaf: random.normal(size=leaf.shape, scale=0.4),
            abstract_params(sizes),
        )
    model = nnx.merge(graphdef_of(sizes), nnx.State(params))
    tokens = jnp.asarray(sources(4))
    targets = jnp.asarray(np.random.default_rng(0).integers(2, 24, (4, 10)))
    want = model.target_logits(tokens, targets)
    fixed, cache, last = generation.start(model, tokens, 10)
    for position in range(10):
        logits, cache = generation.step(
            model, fixed, cache, last, jnp.asarray(position), 10
        )
        np.testing.assert_allclose(logits, want[:, position], atol=1e-4)
        last = targets[:, position]


def test_scores_are_the_log_probabilities_of_the_tokens(pair):
    _, sizes, params = pair
    model = nnx.merge(graphdef_of(sizes), nnx.State(params))
    tokens = jnp.asarray(sources(4))
    how = Decoding(max_tokens=8, temperature=1.0)
    out, score = generate(sizes, params, tokens, how, seeds=np.arange(4))
    logp = jax.nn.log_softmax(model.target_logits(tokens, out))
    each = jnp.take_along_axis(logp, out[..., None], axis=-1)[..., 0]
    counted = np.cumsum(np.asarray(out) == 1, axis=1) - (np.asarray(out) == 1) == 0
    np.testing.assert_allclose(score, (each * counted).sum(1), atol=1e-4)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(pair):
    _, sizes, params = pair
    tokens, seeds = sources(), np.arange(100, 112)
    how = Decoding(max_tokens=8, temperature=1.0, top_k=10, top_p=0.9)
    whole, _ = generate(sizes, params, tokens, how, seeds=seeds)
    for row in (0, 7):
        wide = np.pad(tokens[row : row + 1], ((0, 2), (0, 0)), mode="edge")
        part, _ = generate(sizes, params, wide, how, seeds=[seeds[row], 1, 2])
        np.testing.assert_array_equal(part[0], whole[row])
    other, _ = generate(sizes, params, tokens, how, seeds=seeds + 50)
    assert (np.asarray(other) != np.asarray(whole)).any()


def test_filters_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32) * 2
    for k, p in ((5, None), (None, 0.7), (8, 0.6), (1, None), (None, 1e-9)):
        want = torch.tensor(logits)
        if k is not None:
            want = transformers.TopKLogitsWarper(k)(None, want)
        if p is not None:
            want = transformers.TopPLogitsWarper(p)(None, want)
        got = filtered(jnp.asarray(logits), k, p)
        np.testing.assert_array_equal(
            np.asarray(got) > -1e29, torch.isfinite(want).numpy()
        )


def test_sampling_follows_the_probabilities():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 20000)
    kept = filtered(logits, None, 0.8)[0]
    drawn = jax.vmap(lambda key: jax.random.categorical(key, kept))(keys)
    share = np.bincount(np.asarray(drawn), minlength=4) / 20000
    np.testing.assert_allclose(share, [0.625, 0.375, 0, 0], atol=0.01)


@pytest.mark.parametrize(
    "wrong",
    [{"beams": 2, "temperature": 1.0}, {"max_tokens": 0}, {"top_p": 0.0}],
)
def test_decodings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError):
        Decoding(**wrong)
