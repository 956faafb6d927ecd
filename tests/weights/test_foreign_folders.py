"""Settings of other libraries' folders: read as they read them, or refused."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import distill_jax
from distill_jax import export, weights
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import graphdef_of
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import t5
from tests.export.forms import student

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", minversion="6")

QUERIES = ["what is the Boiling point", "vaccine"]
DOCS = ["Vaccines protect against infection", "water boils AT a point", "Café Tokyo"]
TOP = "config_sentence_transformers.json"


@functools.cache
def exported(name: str) -> Path:
    """An export without our note: what another library would have written."""
    folder = Path(tempfile.mkdtemp()) / "model"
    export.write(student(name), folder, library=False)
    changed(folder / "config.json", distill_jax=None)
    return folder


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(exported(name), to / "model"))


def changed(path: Path, **values) -> None:
    """Sets entries of a JSON file; None takes them out."""
    record = json.loads(path.read_text())
    record.update(values)
    kept = {key: value for key, value in record.items() if value is not None}
    path.write_text(json.dumps(kept))


def assert_scores_of_sentence_transformers(folder: Path) -> None:
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    queries, docs = theirs.encode_query(QUERIES), theirs.encode_document(DOCS)
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    ours = distill_jax.load(folder).score(pairs)
    expected = theirs.similarity(queries, docs).numpy().ravel()
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["dual_last", "dual_mean"])
@pytest.mark.parametrize("similarity", [None, "dot", "cosine"])
def test_similarity_is_that_of_the_library(name, similarity, tmp_path):
    """Without a name it is the cosine, also of vectors that are not normalised."""
    folder = copy(name, tmp_path)
    changed(folder / TOP, similarity_fn_name=similarity)
    assert_scores_of_sentence_transformers(folder)


def test_prompts_that_end_in_a_mark_need_no_blank(tmp_path):
    folder = copy("dual_mean", tmp_path)
    changed(folder / TOP, prompts={"query": "search:", "document": "the water: "})
    assert_scores_of_sentence_transformers(folder)


def test_a_prompt_that_runs_into_the_text_is_refused(tmp_path):
    folder = copy("dual_mean", tmp_path)
    changed(folder / TOP, prompts={"query": "search"})
    with pytest.raises(UserError, match="does not end in a space"):
        weights.load(folder)
    assert weights.load(folder, query_prefix="search").spec.query_prefix == "search"


@pytest.mark.parametrize(
    ("name", "file", "values", "match"),
    [
        ("dual_mean", TOP, {"similarity_fn_name": "manhattan"}, "dot and cosine"),
        ("splade", TOP, {"similarity_fn_name": "cosine"}, "only 'dot'"),
        ("splade", TOP, {"max_active_dims": 64}, "max_active_dims"),
        ("colbert", TOP, {"similarity_fn_name": "meanmaxsim"}, "only MaxSim"),
    ],
)
def test_what_changes_scores_and_is_not_read_is_refused(
    name, file, values, match, tmp_path
):
    folder = copy(name, tmp_path)
    assert weights.load(folder).fresh == ()
    changed(folder / file, **values)
    with pytest.raises(UserError, match=match):
        weights.load(folder)


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("name", ["BertTokenizer", "TokenizersBackend"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_which_of_two_files_normalises(lowercase, name, config, tmp_path):
    """BERT's class by tokenizer_config.json, others by tokenizer.json."""
    folder = copy("dual_mean", tmp_path)
    absent = dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars"))
    changed(
        folder / "tokenizer_config.json", **{**absent, **config}, tokenizer_class=name
    )
    record = json.loads((folder / "tokenizer.json").read_text())
    record["normalizer"]["lowercase"] = lowercase
    (folder / "tokenizer.json").write_text(json.dumps(record))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Vaccines CAFÉ naïve 東京a"
    ours = Tokenizer.load(folder)
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == expected
    ours.save(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
        {"type": "Replace", "pattern": {"String": "water"}, "content": "point"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["BertTokenizer", "TokenizersBackend"])
def test_another_normaliser_counts_as_its_class_in_the_library(
    name, normalizer, tmp_path
):
    folder = copy("dual_mean", tmp_path)
    changed(folder / "tokenizer_config.json", tokenizer_class=name)
    record = json.loads((folder / "tokenizer.json").read_text())
    record["normalizer"] = normalizer
    (folder / "tokenizer.json").write_text(json.dumps(record))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Vaccines CAFÉ naïve water 東京a"
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert Tokenizer.load(folder).encode(text) == expected


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("config.json", ("1e-12", "NaN"), "not JSON: NaN is no number"),
        ("config.json", ("1e-12", "Infinity"), "not JSON: Infinity"),
        ("modules.json", ("1_Pooling", "7_Pooling"), "no config.json of the pooling"),
        ("modules.json", ("sentence_transformers.", "custom_st."), "custom_st."),
        (TOP, ('"default_prompt_name": null', '"default_prompt_name": "x"'), "is 'x'"),
    ],
)
def test_what_the_library_would_not_load_is_refused(file, change, match, tmp_path):
    folder = copy("dual_mean", tmp_path)
    text = (folder / file).read_text()
    assert change[0] in text
    (folder / file).write_text(text.replace(*change))
    with pytest.raises(UserError, match=match):
        weights.load(folder)


def test_texts_that_are_lowered_outside_of_the_tokenizer_are_refused(tmp_path):
    folder = copy("dual_mean", tmp_path)
    changed(folder / "sentence_bert_config.json", do_lower_case=True)
    assert weights.load(folder).fresh == ()  # the tokenizer does so itself
    changed(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(UserError, match="lowercased before"):
        weights.load(folder)


def test_a_cross_encoder_whose_tokenizer_gives_no_types(tmp_path):
    folder = copy("electra_cross", tmp_path)
    names = ["input_ids", "attention_mask"]
    changed(folder / "tokenizer_config.json", model_input_names=names)
    model = distill_jax.load(folder)
    assert not model.pretrained.spec.token_types
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    theirs = library.CrossEncoder(str(folder), device="cpu")
    expected = theirs.predict(pairs, show_progress_bar=False)
    np.testing.assert_allclose(model.score(pairs), expected, atol=1e-5)


def test_the_width_of_embeddings_is_the_table_s(tmp_path):
    folder = copy("electra_cross", tmp_path)
    changed(folder / "config.json", embedding_size=None)
    sizes = weights.load(folder).spec.backbone
    assert (sizes.width, sizes.d_model, sizes.family) == (8, 16, "electra")


def mono_of_lightning_ir(to: Path, **values) -> tuple[Path, np.ndarray]:
    """An ELECTRA and ``linear.weight`` under the names that lightning-ir gives them."""
    from safetensors.numpy import load_file, save_file

    folder = copy("electra_cross", to)
    tensors = load_file(folder / "model.safetensors")
    weight = np.random.default_rng(1).normal(size=(1, 16)).astype(np.float32)
    kept = {
        name.removeprefix("electra."): array
        for name, array in tensors.items()
        if not name.startswith("classifier")
    }
    kept["linear.weight"] = weight
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    said = {
        "architectures": ["MonoElectraModel"],
        "model_type": "mono",
        "backbone_model_type": "electra",
        "query_length": 12,
        "doc_length": 512,
        "pooling_strategy": "first",
        "scoring_strategy": "rank",
    }
    changed(folder / "config.json", **{**said, **values})
    return folder, weight


def test_lightning_irs_cross_encoder_keeps_its_head(tmp_path):
    """Rank-DistiLLM's own models: [CLS] times ``linear.weight``."""
    folder, weight = mono_of_lightning_ir(tmp_path)
    model = distill_jax.load(folder)
    spec = model.pretrained.spec
    assert (model.kind, spec.head, model.pretrained.fresh) == ("reranker", "linear", ())
    # The tokenizer of this folder says 59 tokens, fewer than there are positions: what
    # the folder states of query and document is cut to that together.
    assert (spec.query_length, spec.doc_length) == (12, 512)
    assert spec.template.total == 59
    backbone = exported("electra_cross")
    theirs = transformers.ElectraModel.from_pretrained(backbone).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone)
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    inputs = tokenizer(*zip(*pairs), return_tensors="pt", padding=True)
    with torch.no_grad():
        first = theirs(**inputs).last_hidden_state[:, 0].numpy()
    expected = first @ weight[0]
    np.testing.assert_allclose(model.score(pairs), expected, atol=1e-4)


@pytest.mark.parametrize("change", [{"pooling_strategy": "mean"}])
def test_another_mono_is_refused(change, tmp_path):
    folder, _ = mono_of_lightning_ir(tmp_path, **change)
    with pytest.raises(UserError, match="without bias"):
        weights.load(folder)


@pytest.mark.parametrize("kind", ["reranker", "duo"])
def test_a_base_electra_becomes_what_can_be_exported(kind, tmp_path):
    """Its narrow embeddings have no place in a BERT's classifier."""
    folder = copy("electra_cross", tmp_path)
    changed(folder / "config.json", architectures=["ElectraModel"])
    model = weights.load(folder, kind, query_length=8, doc_length=20)
    assert model.spec.head == "electra_classifier"
    assert all(name.startswith("head.") for name in model.fresh)
    export.write(model, tmp_path / "out", library=False)


def saved_by_version_6(to: Path) -> Path:
    model = library.MultiVectorEncoder(str(exported("colbert")), device="cpu")
    model.save_pretrained(str(to / "model"))
    changed(to / "model" / "config.json", distill_jax=None)
    return to / "model"


def test_parts_of_a_multi_vector_encoder_are_read_or_refused(tmp_path):
    folder = saved_by_version_6(tmp_path)
    model = distill_jax.load(folder)
    theirs = library.MultiVectorEncoder(str(folder), device="cpu")
    found = theirs.similarity(
        theirs.encode_query(QUERIES), theirs.encode_document(DOCS)
    )
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    expected = np.asarray(found).ravel()
    np.testing.assert_allclose(model.score(pairs), expected, atol=2e-5)

    mask = folder / "2_MultiVectorMask" / "config.json"
    kept = mask.read_text()
    for change in (
        {"skiplist_tasks": ["query", "document"]},
        {"keep_only_token_ids": [7, 8]},
    ):
        changed(mask, **change)
        with pytest.raises(UserError, match="documents leave out"):
            weights.load(folder)
        mask.write_text(kept)
    records = json.loads((folder / "modules.json").read_text())
    dense, normalise = records[1], records[-1]
    for wrong in ([r for r in records if r is not normalise], [*records, dense]):
        (folder / "modules.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="a ColBERT is"):
            weights.load(folder)


@pytest.mark.parametrize("family", ["T5", "MT5"])
@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
def test_scaling_of_a_head(family, own_head, form, tmp_path):
    """T5's is scaled when it is tied, mT5's never; the ties on file say neither."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=1,
        feed_forward_proj=form,
        decoder_start_token_id=0,
        **({"tie_word_embeddings": False} if own_head else {}),
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    if own_head:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    theirs.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    record = json.loads((tmp_path / "config.json").read_text())
    sizes, params = t5.read(record, load_file(tmp_path / "model.safetensors"))
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        logits = theirs(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            decoder_input_ids=torch.zeros(1, 1, dtype=torch.long),
        ).logits[:, 0]
    ours = nnx.merge(graphdef_of(sizes), nnx.State(params))
    found = ours.first_step_logits(tokens.numpy(), tuple(range(40)))
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-5)
