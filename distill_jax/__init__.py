"""Train rerankers and retrievers by knowledge distillation, in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazily: `import distill_jax` loads neither jax nor a tokenizer.
    if name == "load":
        return importlib.import_module("distill_jax.predictor").load
    raise AttributeError(f"module 'distill_jax' has no attribute {name!r}")
