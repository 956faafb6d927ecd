"""Forms of published folders: prompts, several Dense modules, DeBERTa's spm.model."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from distill_jax import export, weights
from distill_jax.inference.texts import encode_texts
from distill_jax.text.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers import models as parts  # noqa: E402

from tests.weights import decoders  # noqa: E402

INSTRUCT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the "
    "query\nQuery:"
)
TEXTS = ["what is 2024?", "vaccines\n", " water", "(it's)", "", "naïve café"]


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


def modular(folder, more, prompts, path):
    """Qwen3-Embedding's form: a decoder, last-token pooling, ``more``, unit length."""
    decoders.saved("Qwen3", folder / "base", head_dim=8)
    base = parts.Transformer(str(folder / "base"))
    whole = [base, parts.Pooling(16, pooling_mode="lasttoken"), *more]
    model = library.SentenceTransformer(
        modules=[*whole, parts.Normalize()], prompts=prompts, device="cpu"
    )
    model.save_pretrained(str(path))
    return library.SentenceTransformer(str(path), device="cpu")


@pytest.mark.parametrize("prompt", [INSTRUCT, "query: ", "search\n", ""])
def test_a_prompt_of_a_decoder_joins_as_the_library_joins_it(prompt, tmp_path):
    theirs = modular(tmp_path, [], {"query": prompt, "document": ""}, tmp_path / "m")
    ours = weights.load(tmp_path / "m")
    for side, name in (("query", "query"), ("doc", "document")):
        found = encode_texts(ours, side, TEXTS[:4])
        expected = theirs.encode(TEXTS[:4], prompt_name=name)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    if prompt == INSTRUCT:
        export.write(ours, tmp_path / "out", format="sentence_transformers")
        again = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
        assert again.prompts["query"] == INSTRUCT


def test_dense_modules_follow_each_other_in_and_out(tmp_path):
    torch.manual_seed(0)
    more = [
        parts.Dense(16, 24, bias=False, activation_function=torch.nn.Identity()),
        parts.Dense(24, 12, bias=True, activation_function=torch.nn.GELU()),
        parts.Dense(12, 8, bias=True, activation_function=torch.nn.ReLU()),
    ]
    theirs = modular(tmp_path, more, {}, tmp_path / "m")
    ours = weights.load(tmp_path / "m")
    assert ours.spec.width == 8
    expected = theirs.encode(TEXTS[:4])
    np.testing.assert_allclose(
        encode_texts(ours, "doc", TEXTS[:4]), expected, atol=1e-5
    )
    export.write(ours, tmp_path / "out", format="sentence_transformers")
    again = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS[:4]), expected, atol=1e-5)


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    """A folder with the vocabulary of DeBERTa-v3's form."""
    folder = tmp_path_factory.mktemp("spm")
    decoders.write_spm(folder / "spm.model")
    return folder


@pytest.mark.parametrize("config", [{}, {"do_lower_case": True}])
def test_ids_of_an_spm_model_are_those_of_transformers(spm, config, tmp_path):
    shutil.copy(spm / "spm.model", tmp_path)
    theirs = transformers.DebertaV2Tokenizer.from_pretrained(str(tmp_path), **config)
    decoders.write_json(tmp_path / "tokenizer_config.json", config)
    ours = Tokenizer.load(tmp_path)
    assert (ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id) == (
        theirs.pad_token_id,
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.mask_token_id,
    )
    texts = [*decoders.texts(500, 4), "A [MASK] b", "ＦＵＬＬ", "\u0085x", "a\u200bb"]
    for text, ids in zip(texts, ours.encode_batch(texts)):
        assert ids == theirs.encode(text, add_special_tokens=False), text
    ours.save(tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    assert (
        again("yes no", "what?")["input_ids"] == theirs("yes no", "what?")["input_ids"]
    )
