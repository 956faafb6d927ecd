"""Weights from a stranger in T5X's format are refused, or arrays of numbers."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.weights.t5x import read_t5x


def packed(array: np.ndarray) -> msgpack.ExtType:
    parts = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(parts, use_bin_type=True))


def checkpoint(**more) -> bytes:
    values = np.arange(6, dtype=np.float32)
    tree = {
        "version": 3,
        "target": {
            "small": {"scale": packed(values)},
            "chunked": {
                "__msgpack_chunked_array__": True,
                "shape": {"0": 2, "1": 3},
                "chunks": {"0": packed(values[:3]), "1": packed(values[3:])},
            },
            **more,
        },
    }
    return msgpack.packb(tree, use_bin_type=True)


def test_a_sound_one_is_read(tmp_path):
    (tmp_path / "checkpoint").write_bytes(checkpoint())
    found = read_t5x(tmp_path)
    np.testing.assert_array_equal(found["small.scale"], np.arange(6))
    np.testing.assert_array_equal(found["chunked"], np.arange(6).reshape(2, 3))


def test_no_bytes_crash_the_reader(tmp_path):
    """Flipped, cut and doubled bytes: two lines, or numbers."""
    sound = checkpoint()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(sound)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            data[place] = random.integers(0, 256)
        if random.random() < 0.3:
            data = data[: random.integers(0, len(data))]
        (tmp_path / "checkpoint").write_bytes(bytes(data))
        try:
            found = read_t5x(tmp_path)
        except UserError:
            refused += 1
        else:
            assert all(array.dtype == np.float32 for array in found.values())
    assert refused > 300


@pytest.mark.parametrize(
    "leaf",
    [
        msgpack.ExtType(1, msgpack.packb(([2**40], "float32", b""))),
        msgpack.ExtType(1, msgpack.packb(([1], "O", b"\0" * 8))),
        msgpack.ExtType(1, msgpack.packb(([1], "no type", b"\0" * 8))),
        msgpack.ExtType(1, b"\xc1"),
        {"__msgpack_chunked_array__": True},
        {"driver": "zarr", "kvstore": 7},
        {"driver": "zarr", "kvstore": {"path": "../../../etc"}},
        "a text",
    ],
)
def test_what_is_no_array_is_refused(tmp_path, leaf):
    (tmp_path / "checkpoint").write_bytes(checkpoint(evil=leaf))
    with pytest.raises(UserError) as caught:
        read_t5x(tmp_path)
    assert len(str(caught.value).splitlines()) <= 2


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"\x81\xa1a" * 100_000 + b"\x01")
    with pytest.raises(UserError):
        read_t5x(tmp_path)


def test_an_array_that_claims_more_than_it_holds_is_not_allocated(tmp_path):
    """A terabyte of fill values, in two hundred bytes."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / ".zarray").write_text(
        json.dumps(
            {
                "zarr_format": 2,
                "shape": [2**38],
                "chunks": [2**20],
                "dtype": "<f4",
                "compressor": None,
                "fill_value": 0,
                "filters": None,
                "order": "C",
            }
        )
    )
    leaf = {"driver": "zarr", "kvstore": {"driver": "file", "path": "evil"}}
    (tmp_path / "checkpoint").write_bytes(checkpoint(evil=leaf))
    with pytest.raises(UserError, match="claims 1,099,511,627,776 bytes, and holds"):
        read_t5x(tmp_path)
