"""Types of names that jobs take, each checked by the package that defines it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from distill_jax.collections import schemes
from distill_jax.evaluation.measures import measure_name
from distill_jax.io.values import Check

CollectionName: TypeAlias = Annotated[str, Check(schemes.name)]
Measure: TypeAlias = Annotated[str, Check(measure_name)]
Measures: TypeAlias = tuple[Measure, ...]
