"""Weights in: every folder that this field writes, to a ``Pretrained``.

``load`` recognises a folder by its files (``folders``), reads safetensors only
(``safe``), renames by tables of patterns (``tables``, ``t5``, ``bert``, ``t5x``), and
completes what a student needs and the source lacks (``students``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError, understood
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import (
    answer_heads,
    causal,
    hugging_face,
    late_folders,
    own,
    router,
    sentence_folders,
    static,
    t5x_folders,
)
from distill_jax.weights.folders import TOWERS, Folder, recognise
from distill_jax.weights.places import locate
from distill_jax.weights.students import adapted, check_vocabulary, spec_class


def load(
    name: str | Path,
    kind: str | None = None,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    seed: int = 0,
    **fields: Any,
) -> Pretrained:
    """Loads a model.

    Args:
        name: ``PATH``, ``hf:NAME`` or ``package:MODULE/PATH`` of a ``MODEL_DIR``, an
            Orbax step of one, a student saved by us, or a Hugging Face,
            sentence-transformers, PyLate, Stanford ColBERT or T5X folder.
        kind: which student to make of it ("reranker", "duo", "dual_encoder",
            "colbert", "splade", "generator"); None takes the folder's own kind. "llm"
            is a whole ...ForCausalLM, which generates as a teacher and is not trained.
        tokenizer: a tokenizer's folder or file, where the folder has none (T5X).
        seed: of the parameters that the source does not have; they are named in
            ``Pretrained.fresh``.
        fields: of the student's spec (``doc_length=256``, ``pooling="cls"``), and of
            its backbone (``dtype``, ``remat``, ``dropout``, ``decoder_layers``).

    Raises:
        UserError: no such folder, an unknown form, names or shapes that do not fit, a
            pickle, or a vocabulary larger than the embedding table.
    """
    if kind not in (None, "llm"):
        spec_class(kind)
    fields = {key: value for key, value in fields.items() if value is not None}
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    path = locate(name)
    with understood(
        f"{path}: its files are not understood",
        "fetch them again; is one from another version of a library, or edited?",
    ):
        made = _read(recognise(path), kind, tokenizer, seed, fields)
    return made.replace(source=str(name))


def _read(
    folder: Folder,
    kind: str | None,
    tokenizer: Tokenizer | None,
    seed: int,
    fields: dict,
) -> Pretrained:
    ours = {
        "student": own.read_student,
        "model_dir": own.read_model_dir,
        "step": own.read_step,
    }
    if folder.form in ours:
        found = ours[folder.form](folder.path)
        if tokenizer is not None:
            check_vocabulary(tokenizer, found.spec.backbone, str(folder.path))
            found = found.replace(tokenizer=tokenizer)
        return adapted(found, kind, seed, fields)
    if folder.form == "t5x":
        return t5x_folders.read(folder, kind, tokenizer, seed, fields)
    if folder.form == "two_towers":
        found = sentence_folders.joined(
            [
                _read(recognise(folder.path / name), None, tokenizer, seed, {})
                for name in TOWERS
            ]
        )
        return adapted(found, kind, seed, fields)
    if folder.form == "router":
        queries, docs = router.routes(folder)
        found = _read(docs, None, tokenizer, seed, {})
        if queries.form == "query_weights":
            tokenizer = tokenizer or _tokenizer(queries)
            found = router.inference_free(queries, tokenizer, found)
        else:
            towers = [_read(queries, None, tokenizer, seed, {}), found]
            found = sentence_folders.joined(towers)
        return adapted(found, kind, seed, fields)
    tokenizer = tokenizer or _tokenizer(folder)
    if kind == "llm":
        return causal.read(folder, tokenizer, **fields)
    if words := answer_heads.answers(folder, kind, fields):
        return answer_heads.read(folder, tokenizer, words, seed, fields)
    if folder.form == "hugging_face":
        return hugging_face.read_model(folder, tokenizer, kind, seed, fields)
    readers = {
        "dual_encoder": ("dual_encoder", sentence_folders.read_dual),
        "static": ("dual_encoder", static.read),
        "splade": ("splade", sentence_folders.read_splade),
        "pylate": ("colbert", late_folders.read_pylate),
        "stanford": ("colbert", late_folders.read_stanford),
        "cross_encoder": ("reranker", hugging_face.read_classifier),
    }
    own_kind, reader = readers[folder.form]
    if kind in (None, own_kind):
        return reader(folder, tokenizer, seed, fields)
    # Fields belong to the student that is wanted, not to the one on the disk.
    return adapted(reader(folder, tokenizer, seed, {}), kind, seed, fields)


def _tokenizer(folder: Folder) -> Tokenizer:
    roots = [folder.path, *(path for _, path in folder.modules[:1])]
    for root in roots:
        try:
            return Tokenizer.load(root)
        except UserError as error:
            first = error
    raise UserError(
        f"{folder.path}: {first.what}", "give tokenizer=PATH of the one it belongs to"
    )
