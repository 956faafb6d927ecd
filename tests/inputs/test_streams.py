"""Streams: a seek is the uninterrupted stream, and an epoch holds every list once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from distill_jax.inputs import streams
from distill_jax.inputs.feed import Feed, validation_batches
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.io.errors import UserError
from distill_jax.lists.lists import FIELDS, Lists

COUNT, SIZE, PAIRS = 7, 3, 2


def made_lists(count: int = COUNT, pairs: int = PAIRS) -> Lists:
    """Lists that are told apart by every field."""
    random = np.random.default_rng(0)
    return Lists(
        query_rows=np.arange(count, dtype=np.int32),
        doc_rows=random.integers(-1, 50, (count, SIZE)).astype(np.int32),
        labels=random.normal(size=(count, SIZE)).astype(np.float32),
        labelled=np.arange(count) % 2 == 0,
        first=random.integers(-1, SIZE, (count, pairs)).astype(np.int32),
        second=random.integers(-1, SIZE, (count, pairs)).astype(np.int32),
        probability=random.random((count, pairs)).astype(np.float32),
    )


@pytest.fixture(params=["arrays", "seqio"])
def stream(request):
    if request.param == "arrays":
        return ArrayStream()
    pytest.importorskip("seqio")
    return SeqioStream()


def taken(stream, lists, directory, start: int, number: int, seed: int = 3) -> list:
    rows = stream.rows(lists, directory, seed, start)
    return list(itertools.islice(rows, number))


def queries(examples) -> list[int]:
    return [int(example["query_rows"]) for example in examples]


def test_a_seek_equals_the_uninterrupted_stream(stream, tmp_path):
    lists = made_lists()
    whole = taken(stream, lists, tmp_path, 0, 3 * COUNT)
    # Inside an epoch, at its borders, and one on either side of them.
    for start in (0, 1, 3, COUNT - 1, COUNT, COUNT + 1, 2 * COUNT):
        part = taken(stream, lists, tmp_path, start, COUNT)
        assert queries(part) == queries(whole)[start : start + COUNT], start


def test_every_epoch_has_every_list_once_in_another_order(stream, tmp_path):
    found = queries(taken(stream, made_lists(), tmp_path, 0, 3 * COUNT))
    epochs = [tuple(found[i * COUNT : (i + 1) * COUNT]) for i in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_seed_is_an_order(stream, tmp_path):
    lists = made_lists()
    orders = {
        tuple(queries(taken(stream, lists, tmp_path, 0, COUNT, seed=seed)))
        for seed in (0, 1, 2, 0)
    }
    assert 1 < len(orders) <= 3


@pytest.mark.parametrize("pairs", [0, PAIRS])
def test_examples_are_the_lists_field_by_field(stream, tmp_path, pairs):
    lists = made_lists(pairs=pairs)
    for example in taken(stream, lists, tmp_path, 0, COUNT):
        row = int(example["query_rows"])
        for name in FIELDS:
            np.testing.assert_array_equal(example[name], getattr(lists, name)[row])


def test_a_record_file_of_other_lists_is_not_read(tmp_path):
    pytest.importorskip("seqio")
    first, second = made_lists(5), made_lists(6)
    assert len(set(queries(taken(SeqioStream(), first, tmp_path, 0, 5)))) == 5
    assert len(set(queries(taken(SeqioStream(), second, tmp_path, 0, 6)))) == 6
    assert len(list(tmp_path.glob("*.tfrecord"))) == 2
    assert not list(tmp_path.glob(".*"))


def numbers(rows: dict, mine: slice) -> np.ndarray:
    return rows["query_rows"][mine]


def feed(stream, directory, *, host=0, hosts=1, batch_size=4) -> Feed:
    return Feed(
        lists=made_lists(),
        featurizer=numbers,
        stream=stream,
        batch_size=batch_size,
        directory=directory,
        seed=1,
        host=host,
        hosts=hosts,
    )


def batches(feed: Feed, start: int, number: int) -> np.ndarray:
    return np.stack(list(itertools.islice(feed(start), number)))


def test_the_hosts_shares_make_the_global_batch(stream, tmp_path):
    whole = batches(feed(stream, tmp_path), 0, 4)
    for hosts in (2, 4):
        shares = [
            batches(feed(stream, tmp_path, host=host, hosts=hosts), 0, 4)
            for host in range(hosts)
        ]
        np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_a_feed_goes_on_at_any_step(stream, tmp_path):
    """Batches of 4 straddle the epochs of 7 lists."""
    whole = batches(feed(stream, tmp_path), 0, 6)
    for step in range(5):
        np.testing.assert_array_equal(
            batches(feed(stream, tmp_path), step, 1)[0], whole[step]
        )


def test_a_batch_that_hosts_cannot_share_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not divide over 3 hosts"):
        feed(ArrayStream(), tmp_path, hosts=3)


def test_unshuffled_is_as_they_lie(stream, tmp_path):
    plain = type(stream)(shuffle=False)
    found = queries(taken(plain, made_lists(), tmp_path, 2, COUNT))
    assert found == [*range(2, COUNT), 0, 1]


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"),
    [
        (4, 1, [4, 4]),
        (4, 4, [4, 4]),  # the last 3 of 7 lists divide over no 4 devices
        (12, 2, [12]),
        (64, 2, [8]),  # fewer than a batch: no more rows than the devices need
        (64, 16, [16]),
        (6, 4, [6, 6]),
    ],
)
def test_hosts_read_every_held_out_list_once(batch_size, devices, sizes):
    lists = made_lists()

    def fields(rows: dict, mine: slice) -> dict:
        return {name: value[mine] for name, value in rows.items()}

    def shares(host: int, hosts: int) -> list[dict]:
        options = {"multiple_of": devices, "host": host, "hosts": hosts}
        return list(validation_batches(lists, fields, batch_size, **options))

    whole = shares(0, 1)
    assert [len(batch["query_rows"]) for batch in whole] == sizes
    halves = [shares(host, 2) for host in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert len(parts[0]["query_rows"]) == len(parts[1]["query_rows"])
        for name in FIELDS:
            found = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(found, batch[name])
    for name in FIELDS:
        found = np.concatenate([batch[name] for batch in whole])
        np.testing.assert_array_equal(found[:COUNT], getattr(lists, name))
    filled = [batch["query_rows"] for batch in whole]
    assert (np.concatenate(filled)[COUNT:] == -1).all()
    docs = np.concatenate([batch["doc_rows"] for batch in whole])
    assert (docs[COUNT:] == -1).all()


@pytest.mark.long
def test_nothing_of_tensorflows_reaches_the_console(tmp_path):
    pytest.importorskip("seqio")
    code = (
        "import sys, itertools, pathlib\n"
        "from distill_jax.inputs.streams import SeqioStream\n"
        "from tests.inputs.test_streams import made_lists\n"
        "rows = SeqioStream().rows(made_lists(), pathlib.Path(sys.argv[1]), 0, 0)\n"
        "assert len(list(itertools.islice(rows, 9))) == 9\n"
    )
    # As a user's shell is: with no setting of TensorFlow's.
    settings = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**settings, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout + done.stderr == ""


def test_a_mixture_of_label_sets_is_trained_on_by_name(tmp_path):
    seqio = pytest.importorskip("seqio")
    sets = {"teacher_a": made_lists(40), "teacher_b": made_lists(40)}
    for number, (name, found) in enumerate(sets.items()):
        found = dataclasses.replace(found, labels=found.labels * 0 + number)
        streams.register_task(found, tmp_path, name)
    seqio.MixtureRegistry.add("teachers", [("teacher_a", 3.0), ("teacher_b", 1.0)])
    try:
        stream = SeqioStream(name="teachers")
        rows = stream.rows(sets["teacher_a"], tmp_path, 0, 0)
        first = [next(rows) for _ in range(400)]
        share = np.mean([found["labels"].ravel()[0] for found in first])
        assert 0.17 < share < 0.33
        again = stream.rows(sets["teacher_a"], tmp_path, 0, 390)
        for found in first[390:]:
            resumed = next(again)
            assert all((resumed[name] == found[name]).all() for name in found)
        with pytest.raises(UserError, match="teachers"):
            next(SeqioStream(name="teacher").rows(sets["teacher_a"], tmp_path, 0, 0))
        wider = made_lists(40, pairs=PAIRS + 1)
        with pytest.raises(UserError, match="of shape"):
            next(stream.rows(wider, tmp_path, 0, 0))
    finally:
        seqio.MixtureRegistry.remove("teachers")
        for name in sets:
            seqio.TaskRegistry.remove(name)
