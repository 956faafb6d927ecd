"""The policy of parts: used, gone on with, or moved aside and made anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_jax.io.errors import UserError
from distill_jax.workspace import cached_step
from distill_jax.workspace.cached_step import move_aside, part


class Maker:
    """Writes a file for each call, and fails when told to."""

    def __init__(self, fails: bool = False):
        self.calls, self.fails = 0, fails

    def __call__(self, folder: Path) -> dict:
        self.calls += 1
        (folder / f"work-{len(list(folder.glob('work-*')))}").touch()
        if self.fails:
            raise RuntimeError("killed")
        return {"made": self.calls}


def run(folder: Path, maker: Maker, inputs: dict, **more) -> dict:
    return part(folder, inputs, maker, what="thing", **more)


def test_a_complete_part_is_used_as_it_is(tmp_path, capsys):
    maker = Maker()
    first = run(tmp_path / "a", maker, {"x": 1})
    second = run(tmp_path / "a", maker, {"x": 1})
    assert maker.calls == 1
    assert first == second
    assert first["made"] == 1
    assert first["seconds"] >= 0
    assert "thing: already there" in capsys.readouterr().out


def test_the_sequence_of_inputs_does_not_matter(tmp_path):
    maker = Maker()
    run(tmp_path / "a", maker, {"x": 1, "y": [2, 3]})
    run(tmp_path / "a", maker, {"y": [2, 3], "x": 1})
    assert maker.calls == 1


def test_an_interrupted_part_is_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path / "a", Maker(fails=True), {"x": 1})
    assert not json.loads((tmp_path / "a/part.json").read_text())["complete"]
    maker = Maker()
    run(tmp_path / "a", maker, {"x": 1})
    assert maker.calls == 1
    assert (tmp_path / "a/work-0").exists()
    assert (tmp_path / "a/work-1").exists()
    assert not (tmp_path / "a.old").exists()


@pytest.mark.parametrize(
    ("inputs", "named"),
    [({"x": 2, "y": 1}, "x"), ({"x": 1}, "y"), ({"x": 1, "y": 1, "z": 0}, "z")],
)
def test_other_inputs_move_it_aside_and_are_named(tmp_path, capsys, inputs, named):
    beside = tmp_path / "checkpoints"
    beside.mkdir()
    (beside / "1").touch()
    run(tmp_path / "a", Maker(), {"x": 1, "y": 1})
    maker = Maker()
    run(tmp_path / "a", maker, inputs, also=(beside,))
    assert maker.calls == 1
    assert f"made again, because {named} changed" in capsys.readouterr().out
    assert (tmp_path / "a.old/work-0").exists()
    assert (tmp_path / "checkpoints.old/1").exists()
    assert not beside.exists()
    # And it stays made: the record is of the new inputs.
    run(tmp_path / "a", maker, inputs)
    assert maker.calls == 1


def test_an_unfinished_part_of_other_inputs_is_not_gone_on_with(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path / "a", Maker(fails=True), {"x": 1})
    run(tmp_path / "a", Maker(), {"x": 2})
    assert not (tmp_path / "a/work-1").exists()


def test_only_one_old_copy_is_kept(tmp_path):
    for value in range(3):
        run(tmp_path / "a", Maker(), {"x": value})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.old"]


def test_files_move_aside_too(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "metrics.jsonl").write_text(text)
        move_aside(tmp_path / "metrics.jsonl")
    move_aside(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl.old").read_text() == "two"


def test_time_of_interrupted_work_is_counted(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr(
        "distill_jax.workspace.cached_step.time.perf_counter", lambda: next(clock)
    )
    assert run(tmp_path / "a", Maker(), {"x": 1})["seconds"] == 10.0
    cached_step.reopen(tmp_path / "a")
    assert run(tmp_path / "a", Maker(), {"x": 1})["seconds"] == 15.0


def test_a_record_that_lost_one_bit_is_damage_or_is_not_read(tmp_path):
    """Whatever the bit: the same facts, made again as of other inputs, or refused."""
    maker = Maker()
    whole = run(tmp_path / "a", maker, {"x": 1})
    path = tmp_path / "a/part.json"
    raw = path.read_bytes()
    refused = 0
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        try:
            assert run(tmp_path / "a", maker, {"x": 1}) == whole, raw[at:]
        except UserError as error:
            assert "part.json" in error.what  # noqa: PT017
            assert error.todo, raw[at:]  # noqa: PT017
            refused += 1
    assert refused > len(raw) // 2


def test_a_reader_of_a_part_finds_its_damage(tmp_path):
    run(tmp_path / "a", Maker(), {"x": 1})
    cached_step.check(tmp_path / "a")
    (name,) = [p for p in (tmp_path / "a").iterdir() if p.name != "part.json"]
    name.write_bytes(b"more")
    with pytest.raises(UserError, match=f"{name.name}: damaged"):
        cached_step.check(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"inputs": {}, "complete": true}'])
def test_a_damaged_record_is_told_and_nothing_is_thrown_away(tmp_path, text):
    part(tmp_path / "p", {"a": 1}, lambda folder: None, what="p")
    (tmp_path / "p" / "kept").write_text("work")
    (tmp_path / "p" / "part.json").write_text(text)
    with pytest.raises(UserError, match=r"part\.json"):
        part(tmp_path / "p", {"a": 1}, lambda folder: None, what="p")
    assert (tmp_path / "p" / "kept").read_text() == "work"
