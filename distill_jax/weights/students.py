"""From a backbone to a student: what the source has is taken, the rest is drawn.

A BERT becomes a ColBERT, a T5 a duo, a reranker a dual encoder. Parameters that the
source does not have are initialised from a seed and named in ``Pretrained.fresh``.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from distill_jax.io.errors import UserError, near
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import (
    Pretrained,
    abstract_params,
    flatten,
    unflatten,
)
from distill_jax.models.t5 import T5Sizes
from distill_jax.ops.vector_form import VectorForm
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders

KINDS = {
    "reranker": "RerankerSpec",
    "duo": "DuoSpec",
    "dual_encoder": "DualEncoderSpec",
    "colbert": "ColbertSpec",
    "splade": "SpladeSpec",
    "generator": "GeneratorSpec",
}
# What a load may change of a backbone: how it computes, and how deep it is cut.
_BACKBONE_FIELDS = ("dtype", "remat", "dropout", "attention_dropout")
_DEPTHS = ("layers", "encoder_layers", "decoder_layers")


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A backbone that is not a student yet.

    Attributes:
        sizes: ``T5Sizes`` or ``BertSizes``.
        params: of the backbone: ``{"encoder", "decoder", "lm_head"}`` of a T5, the
            tree of a ``BertEncoder``.
        tokenizer: its vocabulary.
        source: its origin.
        mlm: the masked language model's head, {} when it has none.
    """

    sizes: Any
    params: dict
    tokenizer: Tokenizer
    source: str
    mlm: dict = dataclasses.field(default_factory=dict)


def spec_class(kind: str) -> Any:
    """The spec class of a kind of student.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise UserError(
            f"kind={kind!r} is not a kind of student{near(kind, KINDS)}",
            f"one of {', '.join(KINDS)}",
        )
    module = importlib.import_module(f"distill_jax.models.{kind}")
    return getattr(module, KINDS[kind])


def spec_fields() -> dict[str, list[Any]]:
    """What can be set of a student of any kind, or of its backbone, with its types."""
    found: dict[str, list[Any]] = {name: [int] for name in _DEPTHS}
    for cls in (*map(spec_class, KINDS), BertSizes, T5Sizes):
        known = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            own = cls not in (BertSizes, T5Sizes) or field.name in _BACKBONE_FIELDS
            if own and field.name != "backbone":
                found.setdefault(field.name, []).append(known[field.name])
    return found


def assemble(
    kind: str,
    base: Base,
    given: Mapping[str, np.ndarray] | None = None,
    *,
    seed: int = 0,
    **fields: Any,
) -> Pretrained:
    """A student of a backbone.

    Args:
        kind: a key of ``KINDS``.
        base: the backbone.
        given: flat parameters of the student's head, by our paths inside one tower
            ("projection.kernel", "head.out_proj.bias").
        seed: of what has to be drawn.
        fields: of the spec, or of the backbone where ``_BACKBONE_FIELDS`` has them.

    Raises:
        UserError: an unknown field, or a vocabulary that does not fit.
    """
    cls = spec_class(kind)
    sizes = base.sizes
    # Others are students of a whole backbone: a T5 keeps its decoder.
    encoder_only = cls.vectors is not None
    if getattr(sizes, "is_static", False) and kind != "dual_encoder":
        raise UserError(
            f"{base.source}: static embeddings are not a {kind}",
            "make a dual_encoder of them",
        )
    if isinstance(sizes, T5Sizes) and encoder_only:
        sizes = dataclasses.replace(sizes, decoder_layers=0)
    fields, sizes = _split(cls, fields, sizes)
    if not isinstance(sizes, T5Sizes):
        # The tokenizer decides padding and [SEP].
        ids = {"pad_id": base.tokenizer.pad_id, "sep_id": base.tokenizer.sep_id}
        known = {name: token for name, token in ids.items() if token is not None}
        sizes = dataclasses.replace(sizes, **known)
    if cls.documents and isinstance(sizes, T5Sizes) and not sizes.decoder_layers:
        fields.setdefault("head", "linear")
    elif cls.documents and not isinstance(sizes, T5Sizes):
        # The head that transformers gives the family, so that it can be exported.
        head = encoders.family_named(sizes.family).classifier
        fields.setdefault("head", head)
        if cls.documents == 1 and head == "linear":
            fields.setdefault("pooling", "last")
    if hasattr(cls, "head_activation") and not isinstance(sizes, T5Sizes):
        fields.setdefault("head_activation", encoders.head_activation(sizes))
    spec = cls(backbone=sizes, **fields).resolved(base.tokenizer)
    flat = _placed(spec, base, given or {})
    return filled(spec, flat, base.tokenizer, base.source, seed)


def adapted(pretrained: Pretrained, kind: str | None, seed: int, fields: dict):
    """A loaded student with other fields, or as another kind of student."""
    spec = pretrained.spec
    if kind in (None, spec.kind):
        if not fields:
            return pretrained
        fields, sizes = _split(type(spec), fields, spec.backbone)
        # Fields that depend on the head are decided again with it.
        if "head" in fields:
            fields = {"words": (), "word_ids": (), "prompt": "", **fields}
        elif "words" in fields:
            fields.setdefault("word_ids", ())
        spec = dataclasses.replace(spec, backbone=sizes, **fields)
        spec = _resolved_keeping_markers(spec, pretrained.tokenizer)
        flat = flatten(pretrained.params)
        return filled(spec, flat, pretrained.tokenizer, pretrained.source, seed)
    lengths = {
        name: getattr(spec, name)
        for name in ("query_length", "doc_length")
        if spec_class(kind).vectors is not VectorForm.PER_TOKEN
    }
    return assemble(kind, base_of(pretrained), seed=seed, **{**lengths, **fields})


def base_of(pretrained: Pretrained) -> Base:
    """The backbone of a student; of separate towers the documents'."""
    spec, params = pretrained.spec, pretrained.params
    is_t5 = isinstance(spec.backbone, T5Sizes)
    mlm: dict = {}
    if spec.vectors is None:
        tree = params["backbone"]
    else:
        tower = params
        for name in ("tower", "doc_tower"):
            tower = params.get(name, tower)
        tree = {"encoder": tower["encoder"]} if is_t5 else tower["encoder"]
        mlm = tower.get("mlm", {})
    return Base(spec.backbone, tree, pretrained.tokenizer, pretrained.source, mlm)


def filled(
    spec: Any,
    flat: Mapping[str, np.ndarray],
    tokenizer: Tokenizer,
    source: str,
    seed: int,
) -> Pretrained:
    """A student whose missing parameters are drawn from ``seed``, and named.

    Raises:
        UserError: a backbone's parameter has another shape than the spec asks for.
    """
    check_vocabulary(tokenizer, spec.backbone, source)
    abstract = flatten(abstract_params(spec))
    params, missing = {}, []
    for path, wanted in abstract.items():
        leaf = flat.get(path)
        if leaf is not None and tuple(leaf.shape) == tuple(wanted.shape):
            params[path] = leaf
        elif leaf is not None and ("encoder." in path or path.startswith("backbone.")):
            raise UserError(
                f"{source}: {path} is {list(leaf.shape)}, the spec asks for "
                f"{list(wanted.shape)}",
                "give the sizes that the checkpoint has, or start from random weights",
            )
        else:
            missing.append(path)
    drawn = _drawn(spec, seed, tuple(missing)) if missing else {}
    # In the order of the module, not of the sources.
    ordered = {path: params.get(path, drawn.get(path)) for path in abstract}
    return Pretrained(
        spec=spec,
        params=unflatten(ordered),
        tokenizer=tokenizer,
        source=source,
        fresh=tuple(missing),
    )


def check_vocabulary(tokenizer: Tokenizer, sizes: Any, source: str) -> None:
    """Refuses a tokenizer whose ids go beyond the embedding table.

    JAX clamps such a look-up without a word; a table with rows to spare is common.
    """
    if tokenizer.vocab_size > sizes.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding "
            f"table {sizes.vocab_size} rows",
            "load the tokenizer that belongs to the weights",
        )
    if isinstance(sizes, T5Sizes) and tokenizer.pad_id not in (0, None):
        raise UserError(
            f"{source}: the tokenizer pads with {tokenizer.pad_id}, a T5 with 0",
            "load the tokenizer that belongs to the weights",
        )


def _split(cls: Any, fields: dict, sizes: Any) -> tuple[dict, Any]:
    """Fields of the spec, and the backbone with those that are its own."""
    own = {field.name for field in dataclasses.fields(cls)} - {"backbone"}
    inner = {field.name for field in dataclasses.fields(sizes)}
    allowed = inner.intersection((*_BACKBONE_FIELDS, *_DEPTHS))
    changes = {}
    spec_fields = {}
    for name, value in fields.items():
        if name in own:
            spec_fields[name] = value
        elif name in allowed:
            changes[name] = value
        else:
            known = sorted(own | allowed)
            raise UserError(
                f"{cls.__name__} has no field {name!r}{near(name, known)}",
                f"one of {', '.join(known)}",
            )
    for name in _DEPTHS:
        if changes.get(name, 0) > getattr(sizes, name, 0):
            raise UserError(
                f"{name}={changes[name]}, the checkpoint has {getattr(sizes, name)}",
                "a loaded model can be cut, not deepened",
            )
    return spec_fields, dataclasses.replace(sizes, **changes) if changes else sizes


def _resolved_keeping_markers(spec: Any, tokenizer: Tokenizer) -> Any:
    if spec.vectors is not VectorForm.PER_TOKEN:
        return spec.resolved(tokenizer)
    # A published ColBERT's markers are what it was trained with, whatever others the
    # vocabulary has.
    names = ("query_marker", "doc_marker", "marker_position", "mask_id", "skiplist")
    names = (*names, "wrap")
    kept = {name: getattr(spec, name) for name in names}
    return dataclasses.replace(spec.resolved(tokenizer), **kept)


def _placed(spec: Any, base: Base, given: Mapping[str, np.ndarray]) -> dict:
    """The backbone's and the head's flat parameters at their places in a student."""
    if spec.vectors is None:
        return {**flatten({"backbone": base.params}), **given}
    tree = base.params["encoder"] if isinstance(base.sizes, T5Sizes) else base.params
    tower = {**flatten({"encoder": tree}), **given}
    if spec.vectors is VectorForm.SPARSE:
        tower.update(flatten({"mlm": base.mlm}))
    if spec.vectors is VectorForm.PER_TOKEN:
        return tower
    names = ("tower",) if spec.tied else ("query_tower", "doc_tower")
    return {f"{name}.{path}": leaf for name in names for path, leaf in tower.items()}


def _drawn(spec: Any, seed: int, paths: tuple[str, ...]) -> dict[str, np.ndarray]:
    @jax.jit
    def make():
        # Only what is returned is computed: a 3B model is not drawn for one head.
        tree = nnx.to_pure_dict(nnx.state(spec.build(nnx.Rngs(seed)), nnx.Param))
        flat = flatten(tree)
        return [flat[path] for path in paths]

    return dict(zip(paths, map(np.asarray, make())))
