"""Reading weights from strangers, checked before it is believed.

A safetensors file is eight bytes of header length, a JSON header that gives each
tensor's dtype, shape and byte range, and the bytes. Nothing in it is executed, and
everything the header claims is compared with the file before anything is allocated.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.weights.pickles import PickledTensors

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_HEADER_LIMIT = 100 * 2**20


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files, memory-mapped, by name.

    Args:
        files: paths of safetensors files.

    Raises:
        UserError: a header that does not describe its file, or a name given twice.
    """

    def __init__(self, files: list[Path]):
        self.files = tuple(files)
        self._where: dict[str, tuple[Path, int, np.dtype, tuple[int, ...]]] = {}
        for path in files:
            for name, (start, dtype, shape) in read_header(path).items():
                if name in self._where:
                    raise UserError(
                        f"{path}: {name!r} is also in {self._where[name][0].name}",
                        "the shards of one model must not overlap; download it again",
                    )
                self._where[name] = (path, start, dtype, shape)

    def __getitem__(self, name: str) -> np.ndarray:
        path, start, dtype, shape = self._where[name]
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, mode="r", offset=start, shape=shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name][3]


def read_header(path: str | Path) -> dict[str, tuple[int, np.dtype, tuple[int, ...]]]:
    """Name -> (byte offset in the file, dtype, shape), every claim checked.

    Raises:
        UserError: the file is cut, or its header lies about sizes or ranges.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        entries = {
            name: _entry(name, record, 8 + length, size)
            for name, record in header.items()
            if name != "__metadata__"
        }
        _refuse_overlaps(entries)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "download the model again") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a sound safetensors file: {error}", "download it again"
        ) from error
    return {name: entry[:3] for name, entry in entries.items()}


def _entry(name: str, record: dict, base: int, size: int):
    dtype = _DTYPES.get(record["dtype"])
    if dtype is None:
        raise ValueError(f"{name!r} has dtype {record['dtype']!r}")
    shape = tuple(record["shape"])
    start, end = record["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name!r} has shape {shape}, offsets {start}:{end}")
    if math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{name!r} has shape {shape} but {end - start} bytes")
    if base + end > size:
        raise ValueError(f"{name!r} ends at byte {base + end} of {size}")
    return base + start, dtype, shape, base + end


def _refuse_overlaps(entries: dict) -> None:
    spans = sorted((e[0], e[3], name) for name, e in entries.items() if e[3] > e[0])
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise ValueError(f"{first!r} and {second!r} overlap")


def open_folder(folder: str | Path, stem: str = "model") -> Mapping[str, np.ndarray]:
    """The weights of a folder: safetensors first, else PyTorch's ``.bin``.

    Either is one file, or shards by an index. A ``.bin`` is read by ``pickles``, which
    executes nothing.

    Raises:
        UserError: neither is there, a shard is missing, or the index names a file
            outside of the folder.
    """
    folder = Path(folder)
    forms: tuple[tuple[str, str, Any], ...] = (
        (stem, ".safetensors", Tensors),
        ("pytorch_model", ".bin", PickledTensors),
    )
    for name, end, opened in forms:
        single, index = folder / f"{name}{end}", folder / f"{name}{end}.index.json"
        if single.exists():
            return opened([confined(folder, single.name)])
        if index.exists():
            return _sharded(folder, index, opened)
    # Shards without their index: their names show whether all are present.
    shards = sorted(folder.glob("pytorch_model-*-of-*.bin"))
    if shards:
        count = shards[0].stem.rsplit("-", 1)[-1]
        if not count.isdigit() or int(count) != len(shards):
            raise UserError(
                f"{folder}: {len(shards)} of the shards pytorch_model-*-of-{count}.bin",
                "download the model again",
            )
        return PickledTensors([confined(folder, path.name) for path in shards])
    raise UserError(
        f"{folder}: no {stem}.safetensors and no pytorch_model.bin{_others(folder)}",
        "give a folder that holds a whole model",
    )


def _sharded(folder: Path, index: Path, opened: Any) -> Mapping[str, np.ndarray]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a shard index: {error}") from error
    tensors = opened([confined(folder, name) for name in names])
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise UserError(
            f"{index} names {len(lost)} tensors that no shard has, e.g. {lost[0]!r}",
            "download the model again",
        )
    return tensors


def _others(folder: Path) -> str:
    """Weights of forms that are not read, for the message."""
    ends = (".msgpack", ".h5", ".ot", ".onnx", ".gguf", ".pt", ".pth", ".ckpt")
    found = sorted(p.name for p in folder.iterdir() if p.name.endswith(ends))
    return f" (of {', '.join(found[:3])} none is read)" if found else ""


def confined(folder: Path, name: str) -> Path:
    """``folder/name``, if that is a file of this folder and of nowhere else.

    A link may lead to the blobs of the same download (the hub's cache is made so).
    """
    plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
    if not plain or name == "..":
        raise UserError(
            f"{folder}: the name {str(name)[:80]!r} leads out of the folder",
            "a model names files beside it; do not trust this one",
        )
    path = folder / name
    if not path.is_symlink():
        return path
    real, home = path.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(
            f"{path} is a link that leads out of the folder, to {real}",
            "copy the file itself into the folder",
        )
    return path
