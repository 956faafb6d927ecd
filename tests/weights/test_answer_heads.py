"""Rerankers that answer yes or no, against the procedures of their model cards."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from distill_jax import export, weights
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.models.reranker import MXBAI_RERANK, PROMPTS, QWEN3_RERANKER
from distill_jax.recipe import checkpoints
from distill_jax.text.features import Features
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import places

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import decoders  # noqa: E402

PAIRS = [
    ("how do vaccines protect?", "Vaccines train the immune system.\n"),
    ("what is 2024", "naïve café 東京 (it's)"),
    ("symptoms\n", " water at 93 °C! " * 8),
    ("", "no"),
]
# What the card of Qwen3-Reranker says, word for word.
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on "
    'the Query and the Instruct provided. Note that the answer can only be "yes" or '
    '"no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    prompts = (QWEN3_RERANKER, MXBAI_RERANK)
    return folder, *decoders.saved("Qwen3", folder, prompts, head_dim=8)


def card(model, tokenizer, pairs, most=512, side="left"):
    """Qwen3-Reranker's: log-probabilities of "no" and "yes"."""
    before = tokenizer.encode(PREFIX, add_special_tokens=False)
    after = tokenizer.encode(SUFFIX, add_special_tokens=False)
    texts = [f"<Instruct>: {TASK}\n<Query>: {q}\n<Document>: {d}" for q, d in pairs]
    inputs = tokenizer(
        texts,
        padding=False,
        truncation="longest_first",
        return_attention_mask=False,
        max_length=most - len(before) - len(after),
    )
    rows = [before + ids + after for ids in inputs["input_ids"]]
    tokenizer.padding_side = side
    padded = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**padded).logits
    last = padded["attention_mask"].sum(1) - 1 if side == "right" else -1
    logits = logits[torch.arange(len(rows)), last]
    yes = tokenizer.convert_tokens_to_ids("yes")
    no = tokenizer.convert_tokens_to_ids("no")
    stacked = torch.stack([logits[:, no], logits[:, yes]], dim=1)
    return torch.nn.functional.log_softmax(stacked, dim=1).numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_the_card(qwen3, side):
    folder, model, tokenizer = qwen3
    ours = weights.load(folder, "reranker", prompt="qwen3_reranker")
    expected = card(model, tokenizer, PAIRS, side=side)
    found = score_tuples(ours, PAIRS)
    np.testing.assert_allclose(
        found, expected[:, 1] - expected[:, 0], rtol=1e-5, atol=1e-5
    )
    log_yes = np.asarray(jax.nn.log_sigmoid(found))
    np.testing.assert_allclose(log_yes, expected[:, 1], rtol=1e-5, atol=1e-5)
    assert np.ptp(found) > 0.05


def test_a_document_is_cut_as_the_card_cuts_it(qwen3):
    folder, model, tokenizer = qwen3
    pairs = [("what?", "water boils, " * n) for n in (3, 30, 90)]
    limit = 200
    ours = weights.load(folder, "reranker", prompt="qwen3_reranker", length=limit)
    expected = card(model, tokenizer, pairs, most=limit)
    found = score_tuples(ours, pairs)
    np.testing.assert_allclose(found, expected[:, 1] - expected[:, 0], atol=1e-5)


# Caps that change every logit.
CAPS = {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5, "head_dim": 8}


@pytest.mark.parametrize(
    ("stem", "config"),
    [
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Gemma2", CAPS),
    ],
)
def test_a_difference_of_logits_by_mxbais_prompt(stem, config, tmp_path):
    model, tokenizer = decoders.saved(stem, tmp_path / "m", (MXBAI_RERANK,), **config)
    ours = weights.load(tmp_path / "m", "reranker", prompt="mxbai_rerank")
    one, zero = (tokenizer.convert_tokens_to_ids(word) for word in "10")
    expected = []
    for query, doc in PAIRS:
        text = MXBAI_RERANK.replace("{query}", query).replace("{document}", doc)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        expected.append(float(logits[one] - logits[zero]))
    np.testing.assert_allclose(score_tuples(ours, PAIRS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3_reranker", "mxbai_rerank"])
def test_tokens_are_those_of_the_whole_prompt(qwen3, name):
    folder, _, theirs = qwen3
    tokenizer = Tokenizer.load(folder)
    template = Template(PROMPTS[name][0])
    queries, docs = decoders.texts(400, 5), decoders.texts(400, 6)[::-1]
    stores = {
        "query": TokenStore.build(queries, template.reader(tokenizer, "query")),
        "document": TokenStore.build(docs, template.reader(tokenizer, "document")),
    }
    features = Features(template, tokenizer, **stores)
    rows = np.arange(400)
    lengths = features.lengths(query=rows, document=rows)
    found = features.tokens(int(lengths.max()), query=rows, document=rows)
    for i, (query, doc) in enumerate(zip(queries, docs)):
        expected = theirs.encode(
            template.join(query=query, document=doc), add_special_tokens=False
        )
        assert found[i, : lengths[i]].tolist() == expected, (query, doc)


def test_a_query_that_is_cut_keeps_what_stands_behind_it(qwen3):
    folder, _, _ = qwen3
    tokenizer = Tokenizer.load(folder)
    template = Template(QWEN3_RERANKER, {"query": 5, "document": 4})
    made = {
        name: TokenStore.build([text], template.reader(tokenizer, name))
        for name, text in (("query", "what is it? " * 9), ("document", "water " * 9))
    }
    features = Features(template, tokenizer, **made)
    length = int(features.lengths(query=[0], document=[0])[0])
    assert length == template.max_tokens(tokenizer)
    text = tokenizer._backend.decode(
        features.tokens(length, query=[0], document=[0])[0].tolist(),
        skip_special_tokens=False,
    )
    assert text.count("<Query>: what is it?") == 1
    assert "\n<Document>: water" in text
    assert text.endswith("</think>\n\n")


def test_a_store_of_another_template_is_refused(qwen3):
    tokenizer = Tokenizer.load(qwen3[0])
    store = TokenStore.build(["a"], tokenizer)
    with pytest.raises(ValueError, match="not made by"):
        Features(Template(QWEN3_RERANKER), tokenizer, query=store, document=store)


def test_texts_without_a_place_to_part_them_are_refused(qwen3):
    tokenizer = Tokenizer.load(qwen3[0])
    for text in ("{query}{document}", "{query}\n{document}", "{query}-{document}"):
        with pytest.raises(UserError, match="glues a field"):
            Template(text).joins(tokenizer)


def test_it_goes_out_as_a_classifier_and_comes_back(qwen3, tmp_path):
    folder, _, _ = qwen3
    ours = weights.load(folder, "reranker", prompt="qwen3_reranker")
    export.write(ours, tmp_path / "out", format="transformers")
    again = weights.load(tmp_path / "out")
    assert again.spec.prompt == QWEN3_RERANKER
    np.testing.assert_allclose(
        score_tuples(again, PAIRS), score_tuples(ours, PAIRS), atol=1e-6
    )


def test_an_answer_that_is_no_token_is_refused(qwen3):
    with pytest.raises(UserError, match="no token 'relevantest'"):
        weights.load(
            qwen3[0], "reranker", prompt="{query} {document}", words=("relevantest",)
        )
    with pytest.raises(UserError, match="has no prompt"):
        weights.load(qwen3[0], "reranker", words=("yes", "no"))


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", QWEN3_RERANKER),
        ("mixedbread-ai/mxbai-rerank-base-v2", MXBAI_RERANK),
    ],
)
def test_a_published_name_needs_no_more(qwen3, name, prompt, monkeypatch):
    monkeypatch.setattr(places, "_from_hub", lambda name: qwen3[0])
    spec = checkpoints.load(checkpoints.named(f"hf:{name}")).spec
    assert (spec.kind, spec.prompt, spec.pooling) == ("reranker", prompt, "last")


def test_the_logit_of_one_word_of_a_gemma_by_its_prompt(tmp_path):
    fields = checkpoints.of_hub("hf:BAAI/bge-reranker-v2-gemma")
    prompt = fields["prompt"]
    model, tokenizer = decoders.saved(
        "Gemma", tmp_path / "m", (prompt, "Yes"), head_dim=8, bos_token_id=1
    )
    ours = weights.load(tmp_path / "m", **{**fields, "length": 400})
    word = tokenizer.convert_tokens_to_ids("Yes")
    expected = []
    for query, doc in PAIRS:
        text = prompt.replace("{query}", query).replace("{document}", doc)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            expected.append(float(model(**inputs).logits[0, -1, word]))
    np.testing.assert_allclose(score_tuples(ours, PAIRS), expected, atol=1e-5)
