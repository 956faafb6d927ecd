"""Labelling beside ``sentence_transformers.CrossEncoder.predict``, same weights.

    python tools/bench_labelling.py [--collection beir:PATH] [--queries 32] [--depth 20]

A BERT cross-encoder of MiniLM's shape with random weights is exported, read by
sentence-transformers, and both score the same BM25 candidates in one process, turn by
turn. Ours is timed from the run to Parquet files, tokenising included; theirs from
pairs of strings to an array. The last line gives the best dtype of each side. On a
GPU: ``--shape bert-base --dtypes bfloat16``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import side_by_side

from distill_jax.collections.collection import Queries
from distill_jax.models.encoder_sizes import bert_sizes
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.models.reranker import RerankerSpec
from distill_jax.teaching.scorers import label_run
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collection", default="pydocs")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--shape", default="minilm-l6")
    parser.add_argument("--dtypes", default="float32,bfloat16,int8")
    parser.add_argument("--doc-length", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def reranker(options: argparse.Namespace, texts: list[str]) -> Pretrained:
    """Random weights over a vocabulary of the collection."""
    tokenizer = Tokenizer.train_wordpiece(texts, 8000)
    backbone = bert_sizes(
        options.shape,
        vocab_size=-(-tokenizer.vocab_size // 128) * 128,
        pad_id=tokenizer.pad_id,
        sep_id=tokenizer.sep_id,
    )
    spec = RerankerSpec(
        backbone=backbone,
        head="bert_classifier",
        query_length=48,
        doc_length=options.doc_length,
    ).resolved(tokenizer)
    return Pretrained(spec, initial_params(spec, 0), tokenizer)


def run(options: argparse.Namespace, folder: Path) -> None:
    import torch
    from sentence_transformers import CrossEncoder

    from distill_jax import export
    from distill_jax.collections.schemes import load_collection
    from distill_jax.retrieval import BM25

    docs, queries, _ = load_collection(options.collection, split="test")
    queries = queries.select(np.arange(min(options.queries, len(queries))))
    candidates = BM25.build(docs).search(queries, options.depth)
    model = reranker(options, list(docs.full_texts()))
    # Only what is asked about is tokenised, as on the other side.
    docs = docs.select(np.unique(candidates.rows[candidates.where]))
    candidates = candidates.on(docs)
    export.write(model, folder / "model", library=False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pairs = [
        (queries.texts[row], docs.full_text(int(doc)))
        for row in range(len(queries))
        for doc in candidates.rows[row]
        if doc >= 0
    ]

    def ours(dtype: str) -> np.ndarray:
        shutil.rmtree(folder / "labels", ignore_errors=True)
        read = features(models[dtype], queries, docs)
        labels = label_run(models[dtype], read, queries, candidates, folder / "labels")
        return labels.scores[labels.where]

    def predict(dtype: str) -> np.ndarray:
        found = theirs[dtype].predict(pairs, batch_size=32, show_progress_bar=False)
        return np.asarray(found, np.float32)

    models, theirs = {}, {}
    their_dtypes, our_dtypes = side_by_side.dtypes_of(options.dtypes)
    for dtype in our_dtypes:
        backbone = dataclasses.replace(model.spec.backbone, dtype=dtype)
        spec = dataclasses.replace(model.spec, backbone=backbone)
        models[dtype] = model.replace(spec=spec)
    for dtype in their_dtypes:
        how = {"dtype": getattr(torch, dtype)}
        theirs[dtype] = CrossEncoder(str(folder / "model"), model_kwargs=how)
    if "float32" in models:
        exact = ours("float32")
        for dtype in models:
            gap = np.abs(ours(dtype) - exact).max() / exact.std()
            print(
                f"{dtype}: off by {gap:.1e} standard deviations of our scores at most"
            )
    print(f"{len(pairs)} pairs, {options.shape}")
    print("(sentence-transformers cuts the joined text, we cut the document)")
    best = side_by_side.race(
        "sentence-transformers",
        "label",
        len(pairs),
        options.rounds,
        {dtype: functools.partial(predict, dtype) for dtype in theirs},
        {dtype: functools.partial(ours, dtype) for dtype in models},
    )
    print(best)


def features(model: Pretrained, queries: Queries, docs) -> Features:
    """Tokenised anew each time: the clock includes it."""
    return Features(
        model.spec.template,
        model.tokenizer,
        query=TokenStore.build(queries.texts, model.tokenizer),
        document=TokenStore.build(docs.full_texts(), model.tokenizer),
    )


if __name__ == "__main__":
    main()
