"""Folders written by hand, read by TensorFlow Datasets itself."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.io.tfrecord import masked_crcs, write_records
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.tfds import to_tfds

COLLECTION = Collection(["a", "b"], ["text a", "text \u00fc"], titles=["T", ""])
QUERIES = Queries(["q0", "q1", "q2"], ["zero", "one", "two"])
LABELS = TeacherLabels.from_lists(
    ["q0", "q1", "q2"],
    [[("a", 1.5), ("b", -2.25)], [("b", 1.0)], [("a", 3.0)]],
    collection=COLLECTION,
    failed=[False, True, False],
)


def test_crc32c_known_answers():
    # RFC 3720, B.4, then TFRecord's rotation and constant.
    def mask(crc):
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    payloads = [b"123456789", b"", bytes(32), b"\xff" * 32, bytes(range(32))]
    sums = [0xE3069283, 0, 0x8A9136AA, 0x62A8AB43, 0x46DD794E]
    assert masked_crcs(payloads).tolist() == [mask(crc) for crc in sums]


def test_records_are_framed_as_tensorflow_frames_them(tmp_path):
    """Length, its checksum, payload, its checksum; read by their description."""
    path = tmp_path / "x"
    payloads = [bytes([i % 256]) * (i * 7 % 90) for i in range(1100)]
    with open(path, "wb") as file:
        assert write_records(file, iter(payloads)) == [len(p) for p in payloads]
    data, place, found, sums = path.read_bytes(), 0, [], []
    while place < len(data):
        length, of_length = struct.unpack_from("<QI", data, place)
        place += 12
        found.append(data[place : place + length])
        (of_payload,) = struct.unpack_from("<I", data, place + length)
        sums.append((of_length, of_payload))
        place += length + 4
    assert found == payloads
    heads = [struct.pack("<Q", len(payload)) for payload in payloads]
    assert [a for a, _ in sums] == masked_crcs(heads).tolist()
    assert [b for _, b in sums] == masked_crcs(payloads).tolist()


def test_names_that_tfds_refuses(tmp_path):
    with pytest.raises(UserError, match="My-Labels"):
        to_tfds(LABELS, tmp_path, name="My-Labels")


@pytest.mark.slow
def test_tfds_and_seqio_read_it(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    seqio = pytest.importorskip("seqio")
    folder = to_tfds(LABELS, tmp_path, queries=QUERIES, collection=COLLECTION, shards=2)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.splits["train"].num_examples == 2
    found = list(tfds.as_numpy(builder.as_dataset(split="train")))
    by_id = {e["query_id"].decode(): e for e in found}
    assert set(by_id) == {"q0", "q2"}
    first = by_id["q0"]
    assert first["query"].decode() == "zero"
    assert [d.decode() for d in first["doc_ids"]] == ["a", "b"]
    assert [d.decode() for d in first["docs"]] == ["T text a", "text \u00fc"]
    np.testing.assert_array_equal(first["labels"], np.float32([1.5, -2.25]))
    source = seqio.TfdsDataSource("teacher_labels:1.0.0", tfds_data_dir=str(tmp_path))
    rows = list(source.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert [row["query_id"].decode() for row in rows] == ["q0", "q2"]
