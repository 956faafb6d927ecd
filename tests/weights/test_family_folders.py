"""Published forms of the families, tokenizers included, in and out again."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import distill_jax
from distill_jax import export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", minversion="6")
from sentence_transformers import models as parts  # noqa: E402

QUERIES = [
    "how do vaccines protect",
    "symptoms of vitamin d deficiency?",
    "Tokyo  東京",
]
DOCS = [
    "Vaccines train the immune system.",
    "Water boils at 93 degrees up here, it's so; isn't it",
    "naïve café\nand more " * 20,
]
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 1,
    "num_labels": 1,
}


def unigram():
    """XLM-R's kind of tokenizer."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator((QUERIES + DOCS) * 10, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return _fast(made)


def byte_level():
    """RoBERTa's kind of tokenizer."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((QUERIES + DOCS) * 10, trainer)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), True, False
    )
    return _fast(made)


def _fast(made):
    names = {"cls": "<s>", "bos": "<s>", "sep": "</s>", "eos": "</s>"}
    names |= {"pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=64,
        **{f"{role}_token": token for role, token in names.items()},
    )


def saved(stem: str, head: str, tokenizer, folder: Path, **more) -> Path:
    config = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 66}
    config = getattr(transformers, f"{stem}Config")(**{**config, **more})
    model = getattr(transformers, f"{stem}{head}")(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize(
    ("stem", "make", "pooling"),
    [
        ("XLMRoberta", unigram, "mean"),
        ("Bert", unigram, "mean"),
        ("Roberta", byte_level, "cls"),
        ("MPNet", byte_level, "max"),
        ("ModernBert", byte_level, "weightedmean"),
        ("Qwen3", byte_level, "lasttoken"),
    ],
)
def test_a_dual_encoder_gives_the_librarys_vectors(stem, make, pooling, tmp_path):
    more = {"num_key_value_heads": 2, "head_dim": 4} if stem == "Qwen3" else {}
    base = saved(stem, "Model", make(), tmp_path / "base", **more)
    modules = [
        parts.Transformer(str(base)),
        parts.Pooling(16, pooling_mode=pooling),
        parts.Normalize(),
    ]
    theirs = library.SentenceTransformer(modules=modules, device="cpu")
    theirs.save_pretrained(str(tmp_path / "st"))
    ours = distill_jax.load(tmp_path / "st")
    texts = QUERIES + DOCS
    np.testing.assert_allclose(
        ours.encode_queries(texts), theirs.encode(texts), atol=2e-5
    )
    result = export.write(ours.pretrained, tmp_path / "out")
    assert len(result["readers"]) == 2  # ours and the library's


@pytest.mark.parametrize(
    ("stem", "make"),
    [("XLMRoberta", unigram), ("Roberta", byte_level), ("ModernBert", byte_level)],
)
def test_a_cross_encoder_gives_the_librarys_scores(stem, make, tmp_path):
    head = "ForSequenceClassification"
    base = saved(stem, head, make(), tmp_path / "base")
    theirs = library.CrossEncoder(str(base), device="cpu")
    pairs = [(query, doc) for query in QUERIES for doc in DOCS]
    # Long queries too: the pair is cut, the longer text first.
    pairs += [(DOCS[2], DOCS[0]), (DOCS[2], DOCS[2])]
    expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    ours = distill_jax.load(base)
    np.testing.assert_allclose(ours.score(pairs), expected, atol=2e-5)
    result = export.write(ours.pretrained, tmp_path / "out")
    assert len(result["readers"]) == 2
