"""The query generator: likelihoods against transformers, and learning to ask."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from distill_jax import losses, weights
from distill_jax.batches import DualBatch, Targets
from distill_jax.collections.collection import Collection
from distill_jax.inference.generate import generate
from distill_jax.io.errors import UserError
from distill_jax.models import specs, t5
from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.models.templates import side_template
from distill_jax.runtime.sharding import make_mesh
from distill_jax.synthesis import t5 as synthesis
from distill_jax.text.tokenizer import Tokenizer

WORDS = ["river", "stone", "bridge", "water", "cloud", "paper", "light", "engine"]


@pytest.fixture(scope="module")
def pretrained():
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(300)]
    tokenizer = Tokenizer.train_unigram(texts, vocab_size=170)
    rows = -(-tokenizer.vocab_size // 128) * 128
    sizes = t5.T5Sizes(
        vocab_size=rows,
        d_model=32,
        d_kv=8,
        d_ff=64,
        heads=4,
        encoder_layers=2,
        decoder_layers=2,
    )
    spec = GeneratorSpec(backbone=sizes, doc_length=24, query_length=8)
    return Pretrained(
        spec=spec, params=initial_params(spec, 0), tokenizer=tokenizer, source="random"
    )


def batch_of(pretrained, texts, queries):
    """One document a query, joined by the templates of the spec."""

    def tokens(side, length, items):
        template = side_template(pretrained.spec, side, pretrained.tokenizer)
        ids = [pretrained.tokenizer.encode(template.join(text=text)) for text in items]
        return np.asarray([row + [0] * (length - len(row)) for row in ids], np.int32)

    docs = tokens("doc", 24, texts)[:, None]
    ones = jnp.ones(docs.shape[:2], bool)
    return DualBatch(
        query_tokens=jnp.asarray(tokens("query", 8, queries)),
        doc_tokens=jnp.asarray(docs),
        targets=Targets(labels=ones.astype(jnp.float32), where=ones),
    )


def test_scores_are_the_likelihoods_of_transformers(pretrained, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = pretrained.spec.backbone
    config = transformers.T5Config(
        vocab_size=sizes.vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        feed_forward_proj="relu",
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    pretrained.tokenizer.save(tmp_path)
    ours = weights.load(tmp_path, kind="generator", doc_length=24, query_length=8)
    assert not ours.fresh
    batch = batch_of(ours, ["river stone water", "cloud"], ["bridge light", "paper"])
    docs = torch.tensor(np.asarray(batch.doc_tokens[:, 0]), dtype=torch.long)
    targets = torch.tensor(np.asarray(batch.query_tokens), dtype=torch.long)
    with torch.no_grad():
        logits = theirs(
            input_ids=docs,
            attention_mask=(docs != 0).long(),
            labels=targets.masked_fill(targets == 0, -100),
        ).logits
    log_p = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    real = targets != 0
    expected = (log_p * real).sum(1) / real.sum(1)
    np.testing.assert_allclose(ours.module()(batch)[:, 0], expected, atol=1e-5)


@pytest.mark.long
def test_learns_to_ask_and_is_asked(pretrained):
    """Queries are the first word of their document: a few steps teach that."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(WORDS)[:4]) for _ in range(32)]
    batch = batch_of(pretrained, texts, [text.split()[0] for text in texts])
    graphdef, optimiser = pretrained.graphdef(), optax.adam(5e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            scores = nnx.merge(graphdef, nnx.State(params))(batch)
            targets = batch.targets
            return losses.query_likelihood(scores, targets.labels, where=targets.where)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params, values = pretrained.params, []
    state = optimiser.init(params)
    for _ in range(150):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.2 < 2 < values[0]

    trained = pretrained.replace(params=jax.tree.map(np.asarray, params))
    docs = Collection([f"d{i}" for i in range(32)], texts)
    options = {"max_new_tokens": 8}
    made = synthesis.generate(trained, docs, np.arange(32), temperature=0.0, **options)
    right = [q == docs.text(r).split()[0] for q, r in zip(made.texts, made.sources)]
    assert np.mean(right) > 0.9

    sampled = {"samples": 2, "top_k": 5, "seed": 1, **options}
    one = synthesis.generate(trained, docs, np.arange(32), **sampled)
    eight = synthesis.generate(
        trained, docs, np.arange(32), mesh=make_mesh("data=8"), **sampled
    )
    assert one.texts == eight.texts
    some = synthesis.generate(
        trained, docs, np.arange(20, 25), tokens_per_batch=64, **sampled
    )
    assert set(zip(some.ids, some.texts)) <= set(zip(one.ids, one.texts))


def test_a_generator_is_saved_and_read(pretrained, tmp_path):
    pretrained.save(tmp_path)
    again = Pretrained.read(tmp_path)
    assert again.spec == pretrained.spec
    assert again.digest == pretrained.digest
    assert specs.from_json(specs.to_json(pretrained.spec)) == pretrained.spec


def test_an_encoder_cannot_generate(pretrained):
    sizes = dataclasses.replace(pretrained.spec.backbone, decoder_layers=0)
    with pytest.raises(UserError, match="decoder"):
        GeneratorSpec(backbone=sizes)
    encoder = pretrained.replace(spec=type("S", (), {"backbone": sizes})())
    with pytest.raises(UserError, match="no decoder"):
        generate(encoder, np.ones((1, 4), np.int32))
