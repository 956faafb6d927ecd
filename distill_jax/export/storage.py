"""How an export stores weights: dtype and maximum file size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_json, write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.weights import safe

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
SHARD_BYTES = 5_000_000_000
"""As ``transformers`` cuts the weights of a large model."""


def rounded(pretrained: Pretrained, dtype: str) -> Pretrained:
    """The model with the weights that a folder of ``dtype`` holds, in float32.

    Raises:
        UserError: a weight is too large for the dtype.
    """

    def of(leaf: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            found = np.asarray(leaf).astype(DTYPES[dtype]).astype(np.float32)
        if np.isinf(found).any():
            raise UserError(
                f"a weight is too large for {dtype}", "export in bfloat16 or float32"
            )
        return found

    return pretrained.replace(params=jax.tree.map(of, pretrained.params))


def store(folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Rewrites what a writer left in float32: every file of weights below ``folder``.

    A model's file above ``shard_bytes`` becomes several and an index, as transformers
    reads them; ``config.json`` says the dtype.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        if dtype == "float32" and path.stat().st_size <= shard_bytes:
            continue
        arrays: dict[str, np.ndarray] = {}
        for name, array in safe.Tensors([path]).items():
            arrays[name] = np.asarray(array).astype(DTYPES[dtype])
        parts = _parts(arrays, shard_bytes) if path.name == "model.safetensors" else []
        if len(parts) < 2:
            _save(path, arrays)
        else:
            path.unlink()
            _save_parts(path, parts)
        config = path.parent / "config.json"
        if "architectures" in (found := read_json(config) if config.is_file() else {}):
            write_json(config, {**found, "dtype": dtype})


def _parts(arrays: Mapping[str, np.ndarray], most: int) -> list[dict[str, np.ndarray]]:
    """The arrays in their order, cut where a file would grow beyond ``most`` bytes."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in arrays.items():
        if parts[-1] and size + array.nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    return parts


def _save_parts(path: Path, parts: list[dict[str, np.ndarray]]) -> None:
    names = [
        f"{path.stem}-{i:05d}-of-{len(parts):05d}.safetensors"
        for i in range(1, len(parts) + 1)
    ]
    for name, part in zip(names, parts):
        _save(path.with_name(name), part)
    total = sum(array.nbytes for part in parts for array in part.values())
    where = {tensor: name for name, part in zip(names, parts) for tensor in part}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(path.with_name(f"{path.name}.index.json"), index)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # transformers refuses files that do not say so.
    save_file(whole, str(path), metadata={"format": "pt"})
