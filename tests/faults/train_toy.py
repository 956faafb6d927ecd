"""Trains the toy student in a process of its own, to be killed from outside.

    python train_toy.py DIRECTORY [--die-in-save STEP]

Ends with 143 after SIGTERM. Writes ``params.npz`` when it is complete.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from distill_jax.runtime import sharding
from distill_jax.training import checkpoints, optimizers
from distill_jax.training.loop import Fit

STEPS = 24


def load_toy():
    path = Path(__file__).parent.parent / "training" / "toy.py"
    spec = importlib.util.spec_from_file_location("toy", path)
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    return toy


def die_in_save(step: int, when: str) -> None:
    """SIGKILL before the manifest, or between it and the final name."""
    write = checkpoints.write_manifest

    def killed(folder: Path) -> None:
        if folder.name.startswith(f"{step}."):
            if when == "after":
                write(folder)
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder)

    checkpoints.write_manifest = killed


def main(directory: str, *options: str) -> int:
    toy = load_toy()
    if options:
        die_in_save(int(options[1]), options[2])

    def feed(start):
        for step in range(start, STEPS):
            # Slow enough for signals to arrive between steps.
            time.sleep(0.04)
            yield toy.batch(step)

    def evaluate(params, step):
        return {"norm": float(np.square(params["embedding"]).sum())}

    graphdef, params = toy.student(0.1)
    result = Fit(
        steps=STEPS,
        directory=directory,
        optimizer=optimizers.adamw(learning_rate=1e-2),
        mesh=sharding.make_mesh(),
        checkpoint_period=4,
        eval_period=6,
        best_measure="norm",
        compile_cache=f"{directory}/../programs",
    )(graphdef, params, toy.LISTS, feed, evaluate)
    if result.interrupted:
        return 128 + result.signal
    leaves = jax.tree_util.tree_leaves_with_path(result.params)
    np.savez(
        f"{directory}/params.npz", **{jax.tree_util.keystr(k): v for k, v in leaves}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
