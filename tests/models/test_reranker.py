"""Rerankers: what a head reads, and what a spec refuses."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.batches import DuoBatch, PairBatch, Targets
from distill_jax.io.errors import UserError
from distill_jax.models.duo import DuoSpec
from distill_jax.models.pretrained import graphdef_of, initial_params
from distill_jax.models.reranker import Reranker, RerankerSpec
from distill_jax.models.specs import from_json, to_json
from distill_jax.models.t5 import T5Sizes

T5 = T5Sizes(
    vocab_size=40,
    d_model=16,
    d_ff=24,
    heads=2,
    d_kv=8,
    encoder_layers=2,
    decoder_layers=1,
)
ENCODER = T5Sizes(**{**T5.__dict__, "decoder_layers": 0})


class Vocabulary:
    """The smallest thing with ``token_id``."""

    def __init__(self, **ids):
        self.ids = {f"▁{word}": i for word, i in ids.items()} | {"<extra_id_10>": 9}

    def token_id(self, token):
        if token not in self.ids:
            raise UserError(f"no token {token!r}")
        return self.ids[token]


WORDS = Vocabulary(true=5, false=6, Yes=7, No=8, A=3, B=4)


def batch(kind=PairBatch, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 40, (2, 3, 9))
    tokens[1, 2, 5:] = 0
    targets = Targets(labels=jnp.zeros((2, 3)), where=jnp.ones((2, 3), bool))
    return kind(tokens=jnp.asarray(tokens), targets=targets)


def test_heads_read_the_first_decoder_step():
    data = batch()
    specs = {
        head: RerankerSpec(backbone=T5, head=head).resolved(WORDS)
        for head in ("difference", "monot5", "rankt5")
    }
    params = initial_params(specs["difference"], 1)

    def scores(spec):
        return nnx.merge(graphdef_of(spec), nnx.State(params))(data)

    model = nnx.merge(graphdef_of(specs["difference"]), nnx.State(params))
    flat = data.tokens.reshape(6, 9)
    logits = model.backbone.target_logits(flat, jnp.zeros((6, 1), int))[:, 0]
    logits = logits.reshape(2, 3, 40)
    difference = logits[..., 5] - logits[..., 6]
    np.testing.assert_allclose(scores(specs["difference"]), difference, atol=1e-5)
    np.testing.assert_allclose(
        scores(specs["monot5"]), jax.nn.log_sigmoid(difference), atol=1e-5
    )
    np.testing.assert_allclose(scores(specs["rankt5"]), logits[..., 9], atol=1e-5)


def test_encoder_only_head_is_linear_on_the_first_token():
    spec = RerankerSpec(backbone=ENCODER, head="linear")
    model = spec.build(nnx.Rngs(0))
    tokens = batch().tokens.reshape(6, 9)
    first = model.backbone.encoder(tokens)[:, 0]
    want = first @ model.head.kernel[...][:, 0] + model.head.bias[...]
    np.testing.assert_allclose(model.score(tokens), want, atol=1e-5)


def test_a_student_of_any_kind_is_its_represent_and_scores():
    for spec, kind in (
        (RerankerSpec(backbone=T5).resolved(WORDS), PairBatch),
        (DuoSpec(backbone=T5).resolved(WORDS), DuoBatch),
    ):
        model, data = spec.build(nnx.Rngs(0)), batch(kind)
        scores = model(data)
        assert scores.shape == (2, 3)
        assert scores.dtype == jnp.float32
        rep = model.represent(data)
        np.testing.assert_array_equal(model.scores(rep, data), scores)
        # One compiled program per row count: rows do not see each other.
        one = jax.tree.map(lambda leaf: leaf[:1], data)
        np.testing.assert_allclose(model(one), scores[:1], atol=1e-5)


def test_modules_hold_parameters_only():
    model = RerankerSpec(backbone=T5).build(nnx.Rngs(0))
    assert len(jax.tree.leaves(nnx.state(model))) == len(
        jax.tree.leaves(nnx.state(model, nnx.Param))
    )


def test_words_are_resolved_and_a_foreign_tokenizer_is_refused():
    spec = RerankerSpec(backbone=T5).resolved(WORDS)
    assert spec.word_ids == (5, 6)
    assert spec.resolved(WORDS) == spec
    with pytest.raises(UserError, match="reads its score at ids"):
        spec.resolved(Vocabulary(true=6, false=5))
    with pytest.raises(UserError, match="no token '▁true'"):
        RerankerSpec(backbone=T5).resolved(Vocabulary(Yes=1))
    unresolved = RerankerSpec(backbone=T5).build(nnx.Rngs(0))
    with pytest.raises(UserError, match="not resolved"):
        unresolved(batch())


def test_words_of_the_real_t5_vocabulary(shared):
    tokenizer = pytest.importorskip("distill_jax.text.tokenizer").Tokenizer
    real = tokenizer.load(shared / "vocab/t5")
    sizes = T5Sizes()
    assert RerankerSpec(backbone=sizes).resolved(real).word_ids == (1176, 6136)
    rankt5 = RerankerSpec(backbone=sizes, head="rankt5").resolved(real)
    assert rankt5.word_ids == (32089,)
    yes = RerankerSpec(backbone=sizes, prompt="instruction").resolved(real)
    assert yes.word_ids == (2163, 465)
    duo = DuoSpec(backbone=sizes, prompt="instruction").resolved(real)
    assert duo.word_ids == (71, 272)
    assert DuoSpec(backbone=sizes).resolved(real).word_ids == (1176, 6136)


def test_the_training_target_of_a_published_monot5(shared, cases):
    """Its first token is the word that we compare; </s>, the second, says nothing."""
    tokenizer = pytest.importorskip("distill_jax.text.tokenizer").Tokenizer
    real = tokenizer.load(shared / "vocab/t5")
    case = cases["monot5_finetune_target"]
    expected = case["expected"]["label_ids"]
    words = RerankerSpec(backbone=T5Sizes(), head="monot5").resolved(real)
    assert words.words == tuple(case["inputs"]["target_text"])
    assert [[token, real.eos_id] for token in words.word_ids] == expected
    assert [[*real.encode(word), real.eos_id] for word in words.words] == expected


def read_by(head, *logits, **fields):
    """What a head makes of these logits of its words at the first decoder step."""

    class Fixed:
        def first_step_logits(self, tokens, ids, *, rngs=None):
            del tokens, ids, rngs
            return jnp.asarray([logits], jnp.float32)

    spec = RerankerSpec(backbone=T5, head=head, **fields).resolved(WORDS)
    reranker = SimpleNamespace(spec=spec, backbone=Fixed())
    return float(Reranker.score(reranker, jnp.zeros((1, 1), jnp.int32))[0])


def test_scores_of_the_papers_heads(cases):
    inputs, expected = (cases["t5_scores"][key] for key in ("inputs", "expected"))
    words = inputs["z_true"], inputs["z_false"]
    assert read_by("difference", *words) == pytest.approx(expected["twolar_difference"])
    log_p = read_by("monot5", *words)
    assert log_p == pytest.approx(expected["monot5_logprob"])
    assert np.exp(log_p) == pytest.approx(expected["monot5_softmax"])
    rankt5 = read_by("rankt5", inputs["z_extra_id_10"])
    assert rankt5 == pytest.approx(expected["rankt5"])
    case = cases["instupr_pointwise"]
    words = case["inputs"]["z_yes"], case["inputs"]["z_no"]
    found = read_by("difference", *words, prompt="instruction")
    assert found == pytest.approx(case["expected"]["stored_score"], abs=1e-6)


def test_sure_answers_do_not_tie(cases):
    """float32 probabilities are all 1; logits and log-probabilities tell them apart."""
    case = cases["t5_softmax_saturation"]
    differences = case["inputs"]["differences"]
    saturated = [bool(jax.nn.sigmoid(jnp.float32(d)) == 1) for d in differences]
    assert saturated == case["expected"]["float32_softmax_equal"]
    log_p = [read_by("monot5", d, 0.0) for d in differences]
    assert log_p == pytest.approx(case["expected"]["float32_logprob"], rel=1e-5, abs=0)
    assert [read_by("difference", d, 0.0) for d in differences] == differences


def test_prompts_by_name_and_own_text():
    assert "(Yes or No)?" in RerankerSpec(backbone=T5, prompt="instruction").prompt
    assert RerankerSpec(backbone=T5, prompt="instruction").words == ("Yes", "No")
    own = RerankerSpec(backbone=T5, prompt="{query} {document}</s>", words=("a", "b"))
    assert (own.prompt, own.words) == ("{query} {document}</s>", ("a", "b"))
    assert RerankerSpec(backbone=T5, head="rankt5").prompt.endswith("{document}</s>")
    assert DuoSpec(backbone=T5, prompt="instruction").words == ("A", "B")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"backbone": T5, "head": "linear"}, "does not fit"),
        ({"backbone": ENCODER, "head": "difference"}, "does not fit"),
        ({"backbone": T5, "head": "diference"}, 'did you mean "difference"'),
        ({"backbone": T5, "words": ("true",)}, "2 answer words"),
    ],
)
def test_a_spec_that_cannot_be_built_says_so(fields, match):
    with pytest.raises(UserError, match=match):
        RerankerSpec(**fields)


@pytest.mark.parametrize(
    "spec",
    [
        RerankerSpec(backbone=T5, word_ids=(5, 6), doc_length=64),
        RerankerSpec(backbone=ENCODER, head="linear"),
        DuoSpec(backbone=T5, prompt="instruction"),
    ],
)
def test_specs_survive_json(spec):
    import json

    again = from_json(json.loads(json.dumps(to_json(spec))))
    assert again == spec
    assert hash(again) == hash(spec)


def test_duo_is_trainable_by_binary_cross_entropy():
    spec = DuoSpec(backbone=T5).resolved(WORDS)
    params, data = initial_params(spec, 0), batch(DuoBatch)
    labels = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 3)))

    @jax.jit
    def loss(params):
        logits = nnx.merge(graphdef_of(spec), nnx.State(params))(data)
        return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)

    before = loss(params)
    for _ in range(40):
        gradient = jax.grad(loss)(params)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    assert loss(params) < 0.8 * before
