"""The label store: exact, resumable, and it refuses what it should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.labels.store import LabelWriter, is_complete, shards

COLLECTION = Collection(
    ["007", "d 1", "d/2", "\u0434\u043e\u043a", "d4"], ["text"] * 5, name="toy"
)
LISTS = [
    [("d 1", 0.1), ("007", -9.25)],
    [("\u0434\u043e\u043a", 3e-38)],
    [("d/2", 1e30), ("d4", -0.0), ("007", 2**-149)],
]


def lists(**changes) -> TeacherLabels:
    given = {"provenance": {"teacher": "t", "candidates": "abc"}, **changes}
    return TeacherLabels.from_lists(
        ["q0", "q1", "q2"], LISTS, collection=COLLECTION, **given
    )


def pairs() -> PairLabels:
    return PairLabels(
        ("q0", "q1", "q2"),
        np.array([[0, 2], [-1, -1], [4, -1]]),
        np.array([[1, 3], [-1, -1], [0, -1]]),
        np.array([[0.25, 1.0], [np.nan, np.nan], [np.nan, np.nan]]),
        COLLECTION.ids,
        {"teacher": "duo"},
    )


def test_lists_come_back_bit_for_bit(tmp_path):
    written = lists(failed=[False, True, False])
    written.write(tmp_path)
    read = TeacherLabels.read(tmp_path, COLLECTION, expect={"candidates": "abc"})
    assert read.query_ids == written.query_ids
    np.testing.assert_array_equal(read.rows, written.rows)
    assert read.scores.tobytes() == written.scores.tobytes()
    assert read.failed.tolist() == [False, True, False]
    assert read.provenance == written.provenance
    assert read.doc_ids is COLLECTION.ids
    alone = TeacherLabels.read(tmp_path)
    assert alone.lists()["q2"] == written.lists()["q2"]


def test_shards_have_the_published_columns(tmp_path):
    lists(failed=[False, True, False]).write(tmp_path / "labels")
    pairs().write(tmp_path / "labels" / "pairs")
    table = pq.read_table(tmp_path / "labels" / "shard-00000.parquet")
    assert table.column_names == ["query_id", "doc_ids", "scores", "kind", "failed"]
    first = table.to_pylist()[0]
    assert first["doc_ids"] == ["d 1", "007"]
    assert first["kind"] == "score"
    assert first["failed"] is False
    assert table.to_pylist()[1]["scores"] == []
    assert json.loads(table.schema.metadata[b"distill_jax"])["provenance"] == {
        "teacher": "t",
        "candidates": "abc",
    }
    table = pq.read_table(tmp_path / "labels" / "pairs" / "shard-00000.parquet")
    assert table.to_pylist() == [
        {"query_id": "q0", "first": "007", "second": "d 1", "probability": 0.25},
        {"query_id": "q0", "first": "d/2", "second": "\u0434\u043e\u043a",
         "probability": 1.0},
        {"query_id": "q2", "first": "d4", "second": "007", "probability": None},
    ]  # fmt: skip


def test_pairs_come_back(tmp_path):
    pairs().write(tmp_path)
    read = PairLabels.read(tmp_path, COLLECTION)
    place = {query_id: i for i, query_id in enumerate(read.query_ids)}
    assert set(place) == {"q0", "q1", "q2"}
    assert read.by_query() == pairs().by_query()
    assert read.by_query()["q0"] == [(0, 1, 0.25), (2, 3, 1.0)]
    # The failed pair of q2 is there, and counts for nothing.
    assert read.first[place["q2"], 0] == 4
    assert not read.where[place["q2"]].any()


def test_ranks_become_higher_is_better():
    ranks = TeacherLabels.from_lists(
        ["a", "b"], [[("x", 2), ("y", 1), ("z", 3)], [("x", 1)]], kind="rank"
    )
    np.testing.assert_array_equal(
        ranks.training_labels(), [[2, 3, 1], [1, np.nan, np.nan]]
    )
    # The known case: run ranks 1..4 of depth 100 are 100, 99, 98, 97.
    np.testing.assert_array_equal(
        ranks.training_labels(depth=100)[0], [100 - 2 + 1, 100, 98]
    )
    kept = ranks.keep(np.array([[True, False, True], [True, False, False]]))
    np.testing.assert_array_equal(kept.scores, [[1, 2], [1, np.nan]])


def test_a_failed_list_labels_nothing():
    labels = lists(failed=[False, True, False])
    assert np.isnan(labels.training_labels()[1]).all()
    assert not labels.where[1].any()
    assert labels.usable().query_ids == ("q0", "q2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [[("d4", np.nan)]], "'q'.*'d4'.*nan"),
        (lambda: [[("d4", np.inf)]], "inf"),
        (lambda: [[("d4", 1.0), ("d4", 2.0)]], "twice"),
        (lambda: [[("d5", 1.0)]], "'d5'"),
    ],
)
def test_bad_scores_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        TeacherLabels.from_lists(["q"], make(), collection=COLLECTION)


def test_ranks_must_be_ranks():
    with pytest.raises(UserError, match="1, 2, 3"):
        TeacherLabels.from_lists(["q"], [[("x", 1), ("y", 3)]], kind="rank")


def test_unknown_docs_can_be_dropped():
    labels = TeacherLabels.from_lists(
        ["q", "r"],
        [[("new", 1), ("d4", 2), ("007", 3)], [("new", 1)]],
        kind="rank",
        collection=COLLECTION,
        unknown="drop",
    )
    assert labels.lists() == {"q": [("d4", 1.0), ("007", 2.0)], "r": []}


def test_other_candidates_are_refused(tmp_path):
    lists().write(tmp_path)
    with pytest.raises(UserError, match=r"candidates is 'abc'.*'other' is expected"):
        TeacherLabels.read(tmp_path, expect={"candidates": "other"})
    with pytest.raises(UserError, match="template is not recorded"):
        TeacherLabels.read(tmp_path, expect={"template": "t1"})


def test_two_teachers_do_not_share_a_folder(tmp_path):
    LabelWriter(tmp_path, {"teacher": "a", "date": "monday"}).write(lists())
    LabelWriter(tmp_path, {"teacher": "a", "date": "friday"})
    with pytest.raises(UserError, match="teacher 'a' beside 'b'"):
        LabelWriter(tmp_path, {"teacher": "b"})
    one = lists(provenance={"teacher": "b"}).select(["q0"])
    one.write(tmp_path / "other")
    (tmp_path / "other" / "shard-00000.parquet").rename(
        tmp_path / "shard-00001.parquet"
    )
    with pytest.raises(UserError, match="teacher 'a' beside 'b'"):
        TeacherLabels.read(tmp_path)


@pytest.mark.parametrize("at", [0.3, 0.6, 0.98])
def test_altered_and_cut_shards_are_named(tmp_path, at):
    many = TeacherLabels.from_lists(
        [f"q{i}" for i in range(300)],
        [[(f"d{j}", float(np.sin(i + j))) for j in range(8)] for i in range(300)],
    )
    many.write(tmp_path)
    path = tmp_path / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: int(len(data) * at)])
    with pytest.raises(UserError, match="shard-00000"):
        TeacherLabels.read(tmp_path)
    data[int(len(data) * at * 0.5)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard-00000"):
        TeacherLabels.read(tmp_path)


def test_a_lost_shard_is_noticed(tmp_path):
    writer = LabelWriter(tmp_path, {"teacher": "t"})
    for query_id in ("q0", "q1", "q2"):
        writer.write(lists().select([query_id]))
    assert not is_complete(tmp_path)
    writer.finish({"cost": 0.5})
    assert TeacherLabels.read(tmp_path).provenance["counts"] == {"cost": 0.5}
    shards(tmp_path)[1].unlink()
    with pytest.raises(UserError, match=r"shard-00001.*missing"):
        TeacherLabels.read(tmp_path)


def test_a_retried_failure_gives_way(tmp_path):
    LabelWriter(tmp_path, {}).write(lists(failed=[True, False, True]))
    assert LabelWriter(tmp_path, {}).done == {"q0", "q1", "q2"}
    again = LabelWriter(tmp_path, {}, retry_failed=True)
    assert again.done == {"q1"}
    again.write(lists().select(["q0"]))
    read = TeacherLabels.read(tmp_path, COLLECTION)
    assert read.query_ids == ("q0", "q1", "q2")
    assert read.failed.tolist() == [False, False, True]
    again.write(lists().select(["q1"]))
    with pytest.raises(UserError, match="'q1' is labelled in two shards"):
        TeacherLabels.read(tmp_path)


def test_of_several_processes_one_writes_and_all_know_what_is_done(tmp_path):
    writers = [LabelWriter(tmp_path, {}, writes=writes) for writes in (True, False)]
    for name in ("q0", "q1"):
        for writer in writers:
            writer.write(lists().select([name]))
    for writer in writers:
        assert writer.done == {"q0", "q1"}
        writer.finish()
    assert [path.name for path in shards(tmp_path)] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    assert TeacherLabels.read(tmp_path).query_ids == ("q0", "q1")


def test_killed_while_writing_loses_no_finished_shard(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from distill_jax.labels.store import LabelWriter
        from distill_jax.labels.labels import TeacherLabels
        writer = LabelWriter(sys.argv[1], {"teacher": "t"})
        for i in range(150):
            if f"q{i}" not in writer.done:
                labels = [[("a", i / 7), ("b", -i / 3)]]
                writer.write(TeacherLabels.from_lists([f"q{i}"], labels))
                print(i, flush=True)
        writer.finish()
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    for stop in (5, 60):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= stop:
                os.kill(child.pid, signal.SIGKILL)
                break
        child.wait()
        assert not is_complete(tmp_path)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    read = TeacherLabels.read(tmp_path)
    assert read.query_ids == tuple(f"q{i}" for i in range(150))
    expected = np.array([[i / 7, -i / 3] for i in range(150)], np.float32)
    np.testing.assert_array_equal(read.scores, expected)


def test_labels_move_to_another_collection():
    turned = Collection(list(COLLECTION.ids)[::-1], ["text"] * 5)
    moved = lists().on(turned)
    assert moved.doc_ids is turned.ids
    assert moved.lists() == lists().lists()
    assert pairs().on(turned).by_query()["q0"] == [(4, 3, 0.25), (2, 1, 1.0)]


@pytest.mark.parametrize("doc_id", COLLECTION.ids)
def test_a_score_that_is_no_number_is_refused_for_each_document(doc_id):
    with pytest.raises(UserError, match="has the score nan"):
        TeacherLabels.from_lists(
            ["q0"], [[(doc_id, float("nan"))]], collection=COLLECTION
        )


def test_lists_of_one_document_are_one_wide():
    kept = lists().keep(np.asarray([[True, False, False]] * 3))
    assert kept.rows.shape == kept.scores.shape == (3, 1)
