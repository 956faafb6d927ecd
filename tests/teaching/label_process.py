"""One of the processes that label, encode and search together.

python label_process.py DIRECTORY
"""

from __future__ import annotations

import sys

from distill_jax.runtime import processes

if __name__ == "__main__":
    processes.join()

from pathlib import Path

import jax
import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.runtime import sharding
from distill_jax.teaching.pairs import label_pairs
from distill_jax.teaching.scorers import label_run
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.workspace import indexes, ranking
from distill_jax.workspace.context import Workspace
from tests.retrieval.test_embeddings import SPECIALS, WORDS, made
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
    mine(Path(directory), mesh)


def mine(directory: Path, mesh) -> None:
    """What each form of index finds; every process keeps what it saw."""
    process = jax.process_index()
    words = directory / str(process) / "vocab.txt"
    words.parent.mkdir(exist_ok=True)
    words.write_text("\n".join(SPECIALS + WORDS))
    random = np.random.default_rng(4)
    texts = [" ".join(random.choice(WORDS, 9)) for _ in range(100)]
    workspace = Workspace(
        directory=directory,
        collection=Collection([f"d{n}" for n in range(100)], texts),
        train=None,
        dev=None,
        test=None,
        mesh=mesh,
        seed=0,
    )
    queries = Queries(["a", "b", "c"], texts[:3])
    found = {"bm25": indexes.bm25(workspace, 0.9, 0.4).search(queries, 5)}
    for kind, index in (("dual", "exact"), ("dual", "scann"), ("colbert", "scann")):
        model, _ = made(kind, Tokenizer.load(words))
        found[f"{kind}-{index}"] = ranking.search(
            model,
            queries,
            workspace,
            depth=5,
            directory=directory / "vectors",
            index=index,
        )
    for name, run in found.items():
        np.save(directory / f"{name}.{process}.npy", run.rows)


if __name__ == "__main__":
    main(sys.argv[1])
