"""Lists a second that the feed delivers, beside what a training step consumes.

    python tools/bench_feed.py [--collection beir:PATH] [--streams arrays,seqio]

Text is tokenised once before the clock starts; what is timed is the order of the lists,
the gathering of tokens, joining, padding and the batch as numpy arrays: everything that
the training loop waits for. The step is that of a T5 (``--backbone``) on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from distill_jax.inputs.feed import Feed
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.losses import Listwise, softmax_cross_entropy
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.recipe.examples import FromQrels
from distill_jax.recipe.materials import make_featurizer
from distill_jax.recipe.students import Student
from distill_jax.runtime.sharding import make_mesh
from distill_jax.training.loop import Fit
from distill_jax.training.optimizers import adamw
from distill_jax.workspace.context import open_workspace

STREAMS = {"arrays": ArrayStream, "seqio": SeqioStream}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collection", default="pydocs")
    parser.add_argument("--streams", default="arrays,seqio")
    parser.add_argument("--backbone", default="t5:tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--list-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    workspace = open_workspace(
        folder, options.collection, mesh=make_mesh(), dev_share=0.0
    )
    assert workspace.train is not None
    student = Student(kind="reranker", backbone=options.backbone, dropout=0.0)
    model = student.make(workspace.collection.full_texts, 0)
    context = Context(
        workspace=workspace,
        queries=workspace.train.queries,
        qrels=workspace.train.qrels,
        student=model,
        model=None,
        directory=folder,
    )
    lists = FromQrels(size=options.list_size)(context, BM25()(context))
    featurizer = make_featurizer(model, context, (64, 128, 192, 256, 512))
    print(f"{len(lists):,} lists of {options.list_size}, batches of {options.batch}")

    def feed(stream):
        return Feed(
            lists=lists,
            featurizer=featurizer,
            stream=stream,
            batch_size=options.batch,
            directory=folder / "records",
        )

    rates = {}
    for name in options.streams.split(","):
        batches = feed(STREAMS[name]())(0)
        next(batches)
        started = time.perf_counter()
        for _ in range(options.batches):
            next(batches)
        seconds = time.perf_counter() - started
        rates[name] = options.batches * options.batch / seconds
        print(f"feed, {name:7} {rates[name]:10,.0f} lists/s")
    used = consumption(options, model, feed(ArrayStream()), folder)
    print(f"step, {options.backbone:7} {used:10,.1f} lists/s")
    for name, rate in rates.items():
        print(f"{name}: {rate / used:,.0f} times what the step consumes")


def consumption(options: argparse.Namespace, model, feed, folder: Path) -> float:
    """Lists a second of training, compilation left out (median of the steps)."""
    times: list[float] = []

    def watched(start: int):
        for batch in feed(start):
            times.append(time.perf_counter())
            yield batch

    result = Fit(
        steps=options.steps,
        directory=folder / "fit",
        optimizer=adamw(learning_rate=1e-4),
        checkpoint_period=None,
        show=False,
    )(model.graphdef(), model.params, Listwise(softmax_cross_entropy), watched)
    clock = [record["time"] for record in result.history]
    return options.batch / float(np.median(np.diff(clock[1:])))


if __name__ == "__main__":
    main()
