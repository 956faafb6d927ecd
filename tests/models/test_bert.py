"""BERT and ELECTRA against transformers' own, through folders, with every head."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.io.errors import UserError
from distill_jax.models import bert, bert_heads, encoder_sizes
from distill_jax.weights import encoders as hf
from distill_jax.weights.safe import open_folder

TINY = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}
SEP = 5
CASES = {
    "BertModel": ("Bert", None, {}),
    "BertModel tanh gelu": ("Bert", None, {"hidden_act": "gelu_new"}),
    "BertForSequenceClassification": ("Bert", "bert_classifier", {"num_labels": 1}),
    "BertForMaskedLM": ("Bert", "mlm", {}),
    "ElectraModel": ("Electra", None, {"embedding_size": 16}),
    "ElectraModel as wide": ("Electra", None, {"embedding_size": 32}),
    "ElectraForSequenceClassification": (
        "Electra",
        "electra_classifier",
        {"embedding_size": 16, "num_labels": 1},
    ),
    "ElectraForMaskedLM": ("Electra", "mlm", {"embedding_size": 16}),
}
CLASSES = {
    None: "Model",
    "mlm": "ForMaskedLM",
    "bert_classifier": "ForSequenceClassification",
    "electra_classifier": "ForSequenceClassification",
}


def tokens_of(seed=0, rows=5, length=23):
    """[CLS] a [SEP] b [SEP], of different lengths, padded with 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(6, TINY["vocab_size"], (rows, length)).astype(np.int32)
    tokens[:, 0] = 4
    for row, size in enumerate(rng.integers(6, length + 1, rows)):
        tokens[row, size // 2] = SEP
        tokens[row, size - 1] = SEP
        tokens[row, size:] = 0
    return tokens


def theirs(case, folder):
    """A random model of transformers, saved and loaded again; and its config."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, head, more = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **more})
    cls = getattr(transformers, family + CLASSES[head])
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if "LayerNorm.weight" in name else 0.2
            base = 1.0 if "LayerNorm.weight" in name else 0.0
            weight.copy_(base + scale * torch.randn_like(weight))
    model.save_pretrained(folder)
    return torch, cls.from_pretrained(folder).eval()


def run_theirs(torch, model, tokens):
    mask = (tokens != 0).astype(np.int64)
    is_sep = tokens == SEP
    types = ((np.cumsum(is_sep, 1) - is_sep > 0) & (mask > 0)).astype(np.int64)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            token_type_ids=torch.tensor(types),
        )
    return out[0].numpy(), mask.astype(bool)


def run_ours(sizes, params, head, tokens):
    encoder = _filled(bert.BertEncoder(sizes, rngs=nnx.Rngs(0)), params["encoder"])
    if head is None:
        return encoder(tokens, pairs=True)
    if head == "mlm":
        module = bert_heads.VocabularyHead(sizes, rngs=nnx.Rngs(0))
        module = _filled(module, params["head"])
        return module(encoder(tokens, pairs=True), encoder.embeddings.word[...])
    module = _filled(hf.HEADS[head](sizes, rngs=nnx.Rngs(0)), params["head"])
    return module(encoder(tokens, pairs=True, positions=1)[:, 0])


def _filled(module, params):
    nnx.update(module, nnx.State(params))
    return module


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_as_transformers_in_and_out(case, tmp_path):
    head = CASES[case][1]
    torch, model = theirs(case, tmp_path / "in")
    tokens = tokens_of()
    expected, mask = run_theirs(torch, model, tokens)

    config = json.loads((tmp_path / "in" / "config.json").read_text())
    sizes, params, fresh = hf.read(
        config, open_folder(tmp_path / "in"), head=head, sep_id=SEP
    )
    assert fresh == ()
    found = np.asarray(run_ours(sizes, params, head, tokens))
    if found.ndim == 3:
        expected, found = expected[mask], found[mask]
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-5)

    # Out again, into transformers' own class.
    config, tensors = hf.write(sizes, params, head=head)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    from safetensors.numpy import save_file

    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    again, info = type(model).from_pretrained(out, output_loading_info=True)
    # The pooler of a bare BertModel is no part of our encoder.
    assert all("pooler" in name for name in info["missing_keys"])
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    theirs_again, _ = run_theirs(torch, again.eval(), tokens)
    if theirs_again.ndim == 3:
        theirs_again = theirs_again[mask]
    np.testing.assert_allclose(theirs_again, expected, atol=1e-6)


def test_old_files_say_gamma_and_beta_and_repeat_the_table(tmp_path):
    """bert-base-uncased itself is such a file: it also has the heads of pretraining."""
    theirs("BertForMaskedLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = dict(open_folder(tmp_path))
    _, expected, _ = hf.read(config, tensors, head="mlm")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): np.asarray(array)
        for name, array in tensors.items()
    }
    table = old["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.weight"] = table
    old["cls.seq_relationship.weight"] = np.zeros((2, 32), np.float32)
    _, found, _ = hf.read(config, old, head="mlm")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # An untied copy would be another model: it is refused, not dropped.
    old["cls.predictions.decoder.weight"] = table + 1
    with pytest.raises(UserError, match="differs"):
        hf.read(config, old, head="mlm")
    # The encoder alone does not care.
    hf.read(config, old)


def test_all_that_does_not_fit_is_reported_together(tmp_path):
    theirs("BertModel", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = dict(open_folder(tmp_path))
    tensors["encoder.layer.0.intermediate.dens.weight"] = tensors.pop(
        "encoder.layer.0.intermediate.dense.weight"
    )
    tensors["embeddings.LayerNorm.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError) as error:
        hf.read(config, tensors)
    message = str(error.value)
    assert "encoder.layer.0.intermediate.dens.weight (near" in message
    assert "embeddings.LayerNorm.bias [7]" in message


@pytest.mark.parametrize(
    "change",
    [{"model_type": "longformer"}, {"hidden_act": "celu"}, {"is_decoder": True}],
)
def test_other_models_are_refused(change):
    config = {**TINY, "model_type": "bert", **change}
    with pytest.raises(UserError):
        hf.sizes_of(config, {})


SIZES = encoder_sizes.BertSizes(
    vocab_size=60, d_model=32, d_ff=48, heads=4, layers=3, max_positions=40, sep_id=SEP
)


def encoder_of(sizes=SIZES):
    encoder = bert.BertEncoder(sizes, rngs=nnx.Rngs(3))
    # Far from the initial values, where every layer is nearly the identity.
    graphdef, state = nnx.split(encoder)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(state))))
    state = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), state
    )
    return nnx.merge(graphdef, state)


def test_the_first_position_alone_is_exact_forward_and_backward():
    tokens = jnp.asarray(tokens_of())
    graphdef, state = nnx.split(encoder_of())
    weights = jax.random.normal(jax.random.key(0), (len(tokens), SIZES.d_model))

    def loss(state, positions):
        hidden = nnx.merge(graphdef, state)(tokens, positions=positions, pairs=True)
        return (hidden[:, 0] * weights).sum()

    whole, whole_grad = jax.value_and_grad(loss)(state, None)
    first, first_grad = jax.value_and_grad(loss)(state, 1)
    np.testing.assert_allclose(first, whole, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        first_grad,
        whole_grad,
    )


@pytest.mark.long
@pytest.mark.parametrize("remat", ["full", "matmuls"])
def test_recomputing_changes_nothing_with_dropout_on(remat):
    tokens = jnp.asarray(tokens_of())
    graphdef, state = nnx.split(encoder_of())
    other = nnx.split(encoder_of(dataclasses.replace(SIZES, remat=remat)))[0]

    def loss(state, graphdef):
        rngs = nnx.Rngs(dropout=7)
        return jnp.square(nnx.merge(graphdef, state)(tokens, rngs=rngs)).mean()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.grad(loss)(state, other),
        jax.grad(loss)(state, graphdef),
    )


def test_dropout_is_on_only_with_rngs():
    tokens = jnp.asarray(tokens_of())
    encoder = encoder_of()
    still = encoder(tokens)
    np.testing.assert_array_equal(still, encoder(tokens))
    one, two = (encoder(tokens, rngs=nnx.Rngs(dropout=i)) for i in (1, 2))
    assert np.abs(one - two).max() > 0.1
    np.testing.assert_array_equal(one, encoder(tokens, rngs=nnx.Rngs(dropout=1)))
    assert len(jax.tree.leaves(nnx.state(encoder))) == len(
        jax.tree.leaves(nnx.state(encoder, nnx.Param))
    )


def test_token_types_begin_after_the_first_separator():
    tokens = jnp.array([[4, 9, SEP, 8, 8, SEP, 0, 0], [4, SEP, 7, SEP, 0, 0, 0, 0]])
    types = bert.token_types(tokens, tokens != 0, SEP)
    assert types.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]]


def test_too_long_an_input_is_refused_before_tracing():
    with pytest.raises(UserError, match="41 tokens"):
        jax.jit(lambda t: encoder_of()(t))(jnp.ones((1, 41), jnp.int32))


def test_sizes_by_name():
    sizes = encoder_sizes.bert_sizes("minilm-l6", dtype="bfloat16")
    assert (sizes.d_model, sizes.layers, sizes.heads) == (384, 6, 12)
    assert encoder_sizes.bert_sizes("base") == encoder_sizes.bert_sizes("bert-base")
    # 22.3 GF a sequence of 128 and 96.6 of 512: SPEED's table for BERT-base.
    base = encoder_sizes.bert_sizes("base")
    assert round(base.forward_flops(128) / 1e9, 1) == 22.3
    assert round(base.forward_flops(512) / 1e9, 1) == 96.6
    with pytest.raises(UserError, match="bert-base"):
        encoder_sizes.bert_sizes("bert-bas")


def test_bfloat16_stays_near_float32():
    tokens = jnp.asarray(tokens_of())
    encoder = encoder_of()
    graphdef = nnx.split(encoder_of(dataclasses.replace(SIZES, dtype="bfloat16")))[0]
    half = nnx.merge(graphdef, nnx.state(encoder))(tokens)
    assert half.dtype == jnp.bfloat16
    whole = np.asarray(encoder(tokens))
    assert (
        np.abs(np.asarray(half, np.float32) - whole).max() < 0.1 * np.abs(whole).max()
    )
