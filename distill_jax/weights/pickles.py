"""PyTorch's ``.bin`` files, read without PyTorch and without executing anything.

A file of ``torch.save`` is a pickle of names and tensor descriptions beside raw bytes:
a zip archive since PyTorch 1.6, one stream before. A pickle may name any function to be
called; this reader accepts the few that describe tensors, and refuses all others.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from distill_jax.io.errors import UserError

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE_LIMIT = 256 * 2**20
# Errors of a damaged pickle, besides those of pickle and zipfile.
_MALFORMED = (
    pickle.UnpicklingError, zipfile.BadZipFile, ValueError, TypeError, LookupError,
    AttributeError, EOFError, ArithmeticError, RecursionError, MemoryError,
    NotImplementedError,
)  # fmt: skip


class PickledTensors(Mapping[str, np.ndarray]):
    """The tensors of one or several ``pytorch_model.bin`` files, memory-mapped.

    Raises:
        UserError: a file that is none of these, that asks for other code than a
            tensor's, that is damaged, or a name given twice.
    """

    def __init__(self, files: list[Path]):
        self.files = tuple(files)
        self._tensors: dict[str, np.ndarray] = {}
        for path in files:
            for name, tensor in read_pickle(path).items():
                if name in self._tensors:
                    raise UserError(
                        f"{path}: {name!r} is also in another shard",
                        "the shards of one model must not overlap; download it again",
                    )
                self._tensors[name] = tensor

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array of one file.

    Raises:
        UserError: see ``PickledTensors``.
    """
    path = Path(path)
    try:
        reader = _read_zip if zipfile.is_zipfile(path) else _read_stream
        found = reader(path)
        # A training checkpoint keeps its weights one floor down.
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict):
            raise ValueError("it holds no table of weights")
        kept = {k: v for k, v in found.items() if isinstance(v, np.ndarray)}
        if not kept or not all(isinstance(name, str) for name in kept):
            raise ValueError("it holds no table of weights")
        return kept
    except _ForeignCode as error:
        raise UserError(
            f"{path} asks for {error} when it is read; nothing was executed",
            "only tables of tensors are read; do not trust this file",
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except _MALFORMED as error:
        raise UserError(
            f"{path}: not a sound file of torch.save: {error}", "download it again"
        ) from error


class _ForeignCode(Exception):
    """A pickle names something that is not part of a tensor."""


class _Unpickler(pickle.Unpickler):
    """Accepts storages, the rebuild functions of tensors, and ordered dictionaries."""

    def __init__(self, file: Any, storage: Callable[..., np.ndarray] | None = None):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        raise _ForeignCode(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        kind, storage, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(storage, _Kind) or self.storage is None:
            raise ValueError(f"an unknown kind of reference {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a view of a storage")
        return self.storage(str(key), storage.dtype, _whole(count))


class _Kind:
    """Stands for a storage class of torch and its dtype; cannot be called."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**48:
        raise ValueError(f"{number!r} is no size")
    return number


def _tensor(storage, offset, size, stride, *unused) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a strided view of a storage."""
    shape = tuple(_whole(n) for n in size)
    steps = tuple(_whole(n) for n in stride)
    start = _whole(offset)
    if len(shape) != len(steps) or not isinstance(storage, np.ndarray):
        raise ValueError("a tensor without a storage")
    last = start + sum((n - 1) * step for n, step in zip(shape, steps))
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    if last >= len(storage) or math.prod(shape) > len(storage):
        raise ValueError(f"a tensor of shape {shape} in a storage of {len(storage)}")
    width = storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[start:], shape, [step * width for step in steps], writeable=False
    )


def _parameter(data: Any, *unused: Any) -> np.ndarray:
    """torch._utils._rebuild_parameter: the tensor itself."""
    if not isinstance(data, np.ndarray):
        raise ValueError("a parameter without a tensor")
    return data


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (main,) = (name for name in entries if name.endswith("/data.pkl"))
        root = main.removesuffix("data.pkl")
        order = entries.get(root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine")
        if entries[main].file_size > _PICKLE_LIMIT:
            raise ValueError("its table of names is larger than any model's")
        seen: dict[str, np.ndarray] = {}

        def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            if key not in seen:
                entry = entries[f"{root}data/{key}"]
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("its tensors are compressed")
                if entry.file_size < count * dtype.itemsize:
                    raise ValueError(f"{entry.filename} is cut")
                file.seek(entry.header_offset)
                header = file.read(30)
                names = int.from_bytes(header[26:28], "little")
                extra = int.from_bytes(header[28:30], "little")
                begin = entry.header_offset + 30 + names + extra
                seen[key] = _mapped(path, dtype, begin, count)
            return seen[key].view(dtype)

        return _Unpickler(io.BytesIO(archive.read(main)), storage).load()


def _mapped(path: Path, dtype: np.dtype, begin: int, count: int) -> np.ndarray:
    if not count:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=begin, shape=(count,))


def _read_stream(path: Path) -> Any:
    """The format before PyTorch 1.6: pickles, then each storage after its count.

    The pickle comes before the bytes it refers to: it is read twice, first for the
    storages' types, then, the places being known, for the tensors.
    """
    with path.open("rb") as file:
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("no mark of torch.save at its beginning")
        if _Unpickler(file).load() != 1001:
            raise ValueError("another version of the format")
        if _Unpickler(file).load().get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        begin = file.tell()
        types: dict[str, tuple[np.dtype, int]] = {}

        def noted(key: str, dtype: np.dtype, count: int) -> np.ndarray:
            types[key] = dtype, count
            return np.broadcast_to(np.zeros((), dtype), (count,))

        _Unpickler(file, noted).load()
        keys = [str(key) for key in _Unpickler(file).load()]
        places: dict[str, np.ndarray] = {}
        for key in keys:
            dtype, count = types[key]
            if int.from_bytes(file.read(8), "little") != count:
                raise ValueError(f"the storage {key} has another size than its tensor")
            start = file.tell()
            if start + count * dtype.itemsize > path.stat().st_size:
                raise ValueError(f"the storage {key} is cut")
            places[key] = _mapped(path, dtype, start, count)
            file.seek(count * dtype.itemsize, 1)
        file.seek(begin)
        return _Unpickler(file, lambda key, dtype, count: places[key]).load()
