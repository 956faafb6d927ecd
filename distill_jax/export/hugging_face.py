"""Folders that ``transformers`` loads with its own classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.export.folders import as_numpy, note_of, write_model
from distill_jax.io.errors import UserError
from distill_jax.io.reading import write_json
from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.t5 import T5Sizes
from distill_jax.ops.vector_form import VectorForm
from distill_jax.weights import encoders, t5


def write(pretrained: Pretrained, folder: Path) -> None:
    """Config, weights and tokenizer of one transformers class.

    A T5 reranker or a query generator becomes T5ForConditionalGeneration (or, without
    a decoder, T5ForTokenClassification read at position 0), a cross-encoder
    ...ForSequenceClassification, a dual encoder without projection its bare encoder,
    SPLADE ...ForMaskedLM.

    Raises:
        UserError: transformers has no class for this student.
    """
    spec = pretrained.spec
    tower, sizes = as_numpy(pretrained.params), spec.backbone
    if spec.vectors is not None:
        _refuse_encoder(spec)
        tower = tower["tower"]
    changes: dict[str, Any] = {}
    if isinstance(sizes, T5Sizes):
        config, tensors = _t5(spec, tower)
    else:
        config, tensors, changes = _bert(spec, tower)
    write_model(folder, config, tensors, note_of(spec, longest(pretrained), **changes))
    if config["architectures"][0].endswith("T5ForConditionalGeneration"):
        ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
        if isinstance(spec, GeneratorSpec):
            # Without it, generate() stops after 20 tokens.
            ids["max_new_tokens"] = spec.query_length
        write_json(folder / "generation_config.json", ids)
    pretrained.tokenizer.save(folder, max_length=longest(pretrained))


def longest(pretrained: Pretrained) -> int:
    """``model_max_length``: tokens of the longest sequence the student is given."""
    spec = pretrained.spec
    if spec.documents:
        return int(spec.template.max_tokens(pretrained.tokenizer) or 512)
    return max(spec.query_length, spec.doc_length)


def _refuse_encoder(spec: Any) -> None:
    if spec.vectors is VectorForm.PER_TOKEN:
        raise UserError(
            "transformers has no class for a ColBERT", 'export with format="pylate"'
        )
    if getattr(spec, "inference_free", False):
        raise UserError(
            "transformers has no class for an inference-free SPLADE",
            'export with format="sentence_transformers"',
        )
    if getattr(spec, "projection", None) is not None or not spec.tied:
        raise UserError(
            "transformers has no class for a dual encoder with a projection or with "
            "two towers",
            'export with format="sentence_transformers"',
        )


def _t5(spec: Any, params: dict) -> tuple[dict, dict[str, np.ndarray]]:
    sizes = spec.backbone
    if spec.vectors is not None:
        sizes = dataclasses.replace(sizes, decoder_layers=0)
        return t5.write(sizes, {"encoder": params["encoder"]})
    config, tensors = t5.write(sizes, params["backbone"])
    if sizes.decoder_layers:
        return config, tensors
    tensors = {f"transformer.{name}": array for name, array in tensors.items()}
    tensors["classifier.weight"] = params["head"]["kernel"].T
    tensors["classifier.bias"] = params["head"]["bias"]
    stem = "UMT5" if sizes.layer_bias else "T5"
    config["architectures"] = [f"{stem}ForTokenClassification"]
    config["id2label"], config["label2id"] = {"0": "LABEL_0"}, {"LABEL_0": 0}
    return config, tensors


def _bert(spec: Any, params: dict) -> tuple[dict, dict[str, np.ndarray], dict]:
    if spec.vectors is VectorForm.SPARSE:
        tree = {"encoder": params["encoder"], "head": params["mlm"]}
        return *encoders.write(spec.backbone, tree, head="mlm"), {}
    if spec.vectors is VectorForm.ONE:
        return *bare(spec.backbone, params["encoder"]), {}
    sizes, head = spec.backbone, spec.head
    if getattr(spec, "answer_cap", None) is not None:
        raise UserError(
            "transformers has no classifier whose logits are capped",
            "export a student of this model; as a teacher it needs no export",
        )
    tree = {"encoder": params["backbone"], "head": params["head"]}
    if head == "linear" and sizes.family in ("bert", "electra"):
        sizes, tree = without_pooler(sizes, tree)
        head = "electra_classifier"
    elif head not in encoders.family_named(sizes.family).architectures:
        # BERT's and ELECTRA's encoders are one formula: a head decides which can hold
        # both.
        sizes = dataclasses.replace(sizes, family=head.removesuffix("_classifier"))
    if sizes.family == "bert" and sizes.width != sizes.d_model:
        raise UserError(
            "transformers' BERT has no narrow embeddings, its ELECTRA has no pooler",
            "train with head=electra_classifier, or embedding_size as d_model",
        )
    return *encoders.write(sizes, tree, head=head), {"head": head}


def bare(sizes: Any, encoder: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """A BertModel or ElectraModel, as sentence-transformers and PyLate load it.

    BertModel has a pooler that is unused here. It is written as zeros: without it,
    every load warns that weights are missing and should be trained. An ELECTRA whose
    embeddings are as wide as its layers is a BERT, which more servers read.
    """
    if sizes.family == "electra" and sizes.width == sizes.d_model:
        sizes = dataclasses.replace(sizes, family="bert")
    config, tensors = encoders.write(sizes, {"encoder": encoder})
    if encoders.family_named(sizes.family).pooler:
        width = sizes.d_model
        tensors["pooler.dense.weight"] = np.zeros((width, width), np.float32)
        tensors["pooler.dense.bias"] = np.zeros(width, np.float32)
    return config, tensors


def without_pooler(sizes: Any, tree: dict) -> tuple[Any, dict]:
    """A linear layer on [CLS] in the form of ElectraForSequenceClassification.

    That class has a dense layer and a gelu between [CLS] and its output. With the
    exact gelu, ``gelu(x) - gelu(-x) = x``: one unit holds ``w.h``, another ``-w.h``,
    and the output subtracts them. Equal up to rounding.
    """
    weight = tree["head"]["linear"]["kernel"][:, 0]
    kernel = np.zeros((sizes.d_model, sizes.d_model), np.float32)
    kernel[:, 0], kernel[:, 1] = weight, -weight
    output = np.zeros((sizes.d_model, 1), np.float32)
    output[0, 0], output[1, 0] = 1.0, -1.0
    head = {
        "dense": {"kernel": kernel, "bias": np.zeros(sizes.d_model, np.float32)},
        "out_proj": {"kernel": output, "bias": np.zeros(1, np.float32)},
    }
    family = dataclasses.replace(sizes, family="electra")
    return family, {"encoder": tree["encoder"], "head": head}
