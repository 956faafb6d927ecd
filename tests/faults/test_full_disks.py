"""A disk that fills up ends a job with the file's name; nothing is half-written.

A limit on the size of files stands for the full disk: writes beyond it fail as those
to a full disk do (``EFBIG`` for ``ENOSPC``), in every library, at any byte.
"""

from __future__ import annotations

import contextlib
import importlib.util
import resource
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax import main
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.store import LabelWriter
from distill_jax.retrieval import BM25
from distill_jax.runtime import sharding
from distill_jax.runtime.compile_cache import use_compile_cache
from distill_jax.teaching.cache import ScoreCache
from distill_jax.teaching.clients import Client, Request
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.training import checkpoints, optimizers
from distill_jax.training.loop import Fit
from tests.teaching.fake_llm import FakeLLM

_toy = Path(__file__).parent.parent / "training" / "toy.py"
_spec = importlib.util.spec_from_file_location("toy", _toy)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@contextlib.contextmanager
def full_beyond(size: int):
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_file_keeps_its_old_content(tmp_path, name):
    with atomic_write(tmp_path / name) as out:
        out.write("old")
    before = everything(tmp_path)
    random = np.random.default_rng(0)
    text = random.bytes(200_000).hex()
    with (
        full_beyond(10_000),
        pytest.raises(UserError) as caught,
        atomic_write(tmp_path / name) as out,
    ):
        out.write(text)
    assert str(tmp_path / name) in str(caught.value)
    assert "10,000 bytes" in str(caught.value)
    assert everything(tmp_path) == before


def labels(number: int, docs: int) -> TeacherLabels:
    random = np.random.default_rng(number)
    return TeacherLabels(
        (f"q{number}",),
        np.arange(docs, dtype=np.int32)[None],
        random.normal(size=(1, docs)).astype(np.float32),
        [f"d{row}" for row in range(docs)],
    )


def test_finished_shards_of_labels_stay(tmp_path):
    writer = LabelWriter(tmp_path, {"teacher": "t"})
    writer.write(labels(0, 10))
    before = everything(tmp_path)
    with full_beyond(20_000), pytest.raises(UserError, match=r"shard-00001\.parquet"):
        writer.write(labels(1, 50_000))
    assert everything(tmp_path) == before
    again = LabelWriter(tmp_path, {"teacher": "t"})
    assert again.done == {"q0"}
    again.write(labels(1, 50_000))
    again.finish()
    assert len(TeacherLabels.read(tmp_path)) == 2


def test_scores_that_are_known_stay_known(tmp_path):
    dtype = [("first", "<u8"), ("second", "<u8"), ("third", "<u8")]
    keys = np.zeros(5_000, dtype)
    keys["first"] = np.arange(5_000)
    cache = ScoreCache(tmp_path, "m")
    cache.add(keys[:10], np.ones(10))
    with full_beyond(20_000), pytest.raises(UserError, match=r"\.npz: no room for it"):
        cache.add(keys[10:], np.ones(4_990))
    assert len(ScoreCache(tmp_path, "m")) == 10


def test_a_half_made_store_of_tokens_is_none(tmp_path):
    tokenizer = Tokenizer.train_unigram(["a b c d e f g h"] * 4, 140)
    texts = ["a b c d e f g h"] * 3_000
    with full_beyond(8_192), pytest.raises(UserError, match="no room for it"):
        TokenStore.build(texts, tokenizer, tmp_path)
    assert everything(tmp_path) == {}
    assert len(TokenStore.build(texts, tokenizer, tmp_path)) == 3_000


def test_a_half_saved_index_is_none(tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefgh"), 6)) for _ in range(3_000)]
    index = BM25.build(texts)
    with full_beyond(8_192), pytest.raises(UserError, match="no room for it"):
        index.save(tmp_path)
    with pytest.raises(UserError, match="no index in"):
        BM25.load(tmp_path)
    index.save(tmp_path)
    assert BM25.load(tmp_path).search(["a b"], 3).rows.shape == (1, 3)


@pytest.fixture
def programs(tmp_path):
    """Each program is compiled once."""
    use_compile_cache(str(tmp_path / "programs"), least_seconds=0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def fit(directory, steps):
    graphdef, params = toy.student()
    run = Fit(
        steps=steps,
        directory=directory,
        optimizer=optimizers.adamw(learning_rate=1e-2),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        checkpoint_period=2,
        show=False,
    )
    feed = lambda start: (toy.batch(step) for step in range(start, steps))  # noqa: E731
    return run(graphdef, params, toy.LISTS, feed)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path, programs):
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "x", 2)
    before = everything(tmp_path / "x" / "checkpoints" / "2")
    # The parameters alone are 4 KiB, the log is less.
    with full_beyond(3_000), pytest.raises(UserError) as caught:
        fit(tmp_path / "x", 4)
    told = str(caught.value)
    assert str(tmp_path / "x" / "checkpoints" / "4") in told
    assert "free space" in told
    assert "the same command goes on from step 2" in told
    assert checkpoints.steps(tmp_path / "x" / "checkpoints") == [2]
    assert everything(tmp_path / "x" / "checkpoints" / "2") == before
    again = fit(tmp_path / "x", 4)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)


def test_replies_of_an_llm_are_paid_for_once(tmp_path, monkeypatch):
    """What did not fit was not answered in vain: it is asked again, the rest is not."""
    monkeypatch.setenv("NO_PROXY", "*")
    requests = [
        Request(id=f"t/{n}", messages=[{"role": "user", "content": f"Text: {n} {n}."}])
        for n in range(200)
    ]
    with FakeLLM() as llm:
        client = Client(base_url=llm.base_url, model="m")
        session = client.at(tmp_path)
        with full_beyond(100_000), pytest.raises(UserError) as caught:
            session.complete_all(requests)
        assert str(tmp_path) in str(caught.value)
        assert "free some space" in str(caught.value)
        paid = len(llm.calls)
        assert 0 < paid < 200
        again = client.at(tmp_path)
        replies = again.complete_all(requests)
        assert replies == [f"{n} {n}" for n in range(200)]
        # Of what was asked, only calls in flight when the disk was full were lost.
        assert len(llm.calls) <= 200 + client.concurrency


def test_a_job_says_it_in_two_lines(tmp_path, capsys):
    argv = ["--gin_file=mine.gin", "--gin.COLLECTION=pydocs:json"]
    argv.append(f"--gin.MODEL_DIR={tmp_path}")
    with full_beyond(100):
        assert main.main(argv) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 2
    assert "no room for it" in err[0]
    assert main.main(argv) == 0
