"""Specs: frozen dataclasses that say how a model is built, to JSON and back.

Each model module declares its specs with ``@spec``; the name of the class is the tag.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

_MODULES = {
    "T5Sizes": "t5",
    "BertSizes": "encoder_sizes",
    "RerankerSpec": "reranker",
    "DuoSpec": "duo",
    "DualEncoderSpec": "dual_encoder",
    "ColbertSpec": "colbert",
    "SpladeSpec": "splade",
    "GeneratorSpec": "generator",
    "CausalSpec": "causal",
}


def to_json(spec: Any) -> dict:
    """A spec as JSON-able values, nested specs tagged by their class names."""
    values = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if dataclasses.is_dataclass(value):
            value = to_json(value)
        elif isinstance(value, tuple):
            value = list(value)
        values[field.name] = value
    return {"spec": type(spec).__name__, **values}


def from_json(record: dict) -> Any:
    """The spec that ``to_json`` wrote. Lists come back as tuples."""
    record = dict(record)
    name = record.pop("spec")
    module = importlib.import_module(f"distill_jax.models.{_MODULES[name]}")
    cls = getattr(module, name)
    for key, value in record.items():
        if isinstance(value, dict) and "spec" in value:
            record[key] = from_json(value)
        elif isinstance(value, list):
            record[key] = tuple(value)
    return cls(**record)
