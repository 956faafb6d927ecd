"""A model as a recipe names it: its place, and how it is read.

A plain string means a ``Checkpoint`` of that path. What a published folder does
not say of itself (that a RankT5 answers by ``<extra_id_10>``, that an E5 wants
"query: " before a query) is in ``published.json``; a recipe's own fields come first.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal, TypeAlias

from distill_jax.io import values
from distill_jax.io.errors import UserError, near
from distill_jax.io.values import Check, ModelName, Name, Size
from distill_jax.models.encoder_sizes import check_choice
from distill_jax.models.linear import DTYPES
from distill_jax.weights.students import KINDS, spec_fields


def known_kind(kind: str) -> str:
    """A kind of student as it was given.

    Raises:
        UserError: there is none of that name.
    """
    if kind not in KINDS:
        raise UserError(
            f"no student kind {kind!r}{near(kind, KINDS)}",
            f"one of {', '.join(KINDS)}",
        )
    return kind


def known_dtype(dtype: str) -> str | None:
    """A dtype of inference as it was given; None for "auto"."""
    if dtype != "auto":
        check_choice("dtype", dtype, DTYPES)
    return None if dtype == "auto" else dtype


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of a student's spec, as they were given or as their types.

    Raises:
        UserError: a name that no kind of student has, or a value that is none for it.
    """
    known = spec_fields()
    for name in options:
        if name not in known:
            raise UserError(
                f"{name!r} is not a field of a student{near(str(name), known)}",
                f"one of {', '.join(sorted(known))}",
            )
    return {name: _option(name, v, known[name]) for name, v in options.items()}


def _option(name: str, value: Any, kinds: list[Any]) -> Any:
    needed = []
    for kind in kinds:
        try:
            found = values.read(value, kind)
        except values.Mismatch as error:
            needed.append(str(error))
            continue
        least = 1 if name in _COUNTED else 0
        if type(found) is int and found < least:
            needed.append(f"a number from {least}")
            continue
        return found
    wanted = " or ".join(dict.fromkeys(needed))
    raise UserError(f"{name} is {values.shown(value)}: needed is {wanted}", "change it")


_COUNTED = (
    "query_length", "doc_length", "length", "dim", "projection", "truncate_dim",
    "passages", "layers", "encoder_layers", "decoder_layers",
)  # fmt: skip
Options: TypeAlias = Annotated[dict[str, Any], Check(known_options)]
Kind: TypeAlias = Annotated[str, Check(known_kind)]
Dtype: TypeAlias = Annotated[str, Check(known_dtype)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model and how it is read; accepted wherever a recipe names a model.

    Attributes:
        path: what ``distill_jax.load`` takes, ``fresh:KIND:BACKBONE``, and in stages
            of a job ``initial`` or ``stage:NAME``; another ``Checkpoint``, whose fields
            these come before. None names no model.
        query_path: the query encoder where queries have one of their own (DRAGON, DPR);
            ``path`` is the documents' then.
        kind: which student to make of it; None keeps what the folder says.
        head: how a reranker's score is read, see ``RerankerSpec``.
        prompt: the template of a reranker: a name or a text.
        query_length, doc_length: tokens kept.
        passages: windows of a long document that are scored at most; the best counts.
        pooling, normalise, similarity: of a dual encoder.
        query_prefix, doc_prefix: texts put before each query and document.
        dtype: of the matrix products: "float32", "bfloat16" or, where nothing is
            trained, "int8"; None ("auto" in a recipe) is what the folder has.
        options: other fields of the spec.
    """

    path: ModelName | Checkpoint | None = None
    query_path: ModelName | None = None
    kind: Kind | None = None
    head: Name | None = None
    prompt: Name | None = None
    query_length: Size | None = None
    doc_length: Size | None = None
    passages: Size | None = None
    pooling: Name | None = None
    normalise: bool | None = None
    similarity: Literal["dot", "cosine"] | None = None
    query_prefix: str | None = None
    doc_prefix: str | None = None
    dtype: Dtype | None = None
    options: Options = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)

    def __bool__(self) -> bool:
        """Whether it names a model."""
        return bool(self.path)

    @property
    def fields(self) -> dict[str, Any]:
        """The kind and the fields of the spec that are given."""
        apart = ("path", "query_path", "options")
        names = [f.name for f in dataclasses.fields(self) if f.name not in apart]
        given = {name: getattr(self, name) for name in names}
        return {k: v for k, v in (given | self.options).items() if v is not None}


Model: TypeAlias = ModelName | Checkpoint


def named(model: Any, **fields: Any) -> Checkpoint:
    """The checkpoint that a string or a ``Checkpoint`` names.

    Args:
        fields: come before its own; None counts as not given.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    found = model if isinstance(model, Checkpoint) else Checkpoint(path=model)
    while isinstance(found.path, Checkpoint):
        inner = found.path
        found = Checkpoint(
            path=inner.path,
            query_path=found.query_path or inner.query_path,
            options=inner.fields | found.fields,
        )
    if fields:
        found = dataclasses.replace(
            Checkpoint(path=found.path, query_path=found.query_path),
            options=found.fields | fields,
        )
    return found


def each(models: Any, reading: Checkpoint | None = None) -> tuple[Checkpoint, ...]:
    """The checkpoints of a tuple, without those that name none.

    Args:
        reading: fields that all of them are read with; its paths do not count.
    """
    fields = {} if reading is None else reading.fields
    towers = None if reading is None else reading.query_path
    found = [named(model, **fields) for model in models if model]
    if towers is not None:
        found = [dataclasses.replace(each, query_path=towers) for each in found]
    return tuple(found)


def path_of(model: Any) -> str | None:
    """The path of a model that is named by a string or a ``Checkpoint``."""
    path = named(model).path
    return None if path is None else str(path)


@functools.cache
def published() -> tuple[dict[str, Any], ...]:
    """What is known of published models, by patterns of their names on the hub."""
    import json

    text = (
        resources.files("distill_jax.recipe")
        .joinpath("published.json")
        .read_text("utf-8")
    )
    return tuple(json.loads(text))


def of_hub(path: Any) -> dict[str, Any]:
    """The fields of a spec that a published folder needs and does not say of itself."""
    name = str(path)
    if not name.startswith("hf:"):
        return {}
    name = name.removeprefix("hf:").partition("@")[0]
    for record in published():
        if re.fullmatch(record["name"], name, re.IGNORECASE):
            return dict(record["fields"])
    return {}


def completed(checkpoint: Checkpoint, *, trained: bool = False) -> dict[str, Any]:
    """All fields that a checkpoint is read with.

    Args:
        trained: it is about to be trained: another head than it was published with is
            then no mistake.

    Raises:
        UserError: a published reranker is to be read by a head that it was not trained
            with.
    """
    given = checkpoint.fields
    known = of_hub(checkpoint.path)
    kind = given.get("kind")
    if kind not in (None, known.get("kind", kind)):
        return given  # converted into another student, for which nothing is known
    head, wanted = given.get("head"), known.get("head")
    if head is not None and wanted is not None and head != wanted and not trained:
        raise UserError(
            f"{checkpoint.path} was trained with head {wanted!r}, not {head!r}",
            "leave head (TEACHER_OPTIONS, HEAD) out, or name a model that has it",
        )
    return known | given


def load(checkpoint: Checkpoint, *, seed: int = 0, trained: bool = False) -> Any:
    """The model, loaded; of two paths both encoders as one dual encoder.

    Raises:
        UserError: as ``weights.load``; two towers that do not fit together.
    """
    from distill_jax import weights

    fields: Mapping[str, Any] = completed(checkpoint, trained=trained)
    if checkpoint.query_path is None:
        return weights.load(str(checkpoint.path), seed=seed, **fields)
    from distill_jax.weights.sentence_folders import joined

    towers = [
        weights.load(str(path), seed=seed, **fields)
        for path in (checkpoint.query_path, checkpoint.path)
    ]
    return joined(towers).replace(source=str(checkpoint.path))
