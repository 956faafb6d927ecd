"""Stages on the host over Ray's workers: what they leave is that of one process."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from distill_jax import main
from distill_jax.cli.flags import parse_flags
from distill_jax.collections.schemes import load_collection
from distill_jax.io import engine
from distill_jax.io.errors import UserError
from distill_jax.lists.dedup import near_duplicates
from distill_jax.retrieval import BM25
from distill_jax.synthesis.crop import crop
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer
from tests.io.shard_functions import (
    always_dies,
    dies_once,
    in_which_process,
    mortal,
    refuses,
)

WORKERS = 3


@pytest.fixture(scope="module")
def cluster():
    """Workers of this machine, as many as there would be on a larger one."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=WORKERS,
        log_to_driver=False,
        include_dashboard=False,
        object_store_memory=100 << 20,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def by_ray(cluster):
    engine.choose("ray")
    yield cluster
    engine.choose("local")


def flat(parts) -> list[int]:
    return [number for part in parts for number in part]


def test_results_come_in_order_from_several_processes(by_ray, tmp_path):
    shards = list(engine.shards_of(range(100), 7))
    work = functools.partial(in_which_process, str(tmp_path))
    found = list(engine.over_shards(work, map(list, shards)))
    assert flat(part for _, part in found) == [n * n for n in range(100)]
    processes = {process for process, _ in found}
    assert len(processes) > 1
    assert os.getpid() not in processes


def test_a_killed_worker_costs_its_shard_only(by_ray, tmp_path):
    work = functools.partial(dies_once, str(tmp_path))
    shards = map(list, engine.shards_of(range(20), 3))
    assert flat(engine.over_shards(work, shards)) == [n * n for n in range(20)]
    assert (tmp_path / "killed").exists()


def test_a_mistake_of_the_user_is_told_as_in_one_process(by_ray):
    shards = map(list, engine.shards_of(range(20), 3))
    with pytest.raises(UserError, match="line 5: no number\nwrite one") as caught:
        list(engine.over_shards(refuses, shards))
    assert type(caught.value) is UserError


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_ends_the_job(by_ray):
    with pytest.raises(UserError, match="a shard was lost 6 times"):
        list(engine.over_shards(always_dies, [[1]]))


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match=r"no engine 'rayy' \(did you mean"):
        main.build_job(
            parse_flags(["--gin_file=synthesize.gin", "--gin.ENGINE='rayy'"])
        )


def write_corpus(folder: Path, documents: int) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(300)] + ["The", "running", "is", "Ärger", "東京"]
    (folder / "qrels").mkdir(parents=True)
    texts = [
        " ".join(rng.choice(words, rng.integers(0, 40))) + "." for _ in range(documents)
    ]
    texts[7] = texts[3]
    with (folder / "corpus.jsonl").open("w") as file:
        for row, text in enumerate(texts):
            item = {"_id": f"d{row}", "title": f"t{row % 5}", "text": text}
            file.write(json.dumps(item) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "word1"}\n')
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq\td0\t1\n"
    )


def made(folder: Path, corpus: Path) -> dict[str, bytes]:
    """Files of every stage, by name."""
    docs, _, _ = load_collection(f"beir:{corpus}", "train")
    tokenizer = Tokenizer.train_wordpiece(docs.full_texts()[:200], 400)
    TokenStore.build(docs.full_texts(), tokenizer, folder / "tokens")
    BM25.build(docs).save(folder / "bm25")
    near_duplicates(docs.texts).write(folder / "duplicates.tsv", docs.ids)
    crop(docs, per_doc=2).write(folder / "cropped", docs)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".gz"
    }


@pytest.mark.parametrize("kills", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_files_of_every_stage_are_those_of_one_process(
    by_ray, tmp_path, monkeypatch, kills
):
    """Reading, tokenising, BM25, near-duplicates and cropping, in many shards each.

    With kills, a worker of each of them dies with a shard in its hands.
    """
    for module in ("text.token_store._CHUNK_TEXTS", "retrieval.lexical._SHARD"):
        monkeypatch.setattr(f"distill_jax.{module}", 50)
    for module in ("lists.dedup._SHARD", "synthesis.crop._SHARD"):
        monkeypatch.setattr(f"distill_jax.{module}", 30)
    monkeypatch.setattr("distill_jax.io.bad_lines._SHARD", 10_000)
    write_corpus(tmp_path / "corpus", 500)
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(engine, "_applied", mortal(str(marks), kills))
    by_workers = made(tmp_path / "ray", tmp_path / "corpus")
    done = [path.name.split(".") for path in marks.iterdir()]
    stages = {"_read", "_chunk", "_counted", "_normalised", "_cropped"}
    assert {stage for stage, *_ in done} == stages
    killed = {stage for stage, kind, *_ in done if kind == "killed"}
    assert killed == (stages if kills else set())
    assert len([1 for _, kind, *_ in done if kind == "done"]) > 60
    engine.choose("local")
    alone = made(tmp_path / "local", tmp_path / "corpus")
    assert len(alone) > 12
    assert by_workers == alone
