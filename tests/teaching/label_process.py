"""One of the processes that label together: python label_process.py DIRECTORY."""

from __future__ import annotations

import sys

from distill_jax.runtime import processes

if __name__ == "__main__":
    processes.join()

from distill_jax.runtime import sharding
from distill_jax.teaching.pairs import label_pairs
from distill_jax.teaching.scorers import label_run
from tests.teaching.test_pairs import duo_world
from tests.teaching.test_scorers import world


def main(directory: str) -> None:
    mesh = sharding.make_mesh()
    model, features, queries, run = world(queries=8, depth=6)
    label_run(
        model,
        features,
        queries,
        run,
        f"{directory}/scores",
        mesh=mesh,
        cache=f"{directory}/cache",
        shard_pairs=6,
    )
    duo, features, queries, labels = duo_world()
    label_pairs(
        duo,
        features,
        queries,
        labels,
        f"{directory}/pairs",
        pairs=3,
        shard_queries=1,
        mesh=mesh,
    )


if __name__ == "__main__":
    main(sys.argv[1])
