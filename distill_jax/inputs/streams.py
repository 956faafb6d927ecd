"""Endless streams of list numbers, seekable: which lists make batch number s.

Two streams with one promise: ``rows(start)`` yields, from example ``start`` on, what an
uninterrupted stream would. Every host reads the whole stream (it is row numbers, not
text) and takes its share of each batch, so the batches depend neither on the number of
hosts nor on the number of devices.

* ``seqio_stream``: a SeqIO task over TFRecord files; shuffling and seeding are SeqIO's.
  Needs TensorFlow, which nothing outside this folder imports.
* ``array_stream``: a permutation per epoch from a counter-based generator. Seeks in
  O(1), needs nothing but numpy: for machines without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import read_json, write_json
from distill_jax.io.quiet import quiet_stderr
from distill_jax.lists.lists import FIELDS, Lists

Example = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayStream:
    """Lists in the order of a seeded permutation per epoch."""

    shuffle: bool = True

    def rows(
        self, lists: Lists, directory: Path, seed: int, start: int
    ) -> Iterator[Example]:
        del directory
        count = len(lists)
        position = start
        while True:
            epoch, offset = divmod(position, count)
            order = np.arange(count)
            if self.shuffle:
                key = np.asarray([seed & (2**64 - 1), epoch], np.uint64)
                np.random.Generator(np.random.Philox(key=key)).shuffle(order)
            for row in order[offset:]:
                yield {name: getattr(lists, name)[row] for name in FIELDS}
            position = (epoch + 1) * count


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqioStream:
    """Lists through a SeqIO task over TFRecord files."""

    shuffle: bool = True
    shuffle_buffer_size: int = 100_000

    def rows(
        self, lists: Lists, directory: Path, seed: int, start: int
    ) -> Iterator[Example]:
        path = write_records(lists, directory)
        task = register_task(lists, path)
        epoch, offset = divmod(start, len(lists))
        while True:
            dataset = task.get_dataset(
                sequence_length=None,
                split="train",
                shuffle=self.shuffle,
                shuffle_buffer_size=min(self.shuffle_buffer_size, len(lists)),
                # An epoch has its own seed, so a resumed run opens the epoch it
                # stopped in and skips within it, not from the beginning of time.
                seed=(seed * 1_000_003 + epoch) % (2**31 - 1),
                num_epochs=1,
                trim_output_features=False,
                try_in_mem_cache=False,
            )
            if offset:
                dataset = dataset.skip(offset)
            for example in dataset.as_numpy_iterator():
                yield {
                    "query_rows": example["query_row"][0],
                    "doc_rows": example["doc_rows"],
                    "labels": example["labels"],
                    "labelled": example["labelled"][0].astype(bool),
                    "first": example["first"],
                    "second": example["second"],
                    "probability": example["probability"],
                }
            epoch, offset = epoch + 1, 0


def _tensorflow():
    """SeqIO and TensorFlow, told to leave the accelerators alone."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        # It complains, from C++ and before it reads its settings, of a missing GPU.
        with quiet_stderr():
            import seqio
            import tensorflow as tf

            tf.config.set_visible_devices([], "GPU")
    except ImportError as error:
        raise UserError(
            f"SeqIO is not installed ({error.name} is missing)",
            "pip install 'distill_jax[seqio]', or run with --gin.STREAM=arrays",
        ) from None
    return seqio, tf


def write_records(lists: Lists, directory: Path) -> Path:
    """The lists as one TFRecord file, named by their digest, written aside.

    A file that is there is read through first: one that was cut between two records
    would pass for a shorter epoch.
    """
    _, tf = _tensorflow()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"lists-{lists.digest}.tfrecord"
    record = path.with_suffix(".json")
    if path.exists() and record.exists():
        if read_json(record).get("sha256") == _sha256(path):
            return path
        _log.warning("%s is damaged: it is written again", path)
    aside = directory / f".{path.name}.{os.getpid()}.part"
    with tf.io.TFRecordWriter(str(aside)) as writer:
        for row in range(len(lists)):
            writer.write(_example(tf, lists, row))
    write_json(record, {"lists": len(lists), "sha256": _sha256(aside)})
    aside.replace(path)
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _example(tf, lists: Lists, row: int) -> bytes:
    def ints(values):
        values = np.atleast_1d(values).astype(int).tolist()
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def floats(values):
        values = np.atleast_1d(values).tolist()
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    feature = {
        "query_row": ints(lists.query_rows[row]),
        "doc_rows": ints(lists.doc_rows[row]),
        "labels": floats(lists.labels[row]),
        "labelled": ints(lists.labelled[row]),
        "first": ints(lists.first[row]),
        "second": ints(lists.second[row]),
        "probability": floats(lists.probability[row]),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def register_task(lists: Lists, path: Path):
    """The SeqIO task of one file of lists; registered once under its digest."""
    seqio, tf = _tensorflow()
    name = f"distill_jax_lists_{lists.digest}"
    size, pairs = lists.doc_rows.shape[1], lists.first.shape[1]
    shapes = {
        "query_row": (1, tf.int64),
        "doc_rows": (size, tf.int64),
        "labels": (size, tf.float32),
        "labelled": (1, tf.int64),
        "first": (pairs, tf.int64),
        "second": (pairs, tf.int64),
        "probability": (pairs, tf.float32),
    }
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TFExampleDataSource(
            {"train": str(path)},
            feature_description={
                key: tf.io.FixedLenFeature([width], dtype)
                for key, (width, dtype) in shapes.items()
            },
            num_input_examples={"train": len(lists)},
        ),
        preprocessors=[],
        output_features={
            key: seqio.Feature(
                seqio.PassThroughVocabulary(1), add_eos=False, dtype=dtype, rank=1
            )
            for key, (_, dtype) in shapes.items()
        },
    )
