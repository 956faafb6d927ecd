"""A ...ForCausalLM in this process as the LLM, against transformers."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from distill_jax import weights
from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.models.generation import Decoding, first_logprobs, generate
from distill_jax.runs.run import Run
from distill_jax.teaching import calls, judges
from distill_jax.teaching.clients import LocalModel, Request
from distill_jax.teaching.judging import label_documents
from distill_jax.teaching.rankings import label_listwise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import decoders  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GROUPED = {"head_dim": 8}
WINDOWS = {
    **{"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5},
    **GROUPED,
}
CAPS = {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5}
FORMS = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {"tie_word_embeddings": False},
    "Qwen3": GROUPED,
    "Gemma2": WINDOWS | CAPS,
    "Gemma3Text": WINDOWS,
}
TEXTS = ["how do vaccines protect against infection?", "water", "it's 93 °C at night\n"]
CHAT = [{"role": "user", "content": "how does water boil"}]


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """The folder of a chat model, transformers' model of it and its tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3") / "m"
    model, tokenizer = decoders.saved("Qwen3", folder, (TEMPLATE,), **GROUPED)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def batch(tokenizer):
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    tokens = np.full((len(rows), 24), tokenizer.pad_token_id, np.int32)
    for line, row in zip(tokens, rows):
        line[: len(row)] = row
    return tokens, rows


@pytest.mark.parametrize("stem", FORMS)
def test_it_generates_what_transformers_does(stem, tmp_path):
    model, tokenizer = decoders.saved(stem, tmp_path / "m", **FORMS[stem])
    ours = weights.load(tmp_path / "m", "llm")
    tokens, rows = batch(tokenizer)
    logprobs = first_logprobs(ours.spec, ours.params, tokens)
    found, scores = generate(ours.spec, ours.params, tokens, Decoding(max_tokens=9))
    for row, line, first, score in zip(rows, np.asarray(found), logprobs, scores):
        whole = torch.tensor([[*row, *line.tolist()]])
        with torch.no_grad():
            logits = model(whole).logits[0].log_softmax(-1).numpy()
        np.testing.assert_allclose(first, logits[len(row) - 1], atol=2e-5)
        after = logits[len(row) - 1 : -1]
        # The cache gives the most probable token, and its probability, at each place.
        np.testing.assert_allclose(after[range(9), line], after.max(1), atol=1e-4)
        np.testing.assert_allclose(score, after.max(1).sum(), atol=1e-3)
    assert len({tuple(line) for line in np.asarray(found).tolist()}) > 1


def test_beams_of_a_decoder_are_those_of_transformers(qwen3):
    folder, model, tokenizer = qwen3
    ours = weights.load(folder, "llm")
    row = tokenizer.encode(TEXTS[0], add_special_tokens=False)
    how = {"do_sample": False, "num_beams": 3, "early_stopping": "never"}
    ids = torch.tensor([row])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, **how
    )
    found, _ = generate(
        ours.spec,
        ours.params,
        np.asarray([row]),
        Decoding(max_tokens=6, beams=3, eos_id=ours.spec.eos_id),
    )
    assert np.asarray(found)[0].tolist() == expected[0, len(row) :].tolist()


def test_a_chat_is_written_as_its_template_says(qwen3, tmp_path):
    folder, model, tokenizer = qwen3
    session = LocalModel(checkpoint=str(folder)).at(tmp_path)
    (ids,) = session._prompts([Request(id="a", messages=CHAT)])
    said = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=False
    )
    assert ids == tokenizer.encode(said, add_special_tokens=False)
    (reply,) = session.complete_all([Request(id="a", messages=CHAT, max_tokens=5)])
    out = model.generate(
        torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    assert reply == tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def test_a_template_that_refuses_a_message_is_a_user_error(qwen3, tmp_path):
    import shutil

    shutil.copytree(qwen3[0], tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").write_text("{{ raise_exception('no') }}")
    session = LocalModel(checkpoint=str(tmp_path / "m")).at(tmp_path)
    with pytest.raises(UserError, match="refuses the prompt: no"):
        session.complete_all([Request(id="a", messages=CHAT)])


def world():
    docs = Collection(["a", "b", "c"], ["water boils", "a city", "bone pain"])
    queries = Queries(["q"], ["how does water boil"])
    run = Run(["q"], np.asarray([[0, 1, 2]]), np.asarray([[3.0, 2.0, 1.0]]), docs.ids)
    return docs, queries, run


def test_pointwise_scores_are_the_odds_of_yes(qwen3, tmp_path):
    folder, model, tokenizer = qwen3
    session = LocalModel(checkpoint=str(folder)).at(tmp_path)
    docs, queries, run = world()
    labels = label_documents(
        session, judges.Pointwise(scale="yes_no"), queries, docs, run, tmp_path / "l"
    )
    found = dict(labels.lists()["q"])
    vocabulary = tokenizer.get_vocab()
    ids = [
        [i for token, i in vocabulary.items() if calls.word(token) == each]
        for each in ("yes", "no")
    ]
    request = calls.Judged(id="a", messages=CHAT, choices=("yes", "no"))
    reply = json.loads(session.complete_all([request])[0])
    (prompt,) = session._prompts([request])
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    for each, rows in zip(("yes", "no"), ids):
        assert reply[each] == pytest.approx(
            float(logprobs[rows].logsumexp(0)), abs=1e-4
        )
    assert len(found) == 3
    assert len(set(found.values())) == 3


def test_a_list_is_ordered_or_counted_as_failed(qwen3, tmp_path):
    docs, queries, run = world()
    session = LocalModel(checkpoint=str(qwen3[0])).at(tmp_path)
    labels = label_listwise(
        session, queries, docs, run, tmp_path / "l", most_failed=1.0, reply_tokens=4
    )
    # Random weights order nothing.
    assert labels.failed.tolist() == [True]
    assert labels.provenance["counts"]["calls"] == 2
