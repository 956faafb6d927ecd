"""How each model that a recipe names is read: words, template, pooling, lengths."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill_jax import main
from distill_jax.cli import recipes
from distill_jax.cli.flags import parse_flags
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.recipe import checkpoints
from distill_jax.recipe.checkpoints import Checkpoint
from distill_jax.weights import places

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

MONOT5 = "Query: {query} Document: {document} Relevant:</s>"
RANKT5 = "Query: {query} Document: {document}</s>"
DUOT5 = "Query: {query} Document0: {document0} Document1: {document1} Relevant:</s>"
BGE = "Represent this sentence for searching relevant passages: "
TRUE_FALSE = (1176, 6136)

# Name on the hub -> (form of the repository, fields of the spec that it is read with).
EXPECTED: dict[str, tuple[str, dict]] = {
    "Soyoung97/RankT5-3b": (
        "t5-gated",
        {"kind": "reranker", "head": "rankt5", "prompt": RANKT5, "word_ids": (32089,),
         "query_length": 64, "doc_length": 440},
    ),
    "castorini/monot5-base-msmarco": (
        "t5",
        {"kind": "reranker", "head": "difference", "prompt": MONOT5,
         "word_ids": TRUE_FALSE, "query_length": 64, "doc_length": 436},
    ),
    "castorini/monot5-3b-msmarco": (
        "t5",
        {"kind": "reranker", "head": "difference", "prompt": MONOT5,
         "word_ids": TRUE_FALSE, "query_length": 64, "doc_length": 436},
    ),
    "castorini/duot5-3b-msmarco": (
        "t5",
        {"kind": "duo", "head": "difference", "prompt": DUOT5, "word_ids": TRUE_FALSE,
         "query_length": 64, "doc_length": 216},
    ),
    "google-t5/t5-base": (
        "t5", {"kind": "reranker", "prompt": MONOT5, "word_ids": TRUE_FALSE}
    ),
    "google/flan-t5-base": (
        "t5-gated", {"kind": "reranker", "prompt": MONOT5, "word_ids": TRUE_FALSE}
    ),
    "google/flan-t5-small": (
        "t5-gated", {"kind": "reranker", "prompt": MONOT5, "word_ids": TRUE_FALSE}
    ),
    "google/flan-t5-xl": (
        "t5-gated", {"kind": "reranker", "prompt": MONOT5, "word_ids": TRUE_FALSE}
    ),
    "doc2query/msmarco-t5-base-v1": ("t5", {"kind": "generator"}),
    "facebook/contriever": (
        "bert",
        {"kind": "dual_encoder", "pooling": "mean", "normalise": False,
         "similarity": "dot", "query_prefix": "", "doc_prefix": ""},
    ),
    "facebook/contriever-msmarco": (
        "bert",
        {"kind": "dual_encoder", "pooling": "mean", "normalise": False,
         "similarity": "dot"},
    ),
    "facebook/dragon-plus-context-encoder": (
        "bert",
        {"kind": "dual_encoder", "pooling": "cls", "normalise": False,
         "similarity": "dot"},
    ),
    "facebook/dragon-plus-query-encoder": (
        "bert",
        {"kind": "dual_encoder", "pooling": "cls", "normalise": False,
         "similarity": "dot"},
    ),
    "Snowflake/snowflake-arctic-embed-m-v1.5": (
        "st-cls",
        {"kind": "dual_encoder", "pooling": "cls", "normalise": True,
         "query_prefix": BGE, "doc_prefix": ""},
    ),
    "BAAI/bge-base-en-v1.5": (
        "st-cls",
        {"kind": "dual_encoder", "pooling": "cls", "normalise": True,
         "query_prefix": BGE, "doc_prefix": ""},
    ),
    "intfloat/e5-base-v2": (
        "st-mean",
        {"kind": "dual_encoder", "pooling": "mean", "normalise": True,
         "query_prefix": "query: ", "doc_prefix": "passage: "},
    ),
    "intfloat/e5-base-unsupervised": (
        "st-mean",
        {"kind": "dual_encoder", "pooling": "mean", "normalise": True,
         "query_prefix": "query: ", "doc_prefix": "passage: "},
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "st-mean",
        {"kind": "dual_encoder", "pooling": "mean", "normalise": True,
         "query_prefix": "", "doc_prefix": ""},
    ),
    "naver/splade-cocondenser-ensembledistil": ("bert-mlm", {"kind": "splade"}),
    "colbert-ir/colbertv2.0": (
        "colbert", {"kind": "colbert", "query_length": 32, "doc_length": 180}
    ),
    "cross-encoder/ms-marco-MiniLM-L-6-v2": (
        "bert-cross", {"kind": "reranker", "head": "bert_classifier"}
    ),
}  # fmt: skip
# Base models: what they become is the recipe's to say.
BASES = {
    "distilbert/distilbert-base-uncased",
    "google/electra-base-discriminator",
    "google-bert/bert-base-uncased",
    "microsoft/MiniLM-L12-H384-uncased",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, shared):
    """Folders of a repository's form, with small random weights and the real words."""
    root = tmp_path_factory.mktemp("hub")
    made: dict[str, Path] = {}

    def folder(form: str) -> Path:
        if form not in made:
            made[form] = write(form, root / form, shared)
        return made[form]

    return folder


def write(form: str, path: Path, shared: Path) -> Path:
    torch.manual_seed(0)
    path.mkdir()
    if form.startswith("t5"):
        config = transformers.T5Config(
            vocab_size=32128, d_model=16, d_ff=24, num_heads=2, d_kv=8, num_layers=1,
            feed_forward_proj="gated-gelu" if "gated" in form else "relu",
            tie_word_embeddings="gated" not in form, decoder_start_token_id=0,
        )  # fmt: skip
        transformers.T5ForConditionalGeneration(config).save_pretrained(path)
        shutil.copy(shared / "vocab/t5/spiece.model", path)
        return path
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_labels=1,
    )  # fmt: skip
    classes = {
        "bert-mlm": "BertForMaskedLM",
        "bert-cross": "BertForSequenceClassification",
    }
    model = getattr(transformers, classes.get(form, "BertModel"))(config)
    model.save_pretrained(path)
    shutil.copy(shared / "vocab/bert-base-uncased/vocab.txt", path)
    (path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    if form.startswith("st-"):
        write_modules(path, form.removeprefix("st-"))
    if form == "colbert":
        write_colbert(path)
    return path


def write_modules(path: Path, pooling: str) -> None:
    names = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    rows = [
        {
            "idx": i,
            "name": str(i),
            "path": p,
            "type": f"sentence_transformers.models.{n}",
        }
        for i, (n, p) in enumerate(zip(names, paths))
    ]
    (path / "modules.json").write_text(json.dumps(rows))
    (path / "1_Pooling").mkdir()
    flags = {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (path / "1_Pooling/config.json").write_text(json.dumps(flags))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')


def write_colbert(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    config = json.loads((path / "config.json").read_text())
    config["architectures"] = ["HF_ColBERT"]
    (path / "config.json").write_text(json.dumps(config))
    tensors = {f"bert.{k}": v for k, v in load_file(path / "model.safetensors").items()}
    tensors["linear.weight"] = np.ones((128, 16), np.float32)
    save_file(tensors, path / "model.safetensors")
    (path / "artifact.metadata").write_text(
        json.dumps({"query_maxlen": 32, "doc_maxlen": 180, "dim": 128})
    )


def test_every_name_that_a_recipe_ships_is_in_the_table():
    texts = [p.read_text("utf-8") for p in recipes.directory().rglob("*.gin")]
    named = set(re.findall(r"hf:([\w.-]+/[\w.-]*\w)", "\n".join(texts)))
    assert named <= {*EXPECTED, *BASES}
    assert named & BASES


@pytest.mark.parametrize(("name", "form", "fields"), [
    (name, form, fields) for name, (form, fields) in EXPECTED.items()
])  # fmt: skip
def test_a_published_model_is_read_as_it_was_trained(
    name, form, fields, hub, monkeypatch
):
    monkeypatch.setattr(places, "_from_hub", lambda name: hub(form))
    kind = "splade" if form == "bert-mlm" else None
    model = checkpoints.load(checkpoints.named(f"hf:{name}", kind=kind))
    found = {name: getattr(model.spec, name) for name in fields}
    assert found == fields
    assert model.spec.kind == fields["kind"]


def test_a_recipe_s_fields_come_first(hub, monkeypatch):
    monkeypatch.setattr(places, "_from_hub", lambda name: hub("bert"))
    named = Checkpoint(path="hf:facebook/contriever", doc_length=128, pooling="cls")
    spec = checkpoints.load(checkpoints.named(named, doc_length=100)).spec
    assert (spec.pooling, spec.doc_length, spec.normalise) == ("cls", 100, False)
    colbert = checkpoints.load(
        Checkpoint(path="hf:facebook/contriever", kind="colbert")
    ).spec
    assert colbert.kind == "colbert"


def test_rankt5_scores_by_its_own_word_and_template(hub, monkeypatch):
    """Against transformers: the logit of <extra_id_10> at the decoder's first step."""
    monkeypatch.setattr(places, "_from_hub", lambda name: hub("t5-gated"))
    model = checkpoints.load(Checkpoint(path="hf:Soyoung97/RankT5-3b"))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(hub("t5-gated"))
    theirs.eval()
    pairs = [
        ("what is a cat", "an animal that purrs"),
        ("what is a cat", "a dog " * 40),
    ]
    ours = score_tuples(model, pairs)
    expected = []
    for query, doc in pairs:
        ids = model.tokenizer.encode(f"Query: {query} Document: {doc}") + [1]
        with torch.no_grad():
            logits = theirs(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                decoder_input_ids=torch.tensor([[0]]),
            ).logits
        expected.append(float(logits[0, 0, 32089]))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "rankt5"}, "head 'difference' reads 2 answer words"),
        ({"prompt": "monot5", "head": "rankt5"}, "head 'rankt5' reads 1"),
        ({"prompt": "instruction", "head": "rankt5"}, "head 'rankt5' reads 1"),
    ],
)
def test_a_template_with_another_head_is_refused(hub, fields, told):
    with pytest.raises(UserError, match=told):
        checkpoints.load(Checkpoint(path=str(hub("t5")), **fields))


@pytest.mark.parametrize(
    ("name", "head"),
    [("Soyoung97/RankT5-3b", "difference"), ("castorini/monot5-3b-msmarco", "rankt5")],
)
def test_a_published_reranker_keeps_its_head(name, head):
    with pytest.raises(UserError, match="was trained with head"):
        checkpoints.completed(Checkpoint(path=f"hf:{name}", head=head))


def test_two_towers_are_one_retriever(hub, tmp_path):
    for number, name in enumerate(("q", "d")):
        torch.manual_seed(number)
        shutil.copytree(hub("bert"), tmp_path / name)
        config = transformers.BertConfig.from_pretrained(hub("bert"))
        transformers.BertModel(config).save_pretrained(tmp_path / name)
    model = checkpoints.load(
        Checkpoint(
            path=str(tmp_path / "d"),
            query_path=str(tmp_path / "q"),
            kind="dual_encoder",
            pooling="cls",
            normalise=False,
        )
    )
    assert not model.spec.tied
    from distill_jax.inference.texts import encode_texts

    tokenizer = model.tokenizer
    for side, name in (("query", "q"), ("doc", "d")):
        theirs = transformers.BertModel.from_pretrained(tmp_path / name).eval()
        ids = [101, *tokenizer.encode("a small test"), 102]
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).last_hidden_state[0, 0].numpy()
        found = encode_texts(model, side, ["a small test"])[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def job(*argv: str):
    return main.build_job(parse_flags(argv))


@pytest.mark.parametrize("recipe", ["evaluate", "label", "mine", "export_hf"])
def test_a_job_names_a_model_with_its_whole_spec(recipe):
    argv = [f"--gin_file={recipe}.gin", "--gin.CHECKPOINT=x", "--gin.KIND=dual_encoder",
            "--gin.POOLING=cls", "--gin.DOC_LENGTH=300"]  # fmt: skip
    if recipe == "export_hf":
        argv.append("--gin.EXPORT_DIR=y")
    found = job(*argv)
    places = {
        "evaluate": lambda: checkpoints.each(found.checkpoints, found.reading)[0],
        "label": lambda: checkpoints.named(found.teacher.checkpoint),
        "mine": lambda: checkpoints.named(found.candidates.checkpoint),
        "export_hf": lambda: checkpoints.named(found.checkpoint),
    }
    named = places[recipe]()
    assert named.path == "x"
    assert named.fields == {"kind": "dual_encoder", "pooling": "cls", "doc_length": 300}
