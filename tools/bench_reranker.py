"""T5 rerankers beside transformers: pairs a second of scoring and training, MFU.

    python tools/bench_reranker.py                                    # CPU, T5-small
    python tools/bench_reranker.py --parts mfu --models large:180,large:512,3b:180

Both sides run in one process on the same threads and the same token ids, turn by turn,
so that a noisy neighbour slows both. Lengths are those of a collection's judged pairs,
or drawn like MS MARCO's (mean 68, 95th percentile 112 tokens). Wall times are the best
of the rounds; CPU seconds count all threads and hardly feel neighbours.

Scoring: ours computes one decoder step with absorbed cross-attention in length buckets;
transformers pads batches of 32, once as they come and once sorted by length. Training:
one step (forward, backward, AdamW, dropout 0.1) on the same padded batch. XLA for CPUs
gains nothing from bfloat16, and transformers has no int8 of its own: the last lines
give the best dtype of each side.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import side_by_side
from flax import nnx

from distill_jax.batches import PairBatch, Targets
from distill_jax.inference import forward
from distill_jax.losses import pointwise_cross_entropy
from distill_jax.losses.mixture import Mixture, Term
from distill_jax.models import t5
from distill_jax.models.pretrained import Pretrained, graphdef_of, initial_params
from distill_jax.models.reranker import RerankerSpec
from distill_jax.runtime.sharding import make_mesh
from distill_jax.text.buckets import ladder, plan, waste
from distill_jax.training import optimizers, step
from distill_jax.training import state as states

WORDS = (1176, 6136)


race = functools.partial(side_by_side.race, "transformers")


def sequences(collection: str | None, count: int, vocab_size: int) -> list[np.ndarray]:
    """Token ids of pairs: of a collection's judged documents, or of drawn lengths."""
    rng = np.random.default_rng(0)
    if collection is None:
        # Log-normal, matched to the MS MARCO pairs that the docstring describes.
        lengths = np.clip(np.exp(rng.normal(4.17, 0.31, count)), 20, 191)
    else:
        from distill_jax.collections.schemes import load_collection

        docs, queries, qrels = load_collection(collection, split="test")
        pairs = [(q, d) for q in qrels.query_ids for d in qrels.of(q)][:count]
        words = [
            len(queries.texts[queries.row(q)].split())
            + len(docs.full_text(docs.row(d)).split())
            for q, d in pairs
        ]
        # 1.35 pieces a word is what T5's vocabulary makes of English; a prompt is 7.
        lengths = np.minimum(np.asarray(words) * 1.35 + 7, 231)
    return [
        rng.integers(2, vocab_size, int(length)).astype(np.int32) for length in lengths
    ]


def padded(rows: list[np.ndarray], length: int | None = None) -> np.ndarray:
    out = np.zeros((len(rows), length or max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def their_model(sizes: t5.T5Sizes, dtype: str) -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = T5Config(
        vocab_size=sizes.vocab_size,
        d_model=sizes.d_model,
        d_ff=sizes.d_ff,
        d_kv=sizes.d_kv,
        num_heads=sizes.heads,
        num_layers=sizes.encoder_layers,
        num_decoder_layers=sizes.decoder_layers,
        feed_forward_proj="gated-gelu" if sizes.gated else "relu",
        dropout_rate=sizes.dropout,
    )
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model: Any = T5ForConditionalGeneration(config)
    return model.to(device=device, dtype=getattr(torch, dtype))


def their_logits(model: Any, tokens: np.ndarray) -> Any:
    """z_true - z_false at the first decoder step, as users of transformers do it."""
    import torch

    ids = torch.from_numpy(tokens).long().to(model.device)
    start = torch.zeros((len(ids), 1), dtype=torch.long, device=model.device)
    out = model(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        decoder_input_ids=start,
        use_cache=False,
    )
    return out.logits[:, 0, WORDS[0]] - out.logits[:, 0, WORDS[1]]


def score(
    sizes: t5.T5Sizes, rows: list[np.ndarray], dtypes: str, rounds: int, most: int
) -> str:
    """Pairs of real lengths to scores, ``most`` padded tokens at once of ours."""
    import torch

    lengths = np.asarray([len(row) for row in rows])
    batches = plan(lengths, most, ladder(lengths, 10))
    first = RerankerSpec(backbone=sizes, word_ids=WORDS)
    weights = initial_params(first, 0)

    def ours(dtype: str) -> Callable[[], None]:
        spec = RerankerSpec(backbone=sizes.replace(dtype=dtype), word_ids=WORDS)
        apply = forward.applied(spec, "pairs", None)
        no_texts: Any = None  # ids are scored
        params = forward.placed(Pretrained(spec, weights, tokenizer=no_texts))

        def run() -> None:
            waiting = []
            for batch in batches:
                index = np.where(batch.where, batch.rows, batch.rows[0])
                taken = padded([rows[i] for i in index], batch.length)
                waiting.append(apply(params, taken))
            jax.block_until_ready(waiting)

        return run

    def theirs(model: Any, order: np.ndarray) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for i in range(0, len(order), 32):
                    taken = [rows[j] for j in order[i : i + 32]]
                    their_logits(model, padded(taken)).cpu()

        return run

    print(
        f"{len(rows)} pairs, {lengths.mean():.0f} tokens on average, padding "
        f"{waste(batches, lengths):.1%} in {len({b.length for b in batches})} shapes"
    )
    peers = {}
    their_dtypes, our_dtypes = side_by_side.dtypes_of(dtypes)
    for dtype in their_dtypes:
        model = their_model(sizes, dtype).eval()
        peers[f"{dtype}, as they come"] = theirs(model, np.arange(len(rows)))
        peers[f"{dtype}, sorted by length"] = theirs(model, np.argsort(-lengths))
    mine = {dtype: ours(dtype) for dtype in our_dtypes}
    return race("score", len(rows), rounds, peers, mine)


def objective() -> Mixture:
    return Mixture((Term("relevance", pointwise_cross_entropy),))


def pair_batch(tokens: np.ndarray, queries: int) -> PairBatch:
    tokens = tokens.reshape(queries, -1, tokens.shape[-1])
    labels = np.zeros(tokens.shape[:2], np.float32)
    labels[:, 0] = 1
    where = jnp.ones(tokens.shape[:2], bool)
    return PairBatch(
        tokens=jnp.asarray(tokens),
        targets=Targets(labels=jnp.asarray(labels), where=where),
    )


def stepper(
    spec: RerankerSpec, batch: PairBatch, optimizer: Any, dropout: bool
) -> Callable[[], None]:
    """A function that trains one step further and waits for it."""
    state = states.create(initial_params(spec, 0), optimizer, make_mesh("data=1"), 0)
    holder = [state]
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


def train(
    sizes: t5.T5Sizes, rows: list[np.ndarray], dtypes: str, rounds: int, size: int
) -> str:
    """One step on ``size`` lists of four, the very same padded tokens on both sides."""
    tokens = padded(rows[: 4 * size])
    their_dtypes, our_dtypes = side_by_side.dtypes_of(dtypes, trained=True)
    sides = {dtype: steps_of(sizes, tokens, size, dtype) for dtype in their_dtypes}
    theirs = {dtype: sides[dtype][0] for dtype in their_dtypes}
    ours = {dtype: sides[dtype][1] for dtype in our_dtypes}
    what = f"train, {len(tokens)} x {tokens.shape[1]}"
    return race(what, len(tokens), rounds, theirs, ours)


def steps_of(
    sizes: t5.T5Sizes, tokens: np.ndarray, size: int, dtype: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Their step and ours; in bfloat16 theirs by autocast, as users train."""
    import torch

    model = their_model(sizes, "float32").train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(tokens), device=model.device)
    labels[::4] = 1

    def theirs() -> None:
        adamw.zero_grad()
        kind = model.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = their_logits(model, tokens).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        loss.item()

    spec = RerankerSpec(backbone=sizes.replace(dtype=dtype), word_ids=WORDS)
    optimizer = optimizers.adamw(learning_rate=1e-4)
    return theirs, stepper(spec, pair_batch(tokens, size), optimizer, dropout=True)


def matmul_rate(size: int, dtype: str) -> float:
    """FLOP/s of a square product: what this device can do at best, in this run."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda x: x @ x)
    clock = side_by_side.turns(5, lambda: multiply(x).block_until_ready())[0]
    return 2.0 * size**3 / clock.wall


def mfu(models: list[str], tokens: int, rounds: int, remat: str) -> None:
    """FLOPs that are computed, over time, as a share of the matmul rate.

    Absorbed cross-attention computes less than the plain form; the saved products are
    not counted. Nor is what is computed twice under ``remat``.
    """
    gpu = jax.default_backend() == "gpu"
    dtype = "bfloat16" if gpu else "float32"
    peak = matmul_rate(8192 if gpu else 2048, dtype)
    device = jax.devices()[0].device_kind
    print(f"matmul {dtype}: {peak / 1e12:.2f} TFLOP/s on {device}", flush=True)
    for model in models:
        name, _, length = model.partition(":")
        length = int(length or 180)
        sizes = t5.sizes(name, dtype=dtype, remat=remat)
        spec = RerankerSpec(backbone=sizes, word_ids=WORDS)
        size = max(2, tokens // length)
        rng = np.random.default_rng(0)
        ids = rng.integers(2, sizes.vocab_size, (size, length)).astype(np.int32)
        graph, params = graphdef_of(spec), initial_params(spec, 0)
        apply = jax.jit(
            lambda params, ids, graph=graph: nnx.merge(graph, nnx.State(params)).score(
                ids
            )
        )
        ids_there = jnp.asarray(ids)

        def scoring(apply=apply, params=params, ids=ids_there) -> None:
            apply(params, ids).block_until_ready()

        flops = sizes.forward_flops(length) * size
        seconds = side_by_side.turns(rounds, scoring)[0].wall
        _mfu_line(f"score {model}", size, flops, seconds, peak)
        del params, scoring
        optimizer = optimizers.adafactor(learning_rate=1e-4)
        run = stepper(spec, pair_batch(ids, size), optimizer, dropout=False)
        seconds = side_by_side.turns(rounds, run)[0].wall
        _mfu_line(f"train {model}", size, 3 * flops, seconds, peak)


def _mfu_line(what: str, size: int, flops: float, seconds: float, peak: float) -> None:
    rate = flops / seconds
    print(
        f"{what:<20} {size:5d} pairs {size / seconds:9.1f}/s {rate / 1e12:8.2f} TFLOP/s"
        f" = {rate / peak:.0%} of the matmul",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="score,train,mfu")
    parser.add_argument("--model", default="small", help="a name of t5.SIZES")
    parser.add_argument("--collection", help="e.g. beir:../shared/collections/scifact")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--queries", type=int, default=8, help="lists of 4, a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32,bfloat16,int8")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--models", help="MFU: name:length,... (default: --model)")
    parser.add_argument("--tokens", type=int, help="MFU: tokens a step")
    parser.add_argument("--remat", default="none")
    flags = parser.parse_args()
    gpu = jax.default_backend() == "gpu"
    print(f"{jax.default_backend()}, {len(os.sched_getaffinity(0))} CPU threads")
    parts = flags.parts.split(",")
    sizes = t5.sizes(flags.model)
    rows = sequences(flags.collection, flags.pairs, sizes.vocab_size)
    best = []
    if "score" in parts:
        best.append(score(sizes, rows, flags.dtypes, flags.rounds, flags.batch_tokens))
    if "train" in parts:
        best.append(train(sizes, rows, flags.dtypes, flags.rounds, flags.queries))
    if "mfu" in parts:
        models = (flags.models or f"{flags.model}:180").split(",")
        tokens = flags.tokens or (65536 if gpu else 2880)
        mfu(models, tokens, flags.rounds, flags.remat)
    for line in best:
        print(line)


if __name__ == "__main__":
    main()
