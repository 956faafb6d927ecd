"""Every family and form, out to the real libraries and back in."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import distill_jax
from distill_jax import export, weights
from distill_jax.inference.texts import encode_texts
from distill_jax.io.errors import UserError
from distill_jax.predictor import Predictor
from distill_jax.runtime.sharding import make_mesh
from tests.export.forms import SPECS, student

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers", minversion="6")

BARE = ("dual_mean", "dual_last", "splade", "bert_cross", "electra_linear")


# Forms that the library holds under another name, or without the rows of words that
# the vocabulary has not: read back with equal scores only.
RENAMED = ("electra_linear", "bert_linear", "splade_sides", "splade_inference_free")


@pytest.mark.parametrize("name", SPECS)
def test_the_library_and_our_reader_give_our_scores(name, tmp_path):
    model = student(name)
    result = export.write(model, tmp_path / "out")
    readers = {r["reader"].split()[0]: r for r in result["readers"]}
    expected = {
        "transformers": "transformers",
        "sentence_transformers": "sentence-transformers",
        "pylate": "sentence-transformers",
        "t5x": "distill_jax",
    }[result["format"]]
    assert {"distill_jax", expected} <= set(readers)
    for reader in readers.values():
        assert reader["greatest_difference"] <= 1e-4
        assert reader["order_agreement"] == 1.0
        assert reader["compared"] >= 20
    kept = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert kept["readers"] == result["readers"]
    again = weights.load(tmp_path / "out")
    assert again.fresh == ()
    assert again.tokenizer.digest == model.tokenizer.digest
    if name not in RENAMED:
        assert again.spec == model.spec
        assert again.digest == model.digest


def test_a_verification_says_nothing_on_standard_error(tmp_path, capfd):
    export.write(student("dual_mean"), tmp_path / "out")
    assert capfd.readouterr().err == ""


def test_an_electra_of_one_width_goes_out_as_a_bert(tmp_path):
    model = student("dual_mean")
    backbone = dataclasses.replace(model.spec.backbone, family="electra")
    model = model.replace(spec=dataclasses.replace(model.spec, backbone=backbone))
    export.write(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert config["model_type"] == "bert"


@pytest.mark.parametrize("name", BARE)
def test_transformers_alone_gives_our_scores(name, tmp_path):
    result = export.write(student(name), tmp_path / "out", "transformers")
    assert [r["greatest_difference"] <= 1e-4 for r in result["readers"]] == [True] * 2


T5X = ("t5_difference", "t5_rankt5", "dual_t5", "t5_duo", "generator_gated")


@pytest.mark.parametrize("name", T5X)
def test_t5x_names_carry_everything(name, tmp_path):
    model = student(name)
    export.write(model, tmp_path / "out", "t5x")
    again = weights.load(tmp_path / "out")
    assert again.spec == model.spec
    assert again.digest == model.digest


CARDS = (
    *("t5_monot5", "t5_linear", "t5_duo", "bert_cross", "dual_two_towers", "colbert"),
    "generator_gated",
)


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_the_card_runs(name, tmp_path):
    folder = tmp_path / "out"
    measures = {"before": {"nDCG@10": 0.5}, "after": {"nDCG@10": 0.75}}
    facts = {"collection": "beir:a: b", "license": "mit", "loss": "ranknet"}
    export.write(
        student(name), folder, measures=measures, provenance=facts, library=False
    )
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    done = _run(code, folder)
    assert done.strip()
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert "loss:ranknet" in front["tags"]
    result = front["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "ndcg@10", "value": 0.75}]
    assert "| before | 0.5000 |" in card


def test_a_calibration_is_in_the_card_and_beside_it(tmp_path):
    found = {
        "scale": 0.5, "shift": -1.0, "queries": 40, "threshold": 4.0, "coverage": 0.8,
        "probability": 0.73, "risk": 0.1, "risk_without": 0.2, "most_risk": 0.1,
    }  # fmt: skip
    folder = tmp_path / "out"
    export.write(student("bert_cross"), folder, calibration=found, library=False)
    card = (folder / "README.md").read_text()
    assert "exp(-(0.5 * score + -1)))" in card
    assert "a first score of 4" in card
    assert json.loads((folder / "calibration.json").read_text()) == found


def _run(code: str, folder) -> str:
    """The card's code in this process: importing torch anew would take seconds."""
    import contextlib
    import io
    import os

    out, here = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), {"__name__": "card"})
    finally:
        os.chdir(here)
    return out.getvalue()


@pytest.mark.parametrize("name", ["generator", "generator_gated"])
def test_an_exported_generator_writes_the_same_queries(name, tmp_path):
    """transformers' own ``generate`` with the folder's settings, token by token."""
    import torch
    import transformers

    model, folder = student(name), tmp_path / "out"
    export.write(model, folder, library=False)
    docs = ["vaccines protect against infection", "the city council voted on bus lanes"]
    predictor = distill_jax.load(folder)
    assert predictor.kind == "generator"
    prefix = model.spec.doc_prefix
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    expected = []
    for doc in docs:
        inputs = tokenizer(f"{prefix} {doc}".strip(), return_tensors="pt")
        with torch.inference_mode():
            (ids,) = theirs.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
        # Longer than the 20 tokens that generate() has by default.
        assert 21 < len(ids) <= model.spec.query_length + 1
    assert predictor.generate(docs) == expected
    on_mesh = Predictor(model, make_mesh("data=4"))
    assert on_mesh.generate(docs) == expected
    # Sampling is by seeds; a score is of the words, so what is greedily written
    # scores above what is said of another document.
    sampled = predictor.generate(docs, temperature=1.0, top_k=5, seeds=[3, 4])
    assert sampled == predictor.generate(docs, temperature=1.0, top_k=5, seeds=[3, 4])
    assert sampled != expected
    assert predictor.generate([]) == []


def test_a_generator_of_others_is_one_when_told(tmp_path):
    """Without our note a T5 is a reranker, unless ``kind`` says otherwise."""
    model, folder = student("generator"), tmp_path / "out"
    export.write(model, folder, library=False)
    config = json.loads((folder / "config.json").read_text())
    del config["distill_jax"]
    (folder / "config.json").write_text(json.dumps(config))
    assert weights.load(folder).spec.kind == "reranker"
    again = weights.load(folder, "generator", query_length=48, doc_length=48)
    assert again.fresh == ()
    assert again.digest == model.digest


def test_the_same_colbert_folder_is_stanfords(tmp_path):
    """Without PyLate's files, ``HF_ColBERT`` and ``artifact.metadata`` say it all."""
    import sentence_transformers

    model, folder = student("colbert"), tmp_path / "out"
    export.write(model, folder, library=False)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "1_Dense")
    config = json.loads((folder / "config.json").read_text())
    del config["distill_jax"]
    (folder / "config.json").write_text(json.dumps(config))
    again = weights.load(folder)
    assert again.spec == model.spec
    assert again.digest == model.digest
    theirs = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")
    texts = ["vaccines protect , against infection", "bus lanes in tokyo !"]
    for side, encode in (
        ("query", theirs.encode_query),
        ("doc", theirs.encode_document),
    ):
        for ours, their in zip(encode_texts(model, side, texts), encode(texts)):
            np.testing.assert_allclose(ours, np.asarray(their.cpu()), atol=1e-5)


def test_a_difference_leaves_nothing_behind(tmp_path, monkeypatch):
    """What is written is changed behind the writer's back; the old export stays."""
    model = student("dual_mean")
    export.write(model, tmp_path / "out", library=False)
    before = (tmp_path / "out" / "README.md").read_text()
    write = export.FORMATS["sentence_transformers"]

    def wrong(pretrained, folder):
        params = dict(pretrained.params)
        tower = dict(params["tower"])
        encoder = {**tower["encoder"]}
        embeddings = {**encoder["embeddings"]}
        embeddings["word"] = embeddings["word"] + np.float32(0.01) * np.arange(
            embeddings["word"].shape[1], dtype=np.float32
        )
        encoder["embeddings"] = embeddings
        params = {"tower": {**tower, "encoder": encoder}}
        write(pretrained.replace(params=params), folder)

    monkeypatch.setitem(export.FORMATS, "sentence_transformers", wrong)
    with pytest.raises(UserError, match="failed its verification"):
        export.write(model, tmp_path / "out", library=False)
    assert (tmp_path / "out" / "README.md").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        export.write(student("dual_mean"), tmp_path, library=False)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_export_replaces_an_earlier_one(tmp_path):
    export.write(student("dual_mean"), tmp_path / "out", library=False)
    export.write(student("bert_cross"), tmp_path / "out", library=False)
    assert not (tmp_path / "out" / "modules.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "format", "said"),
    [
        ("t5_difference", "sentence_transformers", "CrossEncoder"),
        ("colbert", "transformers", "pylate"),
        ("dual_dense", "transformers", "projection"),
        ("dual_mean", "pylate", "ColBERT"),
        ("bert_cross", "t5x", "T5"),
        ("dual_two_towers", "t5x", "T5X"),
        ("dual_mean", "onxx", "no export format"),
    ],
)
def test_what_a_format_cannot_say_is_refused(name, format, said, tmp_path):
    with pytest.raises(UserError, match=said):
        export.write(student(name), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def test_real_texts_of_any_length_are_made_to_fit(tmp_path):
    queries = ["water " * 100, "", "   "]
    docs = ["vitamin d deficiency " * 200, "unbreakable" * 50, ""]
    result = export.write(
        student("bert_cross"), tmp_path / "out", samples=(queries, docs)
    )
    assert result["texts"] == "given"
    assert all(r["greatest_difference"] <= 1e-4 for r in result["readers"])


def test_export_imports_no_torch():
    code = (
        "import sys, distill_jax.export; "
        "bad = {'torch', 'transformers', 'sentence_transformers', 'tensorflow'}; "
        "sys.exit(bool(bad & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


SIXTEEN_BITS = ("t5_difference", "bert_cross", "dual_dense", "colbert", "splade")


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_weights_of_16_bits_are_verified_and_served_as_the_library_likes(
    name, tmp_path
):
    from safetensors import safe_open

    model = student(name)
    result = export.write(model, tmp_path / "out", dtype="bfloat16")
    assert len(result["readers"]) == 2  # ours and the library's, both within 1e-4
    for path in (tmp_path / "out").rglob("*.safetensors"):
        with safe_open(path, "np") as file:
            kinds = {file.get_slice(tensor).get_dtype() for tensor in file.keys()}  # noqa: SIM118
        assert kinds == {"BF16"}
    again = weights.load(tmp_path / "out")
    with pytest.raises(AssertionError):  # rounded, so not the same
        np.testing.assert_array_equal(leaves(again), leaves(model))
    np.testing.assert_allclose(leaves(again), leaves(model), rtol=2**-8)
    if result["format"] == "sentence_transformers" and model.spec.kind != "reranker":
        # With no argument at all, in whatever dtype it then computes.
        import sentence_transformers as library

        kind = "SparseEncoder" if name == "splade" else "SentenceTransformer"
        served = getattr(library, kind)(str(tmp_path / "out"), device="cpu")
        assert len(served.encode(["a cat", "the dog"])) == 2


def leaves(model) -> np.ndarray:
    import jax

    return np.concatenate(
        [np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(model.params)]
    )


@pytest.mark.parametrize("name", ["t5_difference", "bert_cross", "dual_dense"])
def test_large_weights_are_several_files_that_the_library_reads(name, tmp_path):
    model = student(name)
    result = export.write(model, tmp_path / "out", shard_bytes=20_000)
    assert len(result["readers"]) == 2
    folder = next((tmp_path / "out").rglob("model.safetensors.index.json")).parent
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("model-*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert not (folder / "model.safetensors").exists()
    assert weights.load(tmp_path / "out").digest == model.digest


def test_a_weight_that_float16_cannot_hold_is_refused(tmp_path):
    import jax

    model = student("bert_cross")
    model = model.replace(params=jax.tree.map(lambda leaf: leaf * 1e30, model.params))
    with pytest.raises(UserError, match="too large for float16"):
        export.write(model, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
