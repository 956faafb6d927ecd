"""A training process killed at any moment ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.runtime import sharding
from distill_jax.training import checkpoints
from distill_jax.training.validation import validation
from tests.faults.train_toy import load_toy

SCRIPT = Path(__file__).parent / "train_toy.py"
CLOCKS = {"time", "queries_per_second", "tokens_per_second"}


def start(directory, *options):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(SCRIPT.parent.parent.parent),
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(process, timeout=120):
    """The exit status and what was said."""
    try:
        _, said = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, said


def records(directory):
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_step(process, directory, step):
    for _ in range(6000):
        found = records(directory)
        if found and found[-1]["step"] >= step:
            return
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def ended_alike(one, other):
    def numbers(directory):
        return [
            {k: v for k, v in record.items() if k not in CLOCKS}
            for record in records(directory)
        ]

    assert numbers(one) == numbers(other)
    ours, theirs = np.load(one / "params.npz"), np.load(other / "params.npz")
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], strict=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("faults") / "unbroken"
    code, said = end(start(directory))
    assert code == 0, said
    return directory


@pytest.mark.long
def test_killed_again_and_again_it_ends_the_same(unbroken):
    """SIGTERM twice, SIGKILL, and SIGKILL inside a save."""
    directory = unbroken.parent / "killed"

    process = start(directory)
    wait_for_step(process, directory, 5)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 143, said
    stopped = records(directory)[-1]["step"]
    assert f"saved at step {stopped}" in said
    assert (directory / "checkpoints" / str(stopped) / "manifest.json").exists()

    process = start(directory)
    wait_for_step(process, directory, 15)
    process.kill()
    code, said = end(process)
    assert code == -signal.SIGKILL
    assert f"resumed at step {stopped} of 24" in said

    code, said = end(start(directory, "--die-in-save", "16", "before"))
    if code == -signal.SIGKILL:
        # (If the kill above came after the save of step 16, there is none to die in.)
        assert not (directory / "checkpoints" / "16").exists()
    code, said = end(start(directory, "--die-in-save", "20", "after"))
    assert code == -signal.SIGKILL, said
    assert "resumed at step 12 of 24" in said or "resumed at step 16 of 24" in said

    code, said = end(start(directory))
    assert code == 0, said
    assert "an unfinished checkpoint is ignored" in said
    ended_alike(directory, unbroken)


def start_two(directory, steps, pause=0.0):
    """Two processes of one device each, as one program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(SCRIPT.parent.parent.parent),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    script = SCRIPT.with_name("two_processes.py")
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(directory), str(steps), str(pause)],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "JAX_PROCESS_ID": str(index)},
        )
        for index in range(2)
    ]


def two_processes(directory, steps):
    """Runs two processes to their end; returns what the first said."""
    ends = [end(process) for process in start_two(directory, steps)]
    assert [code for code, _ in ends] == [0, 0], ends
    return ends[0][1]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume(unbroken):
    """The loss is a function of the global batch; one process writes the files."""
    directory = unbroken.parent / "two"
    two_processes(directory, 3)
    said = two_processes(directory, 5)
    assert "resumed at step 3 of 5" in said
    expected = [record["loss"] for record in records(unbroken)[:5]]
    np.testing.assert_allclose(np.load(directory / "losses.npy"), expected, rtol=1e-5)
    toy = load_toy()
    graphdef, params = toy.student(0.1)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    held_out = validation(graphdef, toy.GLOBAL, lambda: map(toy.batch, (90, 91)), mesh)(
        params
    )
    np.testing.assert_allclose(
        np.load(directory / "held_out.npy"), held_out["loss"], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_other_and_both_go_on(unbroken, victim):
    """Within a minute, with what to do; nothing is lost but unsaved steps."""
    directory = unbroken.parent / f"lost{victim}"
    both = start_two(directory, 500, pause=0.1)
    wait_for_step(both[0], directory, 5)
    both[victim].kill()
    began = time.monotonic()
    end(both[victim])
    code, said = end(both[1 - victim], timeout=60)
    assert time.monotonic() - began < 60
    assert code not in (0, None)
    if code == 2:  # it heard of it in a step, not from the runtime
        assert f"process {1 - victim} of 2 lost another" in said
        assert "start all processes again" in said
    saved = max(checkpoints.steps(directory / "checkpoints"))
    assert saved >= 2
    said = two_processes(directory, saved + 2)
    assert f"resumed at step {saved} of {saved + 2}" in said
    expected = [record["loss"] for record in records(unbroken)[: saved + 2]]
    found = np.load(directory / "losses.npy")[: len(expected)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments(unbroken, seed):
    """Whatever the moment."""
    random_ = random.Random(seed)
    directory = unbroken.parent / f"random{seed}"
    for _ in range(4):
        process = start(directory)
        time.sleep(random_.uniform(1.0, 8.0))
        process.send_signal(random_.choice([signal.SIGKILL, signal.SIGTERM]))
        end(process)
    code, said = end(start(directory))
    assert code == 0, said
    ended_alike(directory, unbroken)
