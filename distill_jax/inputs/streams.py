"""Endless streams of list numbers, seekable: which lists make batch number s.

Two streams with one promise: ``rows(start)`` yields, from example ``start`` on, what an
uninterrupted stream would. Every host reads the whole stream (it is row numbers, not
text) and takes its share of each batch, so the batches depend neither on the number of
hosts nor on the number of devices.

* ``ArrayStream``: a permutation per epoch from a counter-based generator. Seeks in
  O(1) and needs nothing but numpy: the default.
* ``SeqioStream``: SeqIO tasks and mixtures, for those who mix label sets with rates or
  have tasks of their own. It loads TensorFlow, which nothing outside this folder does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from distill_jax.io import tfrecord
from distill_jax.io.errors import UserError, near
from distill_jax.io.quiet import quiet_stderr
from distill_jax.io.reading import read_json, write_json
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
    """Lists through SeqIO: the job's own as a task, or a task or mixture by name.

    Attributes:
        name: a registered task or mixture (see ``register_task``); None is the job's
            own lists. A named one repeats itself, each task at its rate.
    """

    shuffle: bool = True
    shuffle_buffer_size: int = 100_000
    name: str | None = None

    def rows(
        self, lists: Lists, directory: Path, seed: int, start: int
    ) -> Iterator[Example]:
        if self.name is not None:
            yield from self._registered(self.name, lists, seed, start)
            return
        task = register_task(lists, directory)
        epoch, offset = divmod(start, len(lists))
        while True:
            dataset = task.get_dataset(
                sequence_length=None,
                split="train",
                shuffle=self.shuffle,
                shuffle_buffer_size=min(self.shuffle_buffer_size, len(lists)),
                # An epoch has its own seed, so a resumed run opens the epoch it
                # stopped in and skips within it, not from the first epoch on.
                seed=(seed * 1_000_003 + epoch) % (2**31 - 1),
                num_epochs=1,
                trim_output_features=False,
                try_in_mem_cache=False,
            )
            if offset:
                dataset = dataset.skip(offset)
            yield from map(_list_of, dataset.as_numpy_iterator())
            epoch, offset = epoch + 1, 0

    def _registered(
        self, name: str, lists: Lists, seed: int, start: int
    ) -> Iterator[Example]:
        seqio, _ = _tensorflow()
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        if name not in known:
            raise UserError(
                f"SeqIO has no task or mixture {name!r}{near(name, known)}",
                "register it in a module that --allow_import names",
            )
        dataset = seqio.get_mixture_or_task(name).get_dataset(
            sequence_length=None,
            split="train",
            shuffle=self.shuffle,
            seed=seed % (2**31 - 1),
            num_epochs=None,
            trim_output_features=False,
        )
        for found in map(_list_of, dataset.skip(start).as_numpy_iterator()):
            for field in FIELDS[1:]:
                shape, wanted = np.shape(found[field]), getattr(lists, field).shape[1:]
                if shape != wanted:
                    raise UserError(
                        f"SeqIO's {name} has {field} of shape {shape}, the job's lists "
                        f"have {wanted}",
                        "register lists of the same size",
                    )
            yield found


def _list_of(found: Mapping[str, np.ndarray]) -> Example:
    """One list from the features of a SeqIO example."""
    return {
        "query_rows": found["query_row"][0],
        "doc_rows": found["doc_rows"],
        "labels": found["labels"],
        "labelled": found["labelled"][0].astype(bool),
        "first": found["first"],
        "second": found["second"],
        "probability": found["probability"],
    }


def _tensorflow():
    """Imports SeqIO and TensorFlow, with TensorFlow kept off the accelerators."""
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
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"lists-{lists.digest}.tfrecord"
    record = path.with_suffix(".json")
    if path.exists() and record.exists():
        if read_json(record).get("sha256") == _sha256(path):
            return path
        _log.warning("%s is damaged: it is written again", path)
    aside = directory / f".{path.name}.{os.getpid()}.part"
    with open(aside, "wb") as file:
        examples = (_example(lists, row) for row in range(len(lists)))
        tfrecord.write_records(file, examples)
    write_json(record, {"lists": len(lists), "sha256": _sha256(aside)})
    aside.replace(path)
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _example(lists: Lists, row: int) -> bytes:
    fields = {name: np.atleast_1d(getattr(lists, name)[row]) for name in FIELDS}
    return tfrecord.example({"query_row": fields.pop("query_rows"), **fields})


def register_task(lists: Lists, directory: Path, name: str | None = None):
    """Registers training lists as a SeqIO task.

    Label sets that are registered by name can be mixed with rates by
    ``seqio.MixtureRegistry.add``, and trained on with ``STREAM = 'seqio:NAME'``. Their
    rows are those of the job's queries and collection, and their lists one size.

    Args:
        directory: gets the TFRecord file.
        name: of the task, by default made from the lists' digest.
    """
    seqio, tf = _tensorflow()
    path = write_records(lists, directory)
    name = name or f"distill_jax_lists_{lists.digest}"
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
