"""Static embeddings against sentence-transformers, in, trained and out again."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import distill_jax
from distill_jax import export, weights
from distill_jax.io.errors import UserError
from tests.export.forms import bert_tokenizer
from tests.weights import steps

library = pytest.importorskip("sentence_transformers", minversion="6")
parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

TEXTS = ["Water boils at high point.", "", "Tokyo 東京 !", "vaccine virus " * 300]


def words(seed: int = 0, width: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(bert_tokenizer().vocab_size, width)).astype(np.float32)


def saved(folder, *more, prompts=None, truncation=None, **how):
    """A folder that the library wrote."""
    from tokenizers import Tokenizer

    bert_tokenizer().save(folder / "words")
    tokenizer = Tokenizer.from_file(str(folder / "words/tokenizer.json"))
    if truncation:
        tokenizer.enable_truncation(truncation)
    table = parts.StaticEmbedding(tokenizer, embedding_weights=words())
    model = library.SentenceTransformer(
        modules=[table, *more], prompts=prompts, device="cpu", **how
    )
    model.save(str(folder / "model"))
    return model, folder / "model"


def close(folder, model, prompt: str | None = None):
    ours = distill_jax.load(str(folder))
    with jax.default_matmul_precision("highest"):
        queries = np.asarray(ours.encode_queries(TEXTS))
        docs = np.asarray(ours.encode_docs(TEXTS))
    expected = model.encode(TEXTS, prompt_name=prompt)
    np.testing.assert_allclose(queries, expected, atol=2e-6)
    np.testing.assert_allclose(docs, model.encode(TEXTS), atol=2e-6)


FORMS = {
    "plain": {},
    "normalised": {"more": ("normalise",)},
    "projected": {"more": ("dense", "normalise")},
    "cut": {"truncation": 7, "more": ("normalise",)},
    "prompted": {"prompts": {"query": "query: ", "document": ""}},
}


@pytest.mark.parametrize("name", FORMS)
def test_vectors_are_those_of_the_library_in_and_out(name, tmp_path):
    how = dict(FORMS[name])
    made = {"normalise": parts.Normalize, "dense": lambda: parts.Dense(12, 5)}
    more = [made[part]() for part in how.pop("more", ())]
    model, folder = saved(tmp_path, *more, similarity_fn_name="dot", **how)
    prompt = "query" if "prompts" in how else None
    close(folder, model, prompt)
    export.write(weights.load(folder), tmp_path / "out")
    again = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    kinds = [type(module).__name__ for module in again]
    assert kinds == [type(module).__name__ for module in model]
    close(tmp_path / "out", again, prompt)
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=2e-6)


def test_tables_of_model2vec_are_those_of_the_library(tmp_path):
    from safetensors.numpy import save_file

    _, folder = saved(tmp_path, parts.Normalize())
    random = np.random.default_rng(3)
    rows = random.normal(size=(9, 12)).astype(np.float16)
    tokens = bert_tokenizer().vocab_size
    arrays = {
        "embeddings": rows,
        "mapping": random.integers(0, 9, tokens),
        "weights": random.uniform(0.1, 2, tokens).astype(np.float32),
    }
    place = next(folder.rglob("model.safetensors"))
    for names in (["embeddings", "mapping", "weights"], ["embeddings"]):
        if names == ["embeddings"]:
            arrays["embeddings"] = words(4)
        save_file({name: arrays[name] for name in names}, place)
        close(folder, library.SentenceTransformer(str(folder), device="cpu"))


@pytest.mark.parametrize("kind", ["reranker", "colbert", "splade"])
def test_static_embeddings_become_no_other_student(kind, tmp_path):
    _, folder = saved(tmp_path)
    with pytest.raises(UserError, match="static embeddings"):
        weights.load(folder, kind)


def test_only_a_mean_pools_static_embeddings(tmp_path):
    _, folder = saved(tmp_path)
    with pytest.raises(UserError, match="mean"):
        weights.load(folder, pooling="cls")


def test_a_module_that_is_not_read_with_a_table_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    records = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Pooling"
    records.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": kind})
    (folder / "modules.json").write_text(json.dumps(records))
    with pytest.raises(UserError, match="StaticEmbedding"):
        weights.load(folder)


def test_the_gradient_is_of_the_words_of_the_batch_alone(tmp_path):
    _, folder = saved(tmp_path, parts.Normalize())
    student = weights.load(folder)
    loss, gradient = steps.gradient(student)
    sharded, _ = steps.gradient(student, "data=2,fsdp=2,model=2")
    assert sharded == pytest.approx(loss, rel=1e-5)
    assert list(gradient) == ["tower.encoder.embeddings.word"]
    moved = np.abs(gradient["tower.encoder.embeddings.word"]).max(-1) > 0
    batch = steps.batch_of(student)
    used = np.union1d(batch.query_tokens, batch.doc_tokens)
    used = used[used != student.tokenizer.pad_id]
    np.testing.assert_array_equal(np.flatnonzero(moved), used)
