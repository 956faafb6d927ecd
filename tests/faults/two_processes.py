"""One of two training processes: python two_processes.py DIRECTORY STEPS [PAUSE].

Which one it is, and where the other is, stands in the environment, as in real runs.
``PAUSE`` makes each batch take so many seconds.
"""

from __future__ import annotations

import sys

from distill_jax.runtime import processes

if __name__ == "__main__":
    processes.join()

import time

import jax
import numpy as np
from train_toy import load_toy

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.training import optimizers
from distill_jax.training.loop import Fit
from distill_jax.training.validation import validation


def main(directory: str, steps: int, pause: float) -> None:
    toy = load_toy()
    rank, count = jax.process_index(), jax.process_count()

    def share(whole):
        rows = whole.targets.labels.shape[0] // count
        part = slice(rank * rows, (rank + 1) * rows)
        return jax.tree.map(lambda leaf: leaf[part], whole)

    def feed(start):
        for step in range(start, steps):
            time.sleep(pause)
            yield share(toy.batch(step))

    graphdef, params = toy.student(0.1)
    result = Fit(
        steps=steps,
        directory=directory,
        optimizer=optimizers.adamw(learning_rate=1e-2),
        mesh=sharding.make_mesh(),
        checkpoint_period=2,
    )(graphdef, params, toy.LISTS, feed)
    held_out = validation(
        graphdef,
        toy.GLOBAL,
        lambda: (share(toy.batch(step)) for step in (90, 91)),
        sharding.make_mesh(),
        at_once=4,
    )(params)
    if rank == 0:
        np.save(f"{directory}/held_out.npy", held_out["loss"])
        losses = [record["loss"] for record in result.history]
        np.save(f"{directory}/losses.npy", losses)


if __name__ == "__main__":
    directory, steps, *pause = sys.argv[1:]
    try:
        main(directory, int(steps), float(*pause or (0.0,)))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
