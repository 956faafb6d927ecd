"""Tiny random students of every family and form, on small real-shaped vocabularies."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.duo import DuoSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained, abstract_params
from distill_jax.models.reranker import RerankerSpec
from distill_jax.models.splade import SpladeSpec
from distill_jax.models.t5 import T5Sizes
from distill_jax.text.tokenizer import Tokenizer

_WORDS = (
    "the of and to in is a for water boil ##s ##ing vaccine protect against infection "
    "immune system city council vote bus lane vitamin d deficiency bone pain tokyo "
    "japan cafe what how do at high point query : search document"
)


@functools.cache
def bert_tokenizer() -> Tokenizer:
    folder = Path(tempfile.mkdtemp())
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(97, 123)] + [str(n) for n in range(10)]
    pieces = letters + [f"##{letter}" for letter in letters]
    marks = list("!\"#$%&'()*+,-./;<=>?@[\\]^_`{|}~")
    vocab = list(dict.fromkeys(special + _WORDS.split() + pieces + marks))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return Tokenizer.load(folder)


@functools.cache
def t5_tokenizer() -> Tokenizer:
    texts = [_WORDS, "Query: Document: Relevant: A or B"] * 40
    return Tokenizer.train_unigram(texts, 90)


def bert_sizes(**changes) -> BertSizes:
    fields = {
        "vocab_size": bert_tokenizer().vocab_size + 3,
        "d_model": 16,
        "d_ff": 24,
        "heads": 2,
        "layers": 1,
        "embedding_size": 16,
        "max_positions": 64,
        "pad_id": bert_tokenizer().pad_id,
        "sep_id": bert_tokenizer().sep_id,
    }
    return BertSizes(**{**fields, **changes})


def electra_sizes(**changes) -> BertSizes:
    return bert_sizes(**{"family": "electra", "embedding_size": 8, **changes})


def t5_sizes(**changes) -> T5Sizes:
    fields = {
        "vocab_size": t5_tokenizer().vocab_size + 2,
        "d_model": 16,
        "d_ff": 24,
        "heads": 2,
        "d_kv": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "relative_buckets": 8,
        "relative_max_distance": 16,
    }
    return T5Sizes(**{**fields, **changes})


_PAIR = {"query_length": 16, "doc_length": 40}
_SIDES = {"query_length": 48, "doc_length": 48}
_GATED = {"gated": True, "tied": False}

SPECS = {
    "t5_difference": lambda: RerankerSpec(
        backbone=t5_sizes(encoder_layers=2, decoder_layers=2), **_PAIR
    ),
    "t5_monot5": lambda: RerankerSpec(
        backbone=t5_sizes(**_GATED), head="monot5", **_PAIR
    ),
    "t5_rankt5": lambda: RerankerSpec(
        backbone=t5_sizes(**_GATED), head="rankt5", **_PAIR
    ),
    "t5_linear": lambda: RerankerSpec(
        backbone=t5_sizes(decoder_layers=0), head="linear", **_PAIR
    ),
    "t5_duo": lambda: DuoSpec(backbone=t5_sizes(), **_PAIR),
    "t5_duo_instruction": lambda: DuoSpec(
        backbone=t5_sizes(**_GATED), prompt="instruction", **_PAIR
    ),
    "bert_cross": lambda: RerankerSpec(
        backbone=bert_sizes(layers=2), head="bert_classifier", **_PAIR
    ),
    "bert_cross_untyped": lambda: RerankerSpec(
        backbone=bert_sizes(), head="bert_classifier", token_types=False, **_PAIR
    ),
    "electra_cross": lambda: RerankerSpec(
        backbone=electra_sizes(), head="electra_classifier", **_PAIR
    ),
    "electra_linear": lambda: RerankerSpec(
        backbone=electra_sizes(), head="linear", **_PAIR
    ),
    "bert_linear": lambda: RerankerSpec(backbone=bert_sizes(), head="linear", **_PAIR),
    "bert_duo": lambda: DuoSpec(
        backbone=bert_sizes(), head="bert_classifier", query_length=10, doc_length=20
    ),
    "dual_mean": lambda: DualEncoderSpec(backbone=bert_sizes(), **_SIDES),
    "dual_cls_prefix": lambda: DualEncoderSpec(
        backbone=electra_sizes(),
        pooling="cls",
        normalise=False,
        query_prefix="query: ",
        doc_prefix="document: ",
        **_SIDES,
    ),
    "dual_cosine": lambda: DualEncoderSpec(
        backbone=bert_sizes(), normalise=False, similarity="cosine", **_SIDES
    ),
    "dual_truncated": lambda: DualEncoderSpec(
        backbone=bert_sizes(), truncate_dim=6, similarity="cosine", **_SIDES
    ),
    "dual_dense": lambda: DualEncoderSpec(
        backbone=bert_sizes(),
        projection=12,
        projection_bias=True,
        projection_activation="tanh",
        **_SIDES,
    ),
    "dual_two_towers": lambda: DualEncoderSpec(
        backbone=bert_sizes(), tied=False, pooling="cls", query_length=20, doc_length=48
    ),
    "dual_t5": lambda: DualEncoderSpec(
        backbone=t5_sizes(decoder_layers=0), projection=12, **_SIDES
    ),
    "dual_last": lambda: DualEncoderSpec(
        backbone=bert_sizes(), pooling="last", normalise=False, **_SIDES
    ),
    "colbert": lambda: ColbertSpec(
        backbone=bert_sizes(), dim=8, query_length=24, doc_length=48
    ),
    "colbert_attended": lambda: ColbertSpec(
        backbone=electra_sizes(),
        dim=8,
        query_length=24,
        doc_length=48,
        attend_to_expansion=True,
        query_prefix="search ",
    ),
    "colbert_t5": lambda: ColbertSpec(
        backbone=t5_sizes(decoder_layers=0), dim=8, query_length=24, doc_length=48
    ),
    "splade": lambda: SpladeSpec(backbone=bert_sizes(), **_SIDES),
    "splade_electra": lambda: SpladeSpec(backbone=electra_sizes(), **_SIDES),
    "splade_inference_free": lambda: SpladeSpec(
        backbone=bert_sizes(), inference_free=True, query_prefix="query: ", **_SIDES
    ),
    "generator": lambda: GeneratorSpec(
        backbone=t5_sizes(encoder_layers=2, decoder_layers=2), **_SIDES
    ),
    "generator_gated": lambda: GeneratorSpec(
        backbone=t5_sizes(**_GATED), doc_prefix="Document:", **_SIDES
    ),
    "splade_sides": lambda: SpladeSpec(
        backbone=bert_sizes(), query_activation="log1p_log1p_relu", **_SIDES
    ),
}


@functools.cache
def student(name: str) -> Pretrained:
    """A random student whose weights are large enough for scores to differ."""
    spec = SPECS[name]()
    is_t5 = isinstance(spec.backbone, T5Sizes)
    tokenizer = t5_tokenizer() if is_t5 else bert_tokenizer()
    spec = spec.resolved(tokenizer)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        # Norms' scales are about 1, everything else about 0.
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, abstract_params(spec))
    return Pretrained(spec, params, tokenizer, source="random weights")
