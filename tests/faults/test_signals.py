"""SIGINT and SIGTERM at any moment: one sentence, 130 or 143, and no traceback."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.test_tables import write
from tests.jobs.fixtures import write_toy

SENTENCE = "stopped; the same command goes on from here"
WORK = """
import sys, time
from distill_jax.runtime import signals
signals.listen()
from distill_jax.workspace.console import Counter
from distill_jax import main

def loop(argv):
    print("ready", flush=True)
    kind = sys.argv[1]
    if kind == "stuck":
        # As a compilation: no loop asks.
        while True:
            time.sleep(0.01)
    if kind == "saves":
        with signals.saving():
            time.sleep(5)
        print("saved", flush=True)
    with Counter("counting", 10**9, "things") as counter:
        for n in range(10**9):
            time.sleep(0.01)
            counter(n)

main.parse_flags = loop
sys.exit(main.console())
"""


def start(*command):
    def hear():
        # A shell's background jobs ignore SIGINT, and hand that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["asks", "stuck", "saves"])
def test_a_job_ends_with_one_sentence(number, kind):
    job = start("-c", WORK, kind)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (128 + number, SENTENCE + "\n")
    assert ("saved" in out) == (kind == "saves")


def test_a_second_signal_ends_at_once():
    job = start("-c", WORK, "stuck")
    job.stdout.readline()
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (143, SENTENCE + "\n")
    assert time.monotonic() - began < 2.5


def test_ignored_signals_stay_ignored():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from distill_jax.runtime import signals; signals.listen()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def moments(count):
    draw = random.Random(7)
    return [
        (round(draw.uniform(0.5, 12), 2), draw.choice((2, 15))) for _ in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "number"), moments(20))
@pytest.mark.parametrize("recipe", ["mine", "label", "evaluate", "rankt5_teacher"])
def test_signals_at_random_moments_of_a_job(tmp_path, recipe, seconds, number):
    toy = write_toy(tmp_path / "toy", docs=40, train=4, test=4)
    run = write(tmp_path / "a.run", ["q5 Q0 d3 1 1.0 x"])
    flags = [f"--gin.COLLECTION=beir:{toy}", f"--gin.MODEL_DIR={tmp_path}/out"]
    flags += [f"--gin.RUN={run}"] if recipe == "evaluate" else []
    flags += ["--gin.CHECKPOINT=fresh:reranker:t5:tiny"] if recipe == "label" else []
    if recipe == "rankt5_teacher":
        flags = ["--gin_file=small.gin", *flags]
        seconds *= 4  # it trains for longer than the others search
    command = ["-m", "distill_jax.main", f"--gin_file={recipe}.gin", *flags]
    job = start(*command)
    time.sleep(seconds)
    job.send_signal(number)
    _, err = job.communicate(timeout=120)
    # Over before the signal came, or stopped with its sentence and nothing else.
    assert (job.returncode, err) in [(0, ""), (128 + number, SENTENCE + "\n")]
    again = start(*command)
    _, err = again.communicate(timeout=300)
    assert (again.returncode, err) == (0, "")
