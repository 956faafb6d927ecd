"""sentence-transformers' Router: inference-free SPLADE, and two dense towers."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from distill_jax import export, weights
from distill_jax.inference.texts import encode_texts
from distill_jax.io.errors import UserError
from distill_jax.recipe.students import Student, document_frequency_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers import models as parts  # noqa: E402
from sentence_transformers.sparse_encoder.modules import (  # noqa: E402
    SparseStaticEmbedding,
    SpladePooling,
)

from tests.export.forms import bert_tokenizer  # noqa: E402

TEXTS = ["what is water", "vaccine vaccine protects", "", "point of city: 東京 café"]


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def masked_lm(folder):
    """A folder of a small random DistilBertForMaskedLM."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=bert_tokenizer().vocab_size,
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    transformers.DistilBertForMaskedLM(config).save_pretrained(str(folder))
    bert_tokenizer().save(folder, max_length=48)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The form of opensearch's doc-only models, written by the library."""
    folder = tmp_path_factory.mktemp("router")
    base = str(masked_lm(folder / "base"))
    words = transformers.AutoTokenizer.from_pretrained(base)
    words.model_max_length = 9
    table = torch.rand(len(words))
    router = parts.Router.for_query_document(
        query_modules=[SparseStaticEmbedding(tokenizer=words, weight=table)],
        document_modules=[
            parts.Transformer(base, transformer_task="fill-mask"),
            SpladePooling("max", activation_function="log1p_relu"),
        ],
    )
    prompts = {"query": "search : ", "document": ""}
    model = library.SparseEncoder(modules=[router], prompts=prompts, device="cpu")
    model.save_pretrained(str(folder / "m"))
    return folder / "m"


def compare(ours, folder, cls):
    theirs = cls(str(folder), device="cpu")
    texts = [*TEXTS, "how do water " * 9]
    for side, encode in (
        ("query", theirs.encode_query),
        ("doc", theirs.encode_document),
    ):
        expected = encode(texts, convert_to_tensor=True)
        expected = expected.to_dense() if expected.is_sparse else expected
        found = encode_texts(ours, side, texts)
        found = found.toarray() if hasattr(found, "toarray") else found
        assert np.ptp(found) > 0.1
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_an_inference_free_splade_encodes_as_the_library_in_and_out(
    published, tmp_path
):
    ours = weights.load(published)
    assert (ours.spec.inference_free, ours.spec.query_length) == (True, 9)
    compare(ours, published, library.SparseEncoder)
    result = export.write(ours, tmp_path / "out")
    assert len(result["readers"]) == 2  # ours, and the library
    compare(ours, tmp_path / "out", library.SparseEncoder)
    again = weights.load(tmp_path / "out")
    assert again.spec == ours.spec
    np.testing.assert_array_equal(
        again.params["query_weights"], ours.params["query_weights"]
    )


def test_weights_of_queries_may_be_a_file_of_words(published, tmp_path):
    import shutil

    shutil.copytree(published, tmp_path / "m")
    root = tmp_path / "m" / "query_0_SparseStaticEmbedding"
    (root / "model.safetensors").unlink()
    (root / "config.json").write_text(json.dumps({"path": "idf.json"}))
    with pytest.raises(UserError, match="weights of queries from"):
        weights.load(tmp_path / "m")
    (root / "idf.json").write_text(json.dumps({"water": 2.5, "city": 1.5, "??": 3}))
    ours = weights.load(tmp_path / "m", query_prefix="")
    (vector,) = encode_texts(ours, "query", ["city water water do"]).toarray()
    ids = [bert_tokenizer().find(word) for word in ("water", "city")]
    assert vector[ids].tolist() == [2.5, 1.5]
    assert vector.sum() == 4.0


def test_two_dense_towers_of_a_router_are_one_student(tmp_path):
    def tower(seed):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=bert_tokenizer().vocab_size,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
        )
        folder = tmp_path / f"base{seed}"
        transformers.BertModel(config).save_pretrained(str(folder))
        bert_tokenizer().save(folder, max_length=12)
        return [parts.Transformer(str(folder)), parts.Pooling(16, pooling_mode="cls")]

    router = parts.Router.for_query_document(tower(0), tower(1))
    model = library.SentenceTransformer(
        modules=[router, parts.Normalize()], prompts={"query": "query : "}, device="cpu"
    )
    model.save_pretrained(str(tmp_path / "m"))
    ours = weights.load(tmp_path / "m")
    assert (ours.spec.tied, ours.spec.normalise) == (False, True)
    compare(ours, tmp_path / "m", library.SentenceTransformer)


def test_a_router_with_other_routes_is_refused(published, tmp_path):
    import shutil

    shutil.copytree(published, tmp_path / "m")
    path = tmp_path / "m/router_config.json"
    record = json.loads(path.read_text())
    record["structure"]["passage"] = record["structure"].pop("document")
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"routes \['passage', 'query'\]"):
        weights.load(tmp_path / "m")


def test_a_new_inference_free_student_starts_from_document_frequencies(tmp_path):
    texts = ["water water city", "water vaccine", "city", "bus"]
    student = Student(
        checkpoint=str(masked_lm(tmp_path / "base")),
        kind="splade",
        options={"inference_free": True},
    )
    made = student.make(lambda: texts, seed=0)
    table = made.params["query_weights"]
    assert len(table) == made.spec.width
    for word, count in (("water", 2), ("city", 2), ("bus", 1), ("tokyo", 0)):
        wanted = np.log(1 + (4 - count + 0.5) / (count + 0.5))
        assert table[bert_tokenizer().find(word)] == pytest.approx(wanted)
    made.save(tmp_path / "saved")
    again = Student(checkpoint=str(tmp_path / "saved")).make(lambda: ["other"], seed=0)
    np.testing.assert_array_equal(again.params["query_weights"], table)
    assert document_frequency_weights(bert_tokenizer(), texts, 200)[0] > 2


def test_the_weights_of_queries_learn_and_are_split_over_devices(published):
    from tests.weights.steps import gradient

    ours = weights.load(published)
    loss, grads = gradient(ours)
    assert np.abs(grads["query_weights"]).max() > 1e-4
    sharded, others = gradient(ours, "data=2,fsdp=2,model=2")
    assert sharded == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(
        others["query_weights"], grads["query_weights"], atol=1e-5
    )


@pytest.mark.parametrize("name", ["dual_two_towers", "splade_sides"])
def test_two_towers_go_out_as_one_router(name, tmp_path):
    """``SentenceTransformer(folder)`` encodes each side by its own tower."""
    from tests.export.forms import student

    ours, folder = student(name), tmp_path / "out"
    result = export.write(ours, folder)
    readers = [reader["reader"].split()[0] for reader in result["readers"]]
    assert readers == ["distill_jax", "sentence-transformers"]
    cls = library.SparseEncoder if "splade" in name else library.SentenceTransformer
    compare(ours, folder, cls)
    for side, encode in (("query", "encode_query"), ("doc", "encode_document")):
        tower = cls(str(folder / f"{side}_encoder"), device="cpu")
        found = getattr(tower, encode)(TEXTS[:1], convert_to_tensor=True)
        found = found.to_dense() if found.is_sparse else found
        expected = encode_texts(ours, side, TEXTS[:1])
        expected = expected.toarray() if hasattr(expected, "toarray") else expected
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_router_of_ours_that_the_library_saved_again_has_its_settings(tmp_path):
    from tests.export.forms import student

    folder = tmp_path / "out"
    export.write(student("dual_two_towers"), folder, library=False)
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    theirs[0].sub_modules["query"][1] = parts.Pooling(16, pooling_mode="mean")
    theirs[0].sub_modules["document"][1] = parts.Pooling(16, pooling_mode="mean")
    theirs.prompts = {"query": "search : ", "document": ""}
    theirs.save_pretrained(str(tmp_path / "again"))
    theirs.save_pretrained(str(folder))  # over what was there
    for at in (tmp_path / "again", folder):
        ours = weights.load(at)
        assert ours.spec.pooling == "mean"
        compare(ours, at, library.SentenceTransformer)
