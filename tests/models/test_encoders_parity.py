"""Dual encoders, ColBERT and SPLADE against foreign forward passes."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.batches import DualBatch, Targets
from distill_jax.models import splade
from distill_jax.models.colbert import ColbertSpec, punctuation_ids
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import abstract_params, graphdef_of
from distill_jax.models.splade import SpladeSpec, flops
from distill_jax.weights import encoders as hf
from distill_jax.weights import t5x
from distill_jax.weights.safe import open_folder

TINY = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 40,
}


def model_of(spec, params):
    return nnx.merge(graphdef_of(spec), nnx.State(params))


def tokens_of(seed, rows, length, marker=False):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(8, TINY["vocab_size"], (rows, length)).astype(np.int32)
    tokens[:, 0] = 2
    if marker:
        tokens[:, 1] = 4  # the template's placeholder, [MASK]
    for row, size in enumerate(rng.integers(4, length + 1, rows)):
        tokens[row, size - 1] = 3
        tokens[row, size:] = 0
    return tokens


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory):
    """A random BertForMaskedLM of transformers, and our reading of its folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TINY))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            base = 1.0 if "LayerNorm.weight" in name else 0.0
            weight.copy_(base + 0.25 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    sizes, params, _ = hf.read(config, open_folder(folder), head="mlm", sep_id=3)
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    return torch, model, sizes, params


def test_t5x_retrieval_encodings_and_logits_are_reproduced(shared):
    """The reference run of t5x_retrieval's own code: float32, precision highest."""
    reference = np.load(shared / "reference/t5x/dual_encoder_tiny.npz")
    arrays = t5x.read_t5x(shared / "reference/t5x/test_de_t5_tiny.checkpoint_1000")
    sizes, params = t5x.read(arrays, ignore=(r"projection_layer\.kernel",))
    kernel = arrays["projection_layer.kernel"]
    spec = DualEncoderSpec(backbone=sizes, projection=kernel.shape[1])
    tower = {"encoder": params["encoder"], "projection": {"kernel": kernel}}
    model = model_of(spec, {"tower": tower})
    left = model.encode_queries(jnp.asarray(reference["left_tokens"]))
    right = model.encode_docs(jnp.asarray(reference["right_tokens"]))
    assert left.shape == (4, 768)
    np.testing.assert_allclose(left, reference["f32__left_encodings"], atol=1e-5)
    np.testing.assert_allclose(right, reference["f32__right_encodings"], atol=1e-5)
    scores = model.cross_scores({"q": left, "d": right[:, None]})[..., 0]
    np.testing.assert_allclose(scores, left @ right.T, atol=1e-6)
    plain = dataclasses.replace(spec, projection=None, normalise=False)
    pooled = model_of(plain, {"tower": {"encoder": params["encoder"]}})
    np.testing.assert_allclose(
        pooled.encode_queries(jnp.asarray(reference["left_tokens"])),
        reference["f32__left_mean_pooled"],
        atol=1e-5,
    )


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_is_that_of_sentence_transformers(masked_lm, pooling):
    torch, model, sizes, params = masked_lm
    modules = pytest.importorskip(
        "sentence_transformers.sentence_transformer.modules.pooling"
    )
    tokens = tokens_of(1, 5, 13)
    mask = torch.tensor((tokens != 0).astype(np.int64))
    mode = {"last": "lasttoken"}.get(pooling, pooling)
    with torch.no_grad():
        hidden = model.bert(torch.tensor(tokens, dtype=torch.long), mask)[0]
        expected = modules.Pooling(sizes.d_model, mode)(
            {"token_embeddings": hidden, "attention_mask": mask}
        )["sentence_embedding"].numpy()
    spec = DualEncoderSpec(backbone=sizes, pooling=pooling, normalise=False)
    ours = model_of(spec, {"tower": {"encoder": params["encoder"]}})
    found = jax.jit(ours.encode_docs)(jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("attend", [False, True])
def test_colbert_is_what_its_papers_code_computes(masked_lm, attend):
    """Markers, expansion, skipped punctuation and MaxSim, in torch, by the book."""
    torch, model, sizes, params = masked_lm
    length, dim, skiplist, mask_id, q_id, d_id = 12, 8, (10, 11, 12), 4, 5, 6
    kernel = np.random.default_rng(3).standard_normal((32, dim)).astype(np.float32)
    query_tokens = tokens_of(1, 3, 9, marker=True)
    doc_tokens = tokens_of(2, 6, 15, marker=True)

    def encode(ids, attention, counts):
        with torch.no_grad():
            hidden = model.bert(
                torch.tensor(ids, dtype=torch.long),
                torch.tensor(attention.astype(np.int64)),
            )[0]
        vectors = hidden.numpy() @ kernel * counts[..., None]
        norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / np.maximum(norm, 1e-12)

    ids = np.zeros((3, length), np.int32)
    ids[:, :9] = query_tokens
    real = ids != 0
    ids[~real] = mask_id
    ids[:, 1] = q_id
    q = encode(ids, np.ones_like(real) if attend else real, np.ones_like(real))
    ids = doc_tokens.copy()
    ids[:, 1] = d_id
    keep = (ids != 0) & ~np.isin(ids, skiplist)
    d = encode(ids, ids != 0, keep)
    similarity = np.einsum("qtd,msd->qmts", q, d)
    similarity = np.where(keep[None, :, None, :], similarity, -9999.0)
    expected = similarity.max(-1).sum(-1)

    spec = ColbertSpec(
        backbone=sizes, dim=dim, query_length=length, mask_id=mask_id,
        query_marker=q_id, doc_marker=d_id, skiplist=skiplist,
        attend_to_expansion=attend,
    )  # fmt: skip
    ours = model_of(
        spec, {"encoder": params["encoder"], "projection": {"kernel": kernel}}
    )
    batch = DualBatch(
        query_tokens=jnp.asarray(query_tokens),
        doc_tokens=jnp.asarray(doc_tokens.reshape(3, 2, 15)),
        targets=Targets(labels=jnp.zeros((3, 2)), where=jnp.ones((3, 2), bool)),
    )

    @jax.jit
    def run(batch):
        rep = ours.represent(batch)
        return ours.scores(rep, batch), ours.cross_scores(rep, batch)

    scores, cross = run(batch)
    np.testing.assert_allclose(cross.reshape(3, 6), expected, atol=5e-5)
    np.testing.assert_allclose(
        scores, expected.reshape(3, 3, 2)[np.arange(3), np.arange(3)], atol=5e-5
    )


def test_colbert_masks_never_win_against_negative_similarities():
    """A masked token that scored 0, as by multiplication, would beat all real ones."""
    from distill_jax.models.colbert import Colbert

    q = -jnp.ones((1, 2, 4)) / 2
    d = jnp.ones((1, 1, 3, 4)) / 2 * jnp.array([1, 1, 0])[:, None]
    rep = {
        "q": q,
        "q_mask": jnp.ones((1, 2), bool),
        "d": d,
        "d_mask": jnp.array([[[True, True, False]]]),
    }
    np.testing.assert_allclose(Colbert.scores(None, rep), [[-2.0]], atol=1e-6)


def test_markers_and_punctuation_come_from_the_vocabulary(shared):
    from distill_jax.models.encoder_sizes import bert_sizes
    from distill_jax.models.t5 import T5Sizes
    from distill_jax.models.templates import side_template
    from distill_jax.text.tokenizer import Tokenizer

    bert = Tokenizer.load(shared / "vocab/bert-base-uncased/vocab.txt")
    spec = ColbertSpec(backbone=bert_sizes("tiny")).resolved(bert)
    # Stanford: [unused0], [unused1], [MASK], and all 32 marks of string.punctuation.
    assert (spec.query_marker, spec.doc_marker, spec.mask_id) == (1, 2, 103)
    assert len(punctuation_ids(bert)) == 32
    template = side_template(spec, "query", bert)
    assert template.max_tokens(bert) == 32
    assert template.lengths == {"text": 29}
    t5 = Tokenizer.load(shared / "vocab/t5/spiece.model")
    spec = ColbertSpec(backbone=T5Sizes()).resolved(t5)
    assert spec.marker_position == 0
    assert spec.mask_id == 32099
    template = side_template(spec, "doc", t5)
    assert template.max_tokens(t5) == 180


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_splade_pools_the_masked_language_models_logits(
    masked_lm, pooling, monkeypatch
):
    torch, model, sizes, params = masked_lm
    tokens = tokens_of(1, 4, 13)
    mask = tokens != 0
    with torch.no_grad():
        logits = model(
            torch.tensor(tokens, dtype=torch.long), torch.tensor(mask.astype(np.int64))
        ).logits.numpy()
    weights = np.log1p(np.maximum(logits, 0)) * mask[..., None]
    expected = weights.max(1) if pooling == "max" else weights.sum(1)
    spec = SpladeSpec(backbone=sizes, pooling=pooling)
    tower = {"encoder": params["encoder"], "mlm": params["head"]}

    def loss(params):
        docs = model_of(spec, {"tower": params}).encode_docs(jnp.asarray(tokens))
        return jnp.square(docs).mean(), docs

    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tower)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)
    assert (np.asarray(found) == 0).mean() > 0.05
    # In tiles of the vocabulary, the last of them smaller; those of training too.
    monkeypatch.setattr(splade, "LOOPED", 16)
    in_turn = jax.jit(lambda params: loss(params)[1])(tower)
    np.testing.assert_allclose(in_turn, found, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(splade, "TILE", 16)
    monkeypatch.setattr(splade, "_in_turn", splade._at_once)
    (_, tiled), tiled_grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tower)
    np.testing.assert_allclose(tiled, found, rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        tiled_grads,
        grads,
    )


def test_memory_of_encoding_does_not_grow_with_the_vocabulary():
    used = {}
    for words in (4096, 65536):
        sizes = BertSizes(vocab_size=words, d_model=16, d_ff=16, heads=2, layers=1)
        spec = SpladeSpec(backbone=sizes)
        tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
        encode = jax.jit(lambda p, t, spec=spec: model_of(spec, p).encode_docs(t))
        compiled = encode.lower(abstract_params(spec), tokens).compile()
        used[words] = compiled.memory_analysis().temp_size_in_bytes
    logits = 4 * 32 * 65536 * 4
    assert used[65536] - used[4096] < logits / 16  # the weights [M, V], once or twice
    assert used[65536] < logits / 8


def test_flops_by_hand():
    weights = jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0], [9.0, 9.0, jnp.nan]])
    where = jnp.array([True, True, False])
    # (mean(1, 3))^2 + 0 + (mean(2, 0))^2
    np.testing.assert_allclose(flops(weights, where), 5.0)
