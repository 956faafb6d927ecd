"""One training beside Representax and sentence-transformers: losses and seconds a step.

    pip install representax equinox grain && python tools/bench_training.py

MiniLM learns title - abstract pairs by in-batch contrast (scale 20) with AdamW, in
float32 and without dropout, so that all sides should have one loss curve: the same
texts in the same batches, cut at the same length. The sides take turns step by step in
one process. A step that meets new shapes compiles: the best step shows a long job, all
of them a short one. A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import bench_encoder
import jax
import numpy as np

RATE, SCALE = 2e-5, 20.0
Step = Callable[[list[str], list[str]], float]
"""Trains on titles and texts, and gives the loss before its update."""


def sentence_transformers(length: int) -> Step:
    import torch
    from sentence_transformers.sentence_transformer.losses import (
        MultipleNegativesRankingLoss,
    )

    model = bench_encoder.library_model("float32")
    model.max_seq_length = length
    model.eval()  # no dropout; gradients flow all the same
    loss_of = MultipleNegativesRankingLoss(model, scale=SCALE)
    adamw = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    prepare = getattr(model, "preprocess", None) or model.tokenize

    def step(titles: list[str], texts: list[str]) -> float:
        adamw.zero_grad()
        loss = loss_of([dict(prepare(titles)), dict(prepare(texts))], None)
        loss.backward()
        adamw.step()
        return loss.item()

    return step


def representax(length: int) -> Step:
    import equinox as eqx
    import optax
    from representax.core import Route  # pyright: ignore
    from representax.integrations import (  # pyright: ignore
        load_sentence_transformer,
    )
    from representax.tasks.retrieval import (  # pyright: ignore
        MNRTask,
        retrieval_batch,
    )
    from representax.train import (  # pyright: ignore
        build_train_step,
        init_train_state,
    )

    from distill_jax.text.buckets import buckets_up_to
    from distill_jax.weights.places import locate

    loaded = load_sentence_transformer(
        locate(bench_encoder.MINILM), sequence_length_buckets=buckets_up_to(length)
    )
    optimizer = optax.adamw(RATE, weight_decay=0.0)
    trained = build_train_step(
        MNRTask(scale=SCALE), optimizer, max_grad_norm=None, donate_state=True
    )
    state = [init_train_state(eqx.nn.inference_mode(loaded.model), optimizer)]

    def step(titles: list[str], texts: list[str]) -> float:
        batch = retrieval_batch(
            query=loaded.processor(titles, route=Route.QUERY),
            document=loaded.processor(texts, route=Route.DOCUMENT),
            positive_mask=np.eye(len(titles), dtype=bool),
        )
        result = trained(state[0], batch, None)
        state[0] = result.state
        return float(result.metrics.loss)

    return step


def distill_jax(length: int) -> Step:
    import distill_jax as package
    from distill_jax.models.pretrained import graphdef_of
    from distill_jax.runtime.sharding import make_mesh
    from distill_jax.text.buckets import bucket_of, buckets_up_to
    from distill_jax.training import optimizers, state, step

    model = package.load(bench_encoder.MINILM).pretrained
    optimizer = optimizers.adamw(learning_rate=RATE, weight_decay=0.0, clip=None)
    holder = [state.create(model.params, optimizer, make_mesh(), 0)]
    gradient = step.make_gradient(graphdef_of(model.spec), bench_encoder.objective())
    jitted = jax.jit(
        lambda held, batch: step.train_step(
            held, batch, gradient=gradient, optimizer=optimizer, dropout=False
        ),
        donate_argnums=0,
    )

    buckets = buckets_up_to(length)

    def tokens(texts: list[str]) -> np.ndarray:
        rows = [model.tokenizer.encode(text)[: length - 2] for text in texts]
        width = bucket_of(max(map(len, rows)) + 2, buckets)
        made = np.full((len(rows), width), model.tokenizer.pad_id, np.int32)
        for row, ids in zip(made, rows):
            row[: len(ids) + 2] = [model.tokenizer.cls_id, *ids, model.tokenizer.sep_id]
        return made

    def one(titles: list[str], texts: list[str]) -> float:
        batch = bench_encoder.dual_batch(tokens(titles), tokens(texts)[:, None])
        holder[0], numbers = jitted(holder[0], batch)
        return float(numbers["loss"])

    return one


SIDES = (sentence_transformers, representax, distill_jax)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collection", help="as a recipe names it")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    shared = Path(os.environ.get("DISTILL_JAX_SHARED", "../shared"))
    if options.collection is None and (shared / "collections/scifact").is_dir():
        options.collection = f"beir:{shared / 'collections/scifact'}"
    count = options.steps * options.batch
    titles, texts = bench_encoder.texts_of(options.collection, count)
    sides = [side for side in SIDES if importlib.util.find_spec(side.__name__)]
    begun, steps = [], []
    for side in sides:
        start = time.perf_counter()
        steps.append(side(options.length))
        begun.append(time.perf_counter() - start)
    losses = np.zeros((options.steps, len(sides)))
    seconds = np.zeros_like(losses)
    print(f"loss of {', '.join(side.__name__ for side in sides)}")
    for number in range(options.steps):
        rows = slice(number * options.batch, (number + 1) * options.batch)
        for column, step in enumerate(steps):
            start = time.perf_counter()
            losses[number, column] = step(titles[rows], texts[rows])
            seconds[number, column] = time.perf_counter() - start
        print(f"{number:3d} " + " ".join(f"{x:.5f}" for x in losses[number]))
    print(f"greatest distance of two curves {np.ptp(losses, axis=1).max():.1e}")
    for column, side in enumerate(sides):
        later = seconds[1:, column].min()
        print(
            f"{side.__name__:<22} load {begun[column]:5.1f} s, first step "
            f"{seconds[0, column]:5.1f} s, best of the others {later:5.2f} s, all "
            f"{begun[column] + seconds[:, column].sum():6.1f} s"
        )


if __name__ == "__main__":
    main()
