"""Weights from strangers: nothing is believed, executed or read elsewhere."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from distill_jax.io.errors import UserError
from distill_jax.weights.safe import Tensors, confined, open_folder, read_header


def written(path, header: dict, data: bytes = b"") -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_reads_what_safetensors_writes(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4).astype(ml_dtypes.bfloat16),
        "c": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
    }
    save_file(arrays, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    tensors = open_folder(tmp_path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


LIES = {
    "more bytes than the file": {"a": entry([4], 0, 16)},
    "a shape of other bytes": {"a": entry([3], 0, 8)},
    "a huge shape": {"a": entry([2**40, 2**40], 0, 8)},
    "a negative offset": {"a": entry([2], -8, 0)},
    "an end before its start": {"a": entry([2], 8, 0)},
    "overlapping tensors": {"a": entry([2], 0, 8), "b": entry([1], 4, 8)},
    "an unknown dtype": {"a": entry([2], 0, 8, "PICKLE")},
    "an object for a shape": {"a": entry({"x": 1}, 0, 8)},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "a true for a size": {"a": entry([True, 2], 0, 8)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(lie, tmp_path):
    path = tmp_path / "model.safetensors"
    written(path, LIES[lie], b"\0" * 8)
    with pytest.raises(UserError, match="not a sound safetensors"):
        read_header(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (90_000).to_bytes(8, "little") + b"[" * 90_000,
    ],
)
def test_a_cut_or_bombed_header_is_refused(data, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_header(path)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(data)
    told = str(path)
    try:
        found = read_header(path)
    except UserError as error:
        found, told = {}, error.what
    assert str(path) in told
    size = path.stat().st_size
    for start, dtype, shape in found.values():  # each within the file
        assert start + dtype.itemsize * math.prod(shape) <= size


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "..", 7])
def test_an_index_names_files_of_its_folder_only(name, tmp_path):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"out of the folder|not a shard index"):
        open_folder(tmp_path)


def test_shards_are_read_and_missing_ones_named(tmp_path):
    first, second = {"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}
    save_file(first, str(tmp_path / "one.safetensors"))
    save_file(second, str(tmp_path / "two.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    np.testing.assert_array_equal(open_folder(tmp_path)["b"], second["b"])
    index.write_text(json.dumps({"weight_map": {**names, "c": "two.safetensors"}}))
    with pytest.raises(UserError, match="'c'"):
        open_folder(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        open_folder(tmp_path)


def test_one_name_in_two_shards_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"a": np.ones(2, np.float32)}, str(tmp_path / name))
    with pytest.raises(UserError, match="also in one"):
        Tensors([tmp_path / "one", tmp_path / "two"])


def test_links_stay_inside_the_folder_or_the_hubs_cache(tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(b"")
    folder = tmp_path / "models--a--b" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(UserError, match="leads out"):
        confined(folder, "model.safetensors")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "123").write_bytes(b"")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/123")
    assert confined(folder, "model.safetensors").exists()
