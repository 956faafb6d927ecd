"""The most used models, by architecture: each loads, or is refused with the reason.

A model stands for the form of its repository: a tiny random folder with its class, its
modules and its kind of tokenizer. Scores of the forms are compared elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill_jax import weights
from distill_jax.io.errors import UserError
from distill_jax.recipe import checkpoints

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.export.forms import bert_tokenizer, t5_tokenizer  # noqa: E402
from tests.weights import decoders  # noqa: E402
from tests.weights.test_family_folders import _fast, byte_level, unigram  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs/families.md"


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of a repository.

    Attributes:
        cls: transformers' class.
        words: kind of tokenizer.
        modules: of sentence-transformers, "" without; poolings stand for Pooling.
        kind: which student it is, or is made of a base model.
        refused: what the message says, "" where it loads.
        config: of the model, besides sizes.
    """

    cls: str
    words: str = "wordpiece"
    modules: str = ""
    kind: str = "dual_encoder"
    refused: str = ""
    config: tuple[tuple[str, object], ...] = ()


MEAN, CLS, LAST = "mean Normalize", "cls Normalize", "lasttoken Normalize"
BERT_MEAN = Form("BertModel", modules=MEAN)
BERT_CLS = Form("BertModel", modules=CLS)
XLMR_CLS = Form("XLMRobertaModel", "unigram", CLS)
XLMR_MEAN = Form("XLMRobertaModel", "unigram", MEAN)
XLMR_CROSS = Form("XLMRobertaForSequenceClassification", "unigram", kind="reranker")
MODERN_CLS = Form("ModernBertModel", "bytes", CLS)
ALIBI = (("position_embedding_type", "alibi"),)
BOTH = (("use_bidirectional_attention", True),)
MODELS: dict[str, Form] = {
    "sentence-transformers/all-MiniLM-L6-v2": BERT_MEAN,
    "BAAI/bge-base-en-v1.5": BERT_CLS,
    "intfloat/e5-base-v2": BERT_MEAN,
    "thenlper/gte-base": BERT_MEAN,
    "mixedbread-ai/mxbai-embed-large-v1": Form("BertModel", modules="cls"),
    "Snowflake/snowflake-arctic-embed-m": BERT_CLS,
    "facebook/contriever": Form("BertModel"),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Form(
        "BertModel", "unigram", "mean"
    ),
    "intfloat/multilingual-e5-small": Form("BertModel", "unigram", MEAN),
    "sentence-transformers/all-mpnet-base-v2": Form("MPNetModel", "mpnet", MEAN),
    "BAAI/bge-m3": XLMR_CLS,
    "intfloat/multilingual-e5-large": XLMR_MEAN,
    "Snowflake/snowflake-arctic-embed-l-v2.0": XLMR_CLS,
    "nomic-ai/nomic-embed-text-v1.5": Form("NomicBertModel", modules="mean"),
    "Alibaba-NLP/gte-modernbert-base": Form("ModernBertModel", "bytes", "cls"),
    "ibm-granite/granite-embedding-english-r2": MODERN_CLS,
    "Alibaba-NLP/gte-multilingual-base": Form("GteModel", "unigram", CLS),
    "jinaai/jina-embeddings-v2-base-en": Form(
        "BertModel", modules="mean", refused="alibi", config=ALIBI
    ),
    "Qwen/Qwen3-Embedding-0.6B": Form("Qwen3Model", "qwen", LAST),
    "intfloat/e5-mistral-7b-instruct": Form("MistralModel", "qwen", LAST),
    "google/embeddinggemma-300m": Form(
        "Gemma3TextModel", "qwen", "mean Dense Dense Normalize", config=BOTH
    ),
    "sentence-transformers/gtr-t5-base": Form(
        "T5EncoderModel", "t5", "mean Dense Normalize"
    ),
    "sentence-transformers/msmarco-distilbert-base-tas-b": Form(
        "DistilBertModel", modules="cls"
    ),
    "minishlab/potion-base-8M": Form("", modules="StaticEmbedding Normalize"),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Form(
        "BertForSequenceClassification", kind="reranker"
    ),
    "cross-encoder/ms-marco-electra-base": Form(
        "ElectraForSequenceClassification", kind="reranker"
    ),
    "BAAI/bge-reranker-large": XLMR_CROSS,
    "BAAI/bge-reranker-v2-m3": XLMR_CROSS,
    "mixedbread-ai/mxbai-rerank-base-v1": Form(
        "DebertaV2ForSequenceClassification", "spm", kind="reranker"
    ),
    "Alibaba-NLP/gte-reranker-modernbert-base": Form(
        "ModernBertForSequenceClassification", "bytes", kind="reranker"
    ),
    "Qwen/Qwen3-Reranker-0.6B": Form("Qwen3ForCausalLM", "qwen", kind="reranker"),
    "mixedbread-ai/mxbai-rerank-base-v2": Form(
        "Qwen2ForCausalLM", "qwen", kind="reranker"
    ),
    "BAAI/bge-reranker-v2-gemma": Form("GemmaForCausalLM", "qwen", kind="reranker"),
    "castorini/monobert-large-msmarco": Form(
        "BertForSequenceClassification", kind="reranker", config=(("num_labels", 2),)
    ),
    "castorini/monot5-base-msmarco": Form(
        "T5ForConditionalGeneration", "t5", kind="reranker"
    ),
    "naver/splade-v3": Form("BertForMaskedLM", kind="splade"),
    "naver/splade-v3-distilbert": Form("DistilBertForMaskedLM", kind="splade"),
    "opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill": Form(
        "DistilBertForMaskedLM", modules="Router", kind="splade"
    ),
    "answerdotai/ModernBERT-base": Form("ModernBertForMaskedLM", "bytes"),
    "microsoft/deberta-v3-base": Form("DebertaV2Model", "spm"),
}


def sizes_of(cls: str) -> dict:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 66,
        "num_labels": 1,
    }
    if cls.startswith("DistilBert"):
        sizes |= {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
    if cls.startswith("T5"):
        sizes = {"d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    if cls.startswith(("Qwen", "Mistral", "Gemma")):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if cls.startswith("DebertaV2"):
        sizes |= {"relative_attention": True, "position_buckets": 8}
        sizes |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
        sizes |= {"type_vocab_size": 0, "position_biased_input": False}
        sizes |= {"norm_rel_ebd": "layer_norm", "pooler_hidden_size": 16}
    return sizes


def write_words(words: str, folder: Path) -> tuple[int, int]:
    """The tokenizer's files; its size and the id of padding."""
    if words in ("wordpiece", "t5"):
        made = t5_tokenizer() if words == "t5" else bert_tokenizer()
        made.save(folder, max_length=48)
        return made.vocab_size, made.pad_id
    if words == "spm":
        decoders.write_spm(folder / "spm.model")
        decoders.write_json(folder / "tokenizer_config.json", {})
        theirs = transformers.DebertaV2Tokenizer.from_pretrained(str(folder))
        return len(theirs), theirs.pad_token_id
    make = {
        "unigram": unigram,
        "bytes": byte_level,
        "qwen": lambda: decoders.qwen_tokenizer(("Yes",) * 20),
        "mpnet": mpnet,
    }
    theirs = make[words]()
    theirs.save_pretrained(folder)
    return len(theirs), theirs.pad_token_id


def mpnet():
    """MPNet's: BERT's word pieces between the special tokens of RoBERTa."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", "what", "is", "##s"]
    vocab = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _fast(made)


def write_folder(form: Form, folder: Path) -> Path:
    folder.mkdir()
    count, pad = write_words(form.words, folder)
    if form.cls:
        stem = form.cls.split("For")[0].removesuffix("Model").removesuffix("Encoder")
        config = getattr(transformers, f"{stem}Config")(
            vocab_size=count,
            pad_token_id=pad,
            **{**sizes_of(form.cls), **dict(form.config)},
        )
        torch.manual_seed(0)
        getattr(transformers, form.cls)(config).save_pretrained(folder)
        record = json.loads((folder / "config.json").read_text())
        decoders.write_json(folder / "config.json", record | dict(form.config))
    if form.modules == "Router":
        write_router(folder, count)
    elif form.modules:
        write_modules(form.modules.split(), folder, bool(form.cls), count)
    return folder


def write_modules(names: list[str], folder: Path, whole: bool, count: int) -> None:
    from safetensors.numpy import save_file

    records, shape = [], (24, 16)
    for name in ["Transformer", *names] if whole else names:
        kind = "Pooling" if name in ("mean", "cls", "lasttoken") else name
        place = f"{len(records)}_{kind}" if records else ""
        (folder / place).mkdir(exist_ok=True)
        if kind == "Pooling":
            record = {"word_embedding_dimension": 16, "pooling_mode": name}
            decoders.write_json(folder / place / "config.json", record)
        if kind == "StaticEmbedding":
            words = decoders.drawn((count, 16))
            save_file({"embeddings": words}, folder / place / "model.safetensors")
        if kind == "Dense":
            record = {"activation_function": "torch.nn.modules.linear.Identity"}
            decoders.write_json(folder / place / "config.json", record)
            weight = decoders.drawn(shape)
            save_file({"linear.weight": weight}, folder / place / "model.safetensors")
            shape = (16, 24)
        full = f"sentence_transformers.models.{kind}"
        records.append({"idx": len(records), "name": "", "path": place, "type": full})
    (folder / "modules.json").write_text(json.dumps(records))


def write_router(folder: Path, count: int) -> None:
    """An inference-free SPLADE, whose encoder's files are at the root so far."""
    from safetensors.numpy import save_file

    names = ("document_0_MLMTransformer", "document_1_SpladePooling")
    query = "query_0_SparseStaticEmbedding"
    shutil.copytree(folder, folder.with_name("encoder"))
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name("encoder").rename(folder / names[0])
    for name in (names[1], query):
        (folder / name).mkdir()
    decoders.write_json(folder / names[1] / "config.json", {"pooling_strategy": "max"})
    shutil.copy(folder / names[0] / "tokenizer.json", folder / query)
    words = np.ones(count, np.float32)
    save_file({"weight": words}, folder / query / "model.safetensors")
    package = "sentence_transformers.sparse_encoder.modules"
    types = {name: f"{package}.{name.split('_')[-1]}" for name in (query, *names)}
    structure = {"query": [query], "document": list(names)}
    record = {"types": types, "structure": structure, "parameters": {}}
    decoders.write_json(folder / "router_config.json", record)
    module = {"idx": 0, "name": "", "path": "", "type": "sentence_transformers.Router"}
    (folder / "modules.json").write_text(json.dumps([module]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    made: dict[Form, Path] = {}

    def folder(form: Form) -> Path:
        if form not in made:
            made[form] = write_folder(form, root / str(len(made)))
        return made[form]

    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_published_form_loads_or_is_refused_by_name(name, folders):
    form = MODELS[name]
    path = folders(form)
    fields = checkpoints.of_hub(f"hf:{name}")
    fields = {"kind": form.kind} | fields
    for length in ("length", "query_length", "doc_length"):
        fields.pop(length, None)
    if form.refused:
        with pytest.raises(UserError, match=form.refused):
            weights.load(path, **fields)
        return
    model = weights.load(path, **fields)
    assert model.spec.kind == form.kind
    # A base model's encoder has no weights that are made up.
    assert not [p for p in model.fresh if "encoder" in p or "backbone" in p]
    if form.modules or ("For" in form.cls and "ModernBertForMasked" not in form.cls):
        assert model.fresh == ()


def table() -> str:
    rows = ["| model | class | here |", "|---|---|---|"]
    for name, form in MODELS.items():
        said = f"refused: {form.refused}" if form.refused else form.kind
        rows.append(f"| {name} | {form.cls or form.modules} | {said} |")
    return "\n".join(rows)


def test_forty_models_are_listed_as_they_are_tested():
    assert len(MODELS) == 40
    assert sum(not form.refused for form in MODELS.values()) >= 36
    assert table() in DOCS.read_text("utf-8")
