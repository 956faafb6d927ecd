"""What tests of whole jobs share: quick compilation, a fake LLM, a toy collection."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from distill_jax.models import encoder_sizes, t5_sizes
from tests.teaching.fake_llm import FakeLLM


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    """Where programs that were compiled once are kept, for later jobs and processes."""
    return tmp_path_factory.mktemp("programs")


def smallest(patch: pytest.MonkeyPatch) -> None:
    """Makes the sizes named "tiny" smaller still: unoptimised programs are slow."""
    t5 = dataclasses.replace(
        t5_sizes.SIZES["tiny"], d_model=32, d_ff=64, heads=2, d_kv=16, encoder_layers=1
    )
    patch.setitem(t5_sizes.SIZES, "tiny", t5)
    patch.setitem(encoder_sizes._SIZES, "bert-tiny", (32, 64, 2, 2, 32))


@pytest.fixture(scope="module")
def compiles_fast(programs):
    """Programs that differ in nothing are compiled once, and without much effort."""
    patch = pytest.MonkeyPatch()
    smallest(patch)
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()  # it is decided once whether there is one
    yield
    patch.undo()
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def llm():
    with FakeLLM() as server:
        yield server


def write_toy(folder: Path, *, docs: int = 40, train: int = 16, test: int = 8) -> Path:
    """A BEIR folder of invented sentences: a query is some words of its document."""
    random = np.random.default_rng(0)
    sounds = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
    words = ["".join(random.choice(sounds, random.integers(2, 4))) for _ in range(120)]
    texts = [list(random.choice(words, 10)) for _ in range(docs)]
    (folder / "qrels").mkdir(parents=True)
    with open(folder / "corpus.jsonl", "w") as file:
        for number, text in enumerate(texts):
            doc = {"_id": f"d{number}", "title": "", "text": " ".join(text)}
            file.write(json.dumps(doc) + "\n")
    with open(folder / "queries.jsonl", "w") as file:
        for number in range(train + test):
            asked = " ".join(random.choice(texts[number], 3, replace=False))
            file.write(json.dumps({"_id": f"q{number}", "text": asked}) + "\n")
    for name, numbers in (
        ("train", range(train)),
        ("test", range(train, train + test)),
    ):
        lines = [f"q{number}\td{number}\t1" for number in numbers]
        text = "\n".join(["query-id\tcorpus-id\tscore", *lines])
        (folder / f"qrels/{name}.tsv").write_text(text + "\n")
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> str:
    """The toy collection as a recipe names it."""
    return f"beir:{write_toy(tmp_path_factory.mktemp('toy') / 'toy')}"
