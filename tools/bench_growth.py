"""CPU time and memory of each stage on the host as a collection grows, as a table.

    python tools/bench_growth.py [--sizes 20000,80000,320000] [--only bm25]

Documents of 56 words are drawn (Zipf's law, seeded) and written as a BEIR folder with a
training query for each 20. Each stage runs in a process of its own, from files, at each
size; the clock is that process's CPU time, the memory what it holds more at its peak.
The exponent is fitted over all sizes: 1 is linear. From the last size the time is
extended by it (by 1 where it is lower), the memory in proportion, to 8.8 million
documents (MS MARCO) and 100 million. Searches are of a fixed number of queries.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ["JAX_PLATFORMS"] = "cpu"

WORDS = 56
SHARE = 20  # documents a training query
DEPTH = 30  # candidates of a list
SEARCHES = 200
WIDTH = 128
LARGER = {"8.8M": 8_800_000, "100M": 100_000_000}


def write_collection(folder: Path, size: int) -> None:
    random = np.random.default_rng(size)
    known = np.array([f"w{n:x}" for n in range(200_000)])
    (folder / "qrels").mkdir(parents=True)

    def text(words: int) -> str:
        drawn = np.minimum(random.zipf(1.3, words), len(known)) - 1
        return " ".join(known[drawn])

    with (folder / "corpus.jsonl").open("w") as file:
        for row in range(size):
            item = {"_id": f"doc{row}", "title": "", "text": text(WORDS)}
            file.write(json.dumps(item) + "\n")
    with (
        (folder / "queries.jsonl").open("w") as queries,
        (folder / "qrels" / "train.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for row in range(size // SHARE):
            queries.write(json.dumps({"_id": f"q{row}", "text": text(6)}) + "\n")
            qrels.write(f"q{row}\tdoc{row * SHARE}\t1\n")


Stage = Callable[[], Any]


def loaded(folder: Path) -> tuple[Any, Any, Any]:
    from distill_jax.collections.schemes import load_collection

    return load_collection(f"beir:{folder}", "train")


def read(folder: Path) -> Stage:
    from distill_jax.collections import beir  # noqa: F401 (not of the clock)

    return lambda: loaded(folder)


def tokenise(folder: Path) -> Stage:
    from distill_jax.text.token_store import TokenStore
    from distill_jax.text.tokenizer import Tokenizer

    texts = loaded(folder)[0].full_texts()
    tokenizer = Tokenizer.train_wordpiece(texts[:2000], 2000)
    return lambda: TokenStore.build(texts, tokenizer, folder / "tokens")


def bm25_build(folder: Path) -> Stage:
    from distill_jax.retrieval import BM25

    collection = loaded(folder)[0]
    return lambda: BM25.build(collection)


def bm25_search(folder: Path) -> Stage:
    from distill_jax.retrieval import BM25

    collection, queries, _ = loaded(folder)
    index, few = BM25.build(collection), queries.select(range(SEARCHES))
    return lambda: index.search(few, 100)


def exact_search(folder: Path) -> Stage:
    from distill_jax.retrieval import Exact

    size = len(loaded(folder)[0])
    docs = np.random.default_rng(0).standard_normal((size, WIDTH), np.float32)
    queries = docs[:SEARCHES] + np.float32(0.1)
    Exact.build(docs[:1000]).search(queries, 100)  # compiles most of it
    return lambda: Exact.build(docs).search(queries, 100)


def candidates(folder: Path) -> tuple[Any, Any, Any, Any]:
    """(collection, queries, qrels, a run of drawn documents)."""
    from distill_jax.runs.run import Run

    collection, queries, qrels = loaded(folder)
    random = np.random.default_rng(0)
    rows = random.integers(0, len(collection), (len(queries), 2 * DEPTH))
    rows.sort(axis=1)
    # Each once: what is drawn twice moves up to the next place that is free.
    rows = np.maximum.accumulate(rows - np.arange(2 * DEPTH), axis=1)
    rows = np.clip(rows, 0, len(collection) - 2 * DEPTH) + np.arange(2 * DEPTH)
    scores = np.sort(random.standard_normal(rows.shape).astype(np.float32))[:, ::-1]
    return collection, queries, qrels, Run(queries.ids, rows, scores, collection.ids)


def labels(folder: Path) -> Stage:
    from distill_jax.labels.labels import TeacherLabels

    collection, queries, _, run = candidates(folder)
    rows, scores = run.rows[:, :DEPTH], run.scores[:, :DEPTH]

    def work() -> Any:
        made = TeacherLabels(tuple(queries.ids), rows, scores, collection.ids)
        made.write(folder / "labels")
        return TeacherLabels.read(folder / "labels", collection=collection)

    return work


def mined_lists(folder: Path) -> Stage:
    from distill_jax.lists.building import lists_from_judgements
    from distill_jax.lists.negatives import filter_negatives

    collection, queries, qrels, run = candidates(folder)

    def work() -> Any:
        kept = filter_negatives(
            run, qrels=qrels, collection=collection, queries=queries
        ).run
        return lists_from_judgements(kept, qrels, queries, collection, size=8)

    return work


STAGES: dict[str, Callable[[Path], Stage]] = {
    "read": read,
    "tokenise": tokenise,
    "BM25, build": bm25_build,
    f"BM25, {SEARCHES} queries": bm25_search,
    f"exact index, {SEARCHES} queries": exact_search,
    f"labels of {DEPTH}, written and read": labels,
    "mined lists": mined_lists,
}


# Their results stay in the folder, or they are long beside what starts them.
ONCE = ("read", "tokenise", "BM25, build")


def measured(name: str, folder: str, results: Any) -> None:
    work = STAGES[name](Path(folder))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = memory("VmRSS"), time.process_time()
    kept = work()
    held = memory("VmHWM") - before
    if name not in ONCE:  # without imports and compilation
        began = time.process_time()
        kept = work()
    seconds = time.process_time() - began
    results.put((seconds, max(0, held)))
    del kept


def memory(what: str) -> int:
    """Bytes of this process by the kernel's name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) << 10


def row(name: str, sizes: list[int], found: list[tuple[float, int]]) -> str:
    seconds = np.array([one[0] for one in found])
    held = np.array([one[1] for one in found])
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    cells = [name]
    cells += [f"{s / n * 1e6:.1f}" for s, n in zip(seconds, sizes)]
    cells += [f"{h / n:,.0f}" for h, n in zip(held, sizes)]
    cells.append(f"{exponent:.2f}")
    for size in LARGER.values():
        # Never below linear: what falls is a constant.
        minutes = seconds[-1] * (size / sizes[-1]) ** max(1.0, exponent) / 60
        cells.append(f"{minutes:,.1f} min, {held[-1] / sizes[-1] * size / 2**30:,.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="20000,80000,320000")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["DISTILL_JAX_CACHE"] = f"{temporary}/cache"
        for size in sizes:
            write_collection(Path(temporary, str(size)), size)
        heads = ["stage", *(f"µs a document at {size:,}" for size in sizes)]
        heads += [f"bytes at {size:,}" for size in sizes] + ["exponent"]
        heads += [f"{name}: CPU, GiB" for name in LARGER]
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name in STAGES:
            if options.only not in name:
                continue
            found = []
            for size in sizes:
                results = spawned.Queue()
                arguments = (name, f"{temporary}/{size}", results)
                process = spawned.Process(target=measured, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{name} at {size} ended with {process.exitcode}")
                found.append(results.get())
            print(row(name, sizes, found), flush=True)


if __name__ == "__main__":
    main()
