"""The loop: what it logs, keeps, refuses, and goes on from."""

from __future__ import annotations

import importlib.util
import json
import logging
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.runtime.compile_cache import use_compile_cache
from distill_jax.training import checkpoints, optimizers
from distill_jax.training.failures import OutOfMemory
from distill_jax.training.loop import Fit
from distill_jax.training.runfiles import Lock, read_records
from tests.training.stored import read_params

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ONE = sharding.make_mesh(devices=jax.devices()[:1])
CLOCKS = {"time", "queries_per_second", "tokens_per_second"}


def one_shape(start):
    step = start
    while True:
        yield toy.batch(step)
        step += 1


def fit(directory, *, feed=one_shape, evaluate=None, params=None, **options):
    graphdef, fresh = toy.student()
    defaults = {
        "steps": 6,
        "directory": directory,
        "optimizer": optimizers.adamw(learning_rate=1e-2),
        "mesh": ONE,
        "checkpoint_period": 2,
        "show": False,
    }
    run = Fit(**{**defaults, **options})
    return run(graphdef, params or fresh, toy.LISTS, feed, evaluate)


def without_clocks(records):
    return [{k: v for k, v in r.items() if k not in CLOCKS} for r in records]


def assert_equal_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Each program is compiled once for all tests of this module."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o700)
    use_compile_cache(str(folder), least_seconds=0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("unbroken"))


def test_a_run_logs_each_step_and_keeps_the_last(tmp_path, unbroken):
    result = unbroken
    assert result.finished == "steps"
    assert [record["step"] for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[0]["loss"] > result.history[0]["pair"] > 0
    assert not result.interrupted
    assert result.compiled == 1
    assert {"compile", "step", "input", "checkpoint"} <= set(result.seconds)


def test_two_shapes_are_compiled_once_each(tmp_path, capsys):
    result = fit(tmp_path, feed=toy.feed, steps=4, show=True)
    assert result.compiled == 2
    said = capsys.readouterr().err
    assert said.count("compiled the step") == 2
    assert "queries/s" in said


def test_the_same_command_again_does_nothing(tmp_path, capsys):
    first = fit(tmp_path, steps=2)

    def forbidden(start):
        raise AssertionError("nothing is to be read")

    again = fit(tmp_path, steps=2, feed=forbidden, show=True)
    assert "complete: step 2 of 2" in capsys.readouterr().err
    assert again.finished == "steps"
    assert_equal_bits(first.params, again.params)
    assert again.history == first.history


def test_more_steps_go_on_from_the_end(tmp_path, capsys, unbroken):
    fit(tmp_path, steps=3)
    longer = fit(tmp_path, steps=6, show=True)
    assert "resumed at step 3 of 6" in capsys.readouterr().err
    assert_equal_bits(longer.params, unbroken.params)
    assert without_clocks(longer.history) == without_clocks(unbroken.history)


def test_records_are_means_over_the_period_also_across_a_resume(tmp_path, unbroken):
    fit(tmp_path, steps=3, log_period=2)
    result = fit(tmp_path, steps=6, log_period=2)
    losses = [record["loss"] for record in unbroken.history]
    found = {record["step"]: record["loss"] for record in result.history}
    assert found == {
        step: pytest.approx((losses[step - 2] + losses[step - 1]) / 2)
        for step in (2, 4, 6)
    }


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, unbroken):
    """One flipped byte in the newest; the one before it is used."""
    fit(tmp_path, steps=4, keep=2)
    newest = tmp_path / "checkpoints" / "4"
    victim = max(newest.rglob("params/**/d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(UserError, match="checksum"):
        read_params(tmp_path / "checkpoints", 4)
    result = fit(tmp_path, keep=2)
    assert "checksum" in caplog.text
    assert (tmp_path / "damaged" / "4").is_dir()
    assert_equal_bits(result.params, unbroken.params)
    assert without_clocks(result.history) == without_clocks(unbroken.history)


def test_a_missing_file_is_damage(tmp_path):
    fit(tmp_path, steps=2)
    folder = tmp_path / "checkpoints" / "2"
    assert checkpoints.damage(folder) is None
    (folder / "params" / "_METADATA").unlink()
    assert "missing" in checkpoints.damage(folder)


def test_what_is_not_finite_stops_the_run(tmp_path):
    """Names the step and the queries, keeps the batch, saves no such state."""

    def feed(start):
        for step, batch in enumerate(one_shape(start), start):
            if step == 3:
                batch.targets.labels[:, 0] = np.nan
            yield batch

    with pytest.raises(UserError) as caught:
        fit(
            tmp_path,
            feed=feed,
            query_names=lambda rows: [f"query-{row}" for row in rows],
        )
    assert "step 4" in str(caught.value)
    assert "query-48, query-49" in str(caught.value)
    saved = np.load(tmp_path / "not_finite_step_4.npz")
    assert np.isnan(saved["targets.labels"][0, 0])
    np.testing.assert_array_equal(saved["query_tokens"], toy.batch(3).query_tokens)
    assert checkpoints.steps(tmp_path / "checkpoints") == [2]
    params = read_params(tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    # The data repaired, the same command goes on.
    assert fit(tmp_path).finished == "steps"


def test_other_settings_are_refused_by_name(tmp_path):
    fit(tmp_path, steps=2, config={"rate": 0.1, "lengths": (3, 4), "steps": 2})
    changed = {"rate": 0.2, "lengths": (3, 4), "steps": 4}
    with pytest.raises(UserError, match=r"rate: 0.1 then, 0.2 now"):
        fit(tmp_path, steps=4, config=changed, may_change=("steps",))
    with pytest.raises(UserError, match=r"steps: 2 then, 4 now"):
        fit(tmp_path, steps=4, config={**changed, "rate": 0.1})
    allowed = fit(tmp_path, steps=4, config=changed, may_change=("rate", "steps"))
    assert allowed.step == 4


def test_another_model_is_refused_before_it_is_made(tmp_path):
    """The paths and both shapes."""
    fit(tmp_path, steps=2)
    _, params = toy.student()
    params["embedding"] = np.zeros((80, 16), np.float32)
    with pytest.raises(UserError, match="embedding: 64x16 on disk, 80x16 here"):
        fit(tmp_path, steps=4, params=params)
    optimizer = optimizers.adafactor(learning_rate=1e-3)
    with pytest.raises(UserError, match="another model or optimiser"):
        fit(tmp_path, steps=4, optimizer=optimizer)


def test_a_newer_format_is_refused(tmp_path):
    fit(tmp_path, steps=2)
    folder = tmp_path / "checkpoints" / "2"
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "format": 99}))
    checkpoints.write_manifest(folder)
    with pytest.raises(UserError, match="format 99, this version reads up to 1"):
        fit(tmp_path, steps=4)


def test_two_runs_cannot_share_a_folder(tmp_path):
    with Lock(tmp_path), pytest.raises(UserError, match="in use by pid"):
        fit(tmp_path)
    assert fit(tmp_path, steps=1).step == 1


def test_another_feed_is_refused(tmp_path):
    fit(tmp_path, steps=2)
    with pytest.raises(UserError, match="batch 1 of the feed differs"):
        fit(tmp_path, steps=4, feed=lambda start: one_shape(start + 1))


def test_a_feed_that_ends_is_said(tmp_path):
    with pytest.raises(UserError, match="the feed ended at step 3 of 6"):
        fit(tmp_path, feed=lambda start: iter([toy.batch(s) for s in range(start, 3)]))


def test_an_error_of_the_feed_reaches_the_caller(tmp_path):
    def feed(start):
        yield toy.batch(0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        fit(tmp_path, feed=feed)


def test_a_save_that_fails_surfaces(tmp_path, monkeypatch, unbroken):
    """At the next step at the latest; the step is never named, and saved again."""

    def full(folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_manifest", full)
        with pytest.raises(UserError, match="No space left"):
            fit(tmp_path)
    assert checkpoints.steps(tmp_path / "checkpoints") == []
    result = fit(tmp_path)
    assert_equal_bits(result.params, unbroken.params)


def test_restored_on_another_mesh(tmp_path, unbroken):
    """The same bits on 8 devices, 2 x 2 x 2, and one."""
    fit(tmp_path, steps=3)
    saved = read_params(tmp_path / "checkpoints")
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    spread = fit(tmp_path, steps=4, mesh=mesh)
    assert len(spread.params["embedding"].sharding.device_set) == 8
    losses = [record["loss"] for record in spread.history]
    expected = [record["loss"] for record in unbroken.history[:4]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    back = fit(tmp_path, steps=5)
    np.testing.assert_allclose(
        back.history[4]["loss"], unbroken.history[4]["loss"], rtol=1e-5
    )
    # What was saved from one device is what the eight began with.
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        saved,
        sharding.param_shardings(saved, mesh),
    )
    saver = checkpoints.Checkpoints(tmp_path / "checkpoints")
    again = saver.restore_params(5, target)
    saver.close()
    assert_equal_bits(again, back.params)


MEASURES = {1: 0.3, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.1}


def by_step(params, step):
    return {"nDCG@10": MEASURES[step], "loss": 1 - MEASURES[step]}


def test_the_best_is_kept_and_patience_ends_the_run(tmp_path, unbroken):
    result = fit(
        tmp_path,
        evaluate=by_step,
        eval_period=1,
        checkpoint_period=None,
        best_measure="nDCG@10",
        patience=2,
    )
    assert result.finished == "patience"
    assert (result.step, result.best_step) == (4, 2)
    assert checkpoints.steps(tmp_path / "checkpoints") == [2, 4]
    best = read_params(tmp_path / "checkpoints")
    assert_equal_bits(jax.device_get(result.params), best)
    assert [record["eval/nDCG@10"] for record in result.history] == [0.3, 0.5, 0.5, 0.4]
    again = fit(
        tmp_path, evaluate=by_step, eval_period=1, best_measure="nDCG@10", patience=2
    )
    assert again.best_step == 2
    assert_equal_bits(again.params, result.params)


def test_the_least_dev_loss_is_best_too(tmp_path):
    result = fit(
        tmp_path,
        steps=4,
        evaluate=by_step,
        eval_period=2,
        best_measure="loss",
        best_mode="min",
    )
    assert result.best_step == 2


def test_a_measure_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no measure 'MRR'"):
        fit(tmp_path, evaluate=by_step, eval_period=1, best_measure="MRR")


def test_an_evaluation_that_does_not_fit_says_what_to_change(tmp_path):
    def exhausted(params, step):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with pytest.raises(OutOfMemory, match=r"evaluation at step 1 .*\n.*--gin\.CHUNK"):
        fit(tmp_path, evaluate=exhausted, eval_period=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_an_evaluation_leaves_it_owed(tmp_path, number, unbroken):
    options = {"eval_period": 2, "best_measure": "nDCG@10", "steps": 4}
    whole = fit(tmp_path / "whole", evaluate=by_step, **options)

    def cut(params, step):
        if step == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)
        return by_step(params, step)

    stopped = fit(tmp_path / "cut", evaluate=cut, **options)
    assert stopped.interrupted
    assert stopped.signal == number
    assert stopped.step == 2
    assert "eval/nDCG@10" not in stopped.history[-1]
    result = fit(tmp_path / "cut", evaluate=by_step, **options)
    assert result.best_step == whole.best_step == 2
    assert without_clocks(result.history) == without_clocks(whole.history)
    assert_equal_bits(result.params, whole.params)


def test_a_collapsed_student_is_warned_of(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    _, params = toy.student()
    params = jax.tree.map(np.zeros_like, jax.device_get(params))
    fit(tmp_path, params=params, collapse_after=3)
    assert "step 3: for 3 steps all scores" in caplog.text


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_records(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    "line", [b"\0\0\0", b"\xff{}", b"7", b'{"stfp": 2}', b'{"step": "2"}', b"[1]"]
)
def test_a_damaged_line_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    assert read_records(path) == [{"step": 1}, {"step": 3}]


def test_a_compile_cache_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(UserError, match="others can write"):
        fit(tmp_path / "run", compile_cache=str(tmp_path / "cache"))
