"""ColBERT folders: PyLate's layout and Stanford's ``artifact.metadata`` in one.

The weights of a BERT or an ELECTRA carry Stanford's names (``bert.*`` and
``linear.weight`` at the root), which transformers' AutoModel reads as well; those of
other families, which Stanford's code does not read, their own class's. PyLate and
sentence-transformers take the projection from ``1_Dense``.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

from distill_jax.export.folders import as_numpy, note_of, write_model
from distill_jax.export.hugging_face import bare
from distill_jax.export.sentence_transformers import write_dense, write_modules
from distill_jax.io.errors import UserError
from distill_jax.io.reading import write_json
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import Pretrained
from distill_jax.ops.vector_form import VectorForm


def write(pretrained: Pretrained, folder: Path) -> None:
    """A ColBERT for PyLate, Stanford's code and MultiVectorEncoder.

    Raises:
        UserError: no ColBERT on a BERT or ELECTRA, or a skip list that has other
            tokens than words of the vocabulary.
    """
    spec, tokenizer = pretrained.spec, pretrained.tokenizer
    late = spec.vectors is VectorForm.PER_TOKEN
    if not late or not isinstance(spec.backbone, BertSizes):
        raise UserError(
            "PyLate's layout is for a ColBERT on a BERT or an ELECTRA",
            "leave format out: it is chosen from the model",
        )
    if tokenizer.mask_id != spec.mask_id or spec.marker_position != 1:
        raise UserError(
            "PyLate puts the marker after [CLS] and expands with [MASK]; this model "
            "was trained otherwise",
            'export with format="transformers" is not possible either: serve with '
            "distill_jax.load",
        )
    params = as_numpy(pretrained.params)
    config, tensors = bare(spec.backbone, params["encoder"])
    kernel, family = params["projection"]["kernel"], config["model_type"]
    stanford = family in ("bert", "electra")
    if stanford:
        tensors = {f"{family}.{name}": array for name, array in tensors.items()}
        tensors["linear.weight"] = np.ascontiguousarray(kernel.T)
        config["architectures"] = ["HF_ColBERT"]
    write_model(folder, config, tensors, note_of(spec))
    length = max(spec.query_length, spec.doc_length)
    tokenizer.save(folder, max_length=length)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": length, "do_lower_case": False},
    )
    write_modules(
        folder,
        ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"],
    )
    write_dense(folder / "1_Dense", kernel, use_residual=False)
    markers = [tokenizer.token(spec.query_marker), tokenizer.token(spec.doc_marker)]
    words = [tokenizer.token(token) for token in spec.skiplist or ()]
    _pylate(spec, folder, markers, words)
    if stanford:
        _stanford(spec, folder, markers, words)


def _pylate(spec, folder: Path, markers: list, words: list) -> None:
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                "sentence_transformers": "5.3.0",
                "transformers": "5.3.0",
                "pytorch": "2.6.0",
                "pylate_version": "1.6.0",
            },
            "model_type": "ColBERT",
            "similarity_fn_name": "MaxSim",
            "prompts": {
                "query": _prompt(spec.query_prefix),
                "document": _prompt(spec.doc_prefix),
            },
            "default_prompt_name": None,
            "query_prefix": markers[0],
            "document_prefix": markers[1],
            "query_length": spec.query_length,
            "document_length": spec.doc_length,
            "attend_to_expansion_tokens": spec.attend_to_expansion,
            "do_query_expansion": spec.expand,
            "skiplist_words": words,
        },
    )


def _stanford(spec, folder: Path, markers: list, words: list) -> None:
    write_json(
        folder / "artifact.metadata",
        {
            "query_token_id": markers[0],
            "doc_token_id": markers[1],
            "query_token": "[Q]",
            "doc_token": "[D]",
            "query_maxlen": spec.query_length,
            "doc_maxlen": spec.doc_length,
            "dim": spec.dim,
            "similarity": "cosine",
            "attend_to_mask_tokens": spec.attend_to_expansion,
            "mask_punctuation": bool(set(words) & set(string.punctuation)),
            "nbits": 2,
            "checkpoint": ".",
        },
    )


def _prompt(prefix: str) -> str:
    if prefix.endswith("{join}"):
        return prefix.removesuffix("{join}")
    return f"{prefix.strip()} " if prefix.strip() else ""
