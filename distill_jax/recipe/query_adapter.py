"""A linear layer on the query's vector, trained alone: neither tower changes.

The layer starts as the identity. Queries are encoded once, and their vectors are the
rows of a table that training looks up: an update costs one product with a D x D matrix,
so thousands of updates take seconds. It learns less than a tower can, and what it
learns holds better for other queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.batches import Targets
from distill_jax.collections.collection import Queries
from distill_jax.inference.forward import encode_all
from distill_jax.inputs.feed import targets_of
from distill_jax.models.dual_encoder import (
    DualEncoderSpec,
    without_identity,
    without_last,
)
from distill_jax.models.pretrained import Pretrained, flatten, unflatten
from distill_jax.recipe import query_side
from distill_jax.recipe.candidates import Context
from distill_jax.runs.run import Run
from distill_jax.weights.static import sizes_of

TRAINED = r"^tower\.projection\.kernel$"


def with_adapter(student: Pretrained) -> Pretrained:
    """The student as two towers with one more linear layer each, the identity.

    The document tower keeps it, so that both towers have one form. A student that has
    it already, of a round before, is given back as it is.

    Raises:
        UserError: the student is not a dual encoder.
    """
    tower = query_side.query_tower(student)  # refuses other kinds
    spec: DualEncoderSpec = student.spec
    docs = student.params["tower" if spec.tied else "doc_tower"]
    if not spec.tied and without_identity(spec, docs)[0] != spec:
        return student
    width = dataclasses.replace(spec, truncate_dim=None).width
    if spec.projection is None:
        spec = dataclasses.replace(spec, projection=width, tied=False)
        name = "projection.kernel"
    else:
        name = f"project.dense_{len(spec.more_projections)}.kernel"
        more = (*spec.more_projections, (width, False, "identity"))
        spec = dataclasses.replace(spec, more_projections=more, tied=False)
    layer = {name: np.eye(width, dtype=np.float32)}
    towers = {"query_tower": tower.params["tower"], "doc_tower": docs}
    params = {side: unflatten(flatten(given) | layer) for side, given in towers.items()}
    return student.replace(spec=spec, params=params, fresh=())


def spec_on_vectors(spec: DualEncoderSpec, queries: int) -> DualEncoderSpec:
    """The spec of ``on_vectors`` for a number of queries."""
    width = dataclasses.replace(spec, truncate_dim=None).width
    return dataclasses.replace(
        spec,
        tied=True,
        backbone=sizes_of(queries + 1, width),
        pooling="mean",
        projection=width,
        projection_bias=False,
        projection_activation="identity",
        more_projections=(),
    )


def on_vectors(student: Pretrained, context: Context, queries: Queries) -> Pretrained:
    """A dual encoder whose tokens are row numbers of queries, from 1; 0 pads.

    Its table are the query tower's vectors before the last layer, and its projection is
    that layer: its vector of a row is the student's vector of the query.

    Args:
        student: of ``with_adapter``.
    """
    tower = query_side.query_tower(student)
    below, params, layer = without_last(tower.spec, tower.params["tower"])
    plain = {"normalise": False, "similarity": "dot", "truncate_dim": None}
    encoder = tower.replace(
        spec=dataclasses.replace(below, **plain), params={"tower": params}
    )
    features = context.workspace.query_features(encoder, queries)
    rows = np.arange(len(queries))
    found = encode_all(encoder, "query", features, rows, mesh=context.workspace.mesh)
    table = np.concatenate([np.zeros_like(found[:1]), found])
    return tower.replace(
        spec=spec_on_vectors(tower.spec, len(queries)),
        params={
            "tower": {
                "encoder": {"embeddings": {"word": table}},
                "projection": {"kernel": np.asarray(layer["kernel"])},
            }
        },
    )


def joined(tables: Sequence[Pretrained]) -> tuple[Pretrained, list[int]]:
    """Students of ``on_vectors`` as one: the rows of each follow those before.

    Args:
        tables: of one student and the queries of several collections.

    Returns:
        The student of all rows, and what is added to the row numbers of each.
    """
    words = [each.params["tower"]["encoder"]["embeddings"]["word"] for each in tables]
    table = np.concatenate([words[0], *(rows[1:] for rows in words[1:])])
    first = tables[0]
    tower = first.params["tower"] | {"encoder": {"embeddings": {"word": table}}}
    spec = dataclasses.replace(first.spec, backbone=sizes_of(*table.shape))
    counts = [0, *(len(rows) - 1 for rows in words)]
    return (
        first.replace(spec=spec, params={"tower": tower}),
        np.cumsum(counts)[:-1].tolist(),
    )


def with_layer(student: Pretrained, params: dict) -> Pretrained:
    """The student with another last layer of its query tower.

    Args:
        student: of ``with_adapter``.
        params: of ``on_vectors(student, ...)``, trained.
    """
    more = len(student.spec.more_projections)
    name = f"project.dense_{more - 1}.kernel" if more else "projection.kernel"
    layer = {f"query_tower.{name}": params["tower"]["projection"]["kernel"]}
    return student.replace(params=unflatten(flatten(student.params) | layer))


@dataclasses.dataclass(frozen=True)
class RowFeaturizer:
    """The queries' side of a featurizer, for a student of ``on_vectors``.

    Attributes:
        offset: of the collection's rows in the table, see ``joined``.
    """

    offset: int = 0

    def queries(self, rows: dict[str, Any], mine: slice) -> tuple[Any, Targets]:
        """Row numbers from 1 [B, 1], and the targets; lists that pad have 0."""
        at = rows["query_rows"][mine, None].astype(np.int32)
        return np.where(at < 0, 0, at + 1 + self.offset), targets_of(rows, mine)


def searcher(
    student: Pretrained, context: Context, queries: Queries, vectors: Any, depth: int
) -> Callable[[dict], Run]:
    """From parameters of ``on_vectors`` to the exact search of frozen vectors.

    Args:
        student: of ``with_adapter``.
        queries: searched with; they are encoded once.
    """
    search = query_side.exact(student.spec, context, vectors)
    fixed = on_vectors(student, context, queries)
    tokens = np.arange(1, len(queries) + 1, dtype=np.int32)[:, None]
    table = fixed.params["tower"]["encoder"]

    @jax.jit
    def encode(kernel: Any) -> Any:
        tower = {"encoder": table, "projection": {"kernel": kernel}}
        model = fixed.replace(params={"tower": tower}).module()
        return model.encode_queries(jnp.asarray(tokens))

    def run(params: dict) -> Run:
        kernel = np.asarray(params["tower"]["projection"]["kernel"])
        return search.search(np.asarray(encode(kernel)), depth, query_ids=queries.ids)

    return run
