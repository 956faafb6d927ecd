"""A step that does not fit is taken in pieces; the run stays the same to rounding."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.runtime.compile_cache import use_compile_cache
from distill_jax.training import checkpoints, memory, optimizers, programs
from distill_jax.training.loop import Fit
from distill_jax.training.memory import gigabytes

pytestmark = pytest.mark.long

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

ONE = sharding.make_mesh(devices=jax.devices()[:1])
# Long texts: what grows with the queries at once outweighs the parameters.
ROWS, LENGTH = 4, 128


def feed(start):
    for step in range(start, 100):
        yield batch(step)


def batch(step):
    return toy.batch(step, rows=ROWS, length=LENGTH)


def fit(directory, objective=toy.LISTS, **options):
    graphdef, params = toy.student(0.1)
    defaults = {
        "steps": 2,
        "directory": directory,
        "optimizer": optimizers.adamw(learning_rate=1e-2),
        "mesh": ONE,
        "checkpoint_period": 1,
    }
    return Fit(**{**defaults, **options})(graphdef, params, objective, feed)


def peak(objective, mesh=ONE, **split):
    """Bytes of a step as the compiler plans them."""
    graphdef, params = toy.student(0.1)
    optimizer = optimizers.adamw(learning_rate=1e-2)
    step = memory.compiled_step(
        graphdef, params, objective, optimizer, batch(0), mesh=mesh, **split
    )
    return memory.planned(step).peak


def assert_alike(one, other):
    """The same losses and parameters to rounding."""
    for record, expected in zip(one.history, other.history, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert record["batch"] == expected["batch"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get(one.params),
        jax.device_get(other.params),
    )


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Each program is compiled once; its plan is read from the disk with it."""
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o700)
    use_compile_cache(str(folder), least_seconds=0.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def whole_batches():
    """What fits is asked here, not what a CPU's cache likes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "_CACHED_TOKENS", 1 << 40)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {
        name: fit(tmp_path_factory.mktemp(name), getattr(toy, name), show=False)
        for name in ("LISTS", "GLOBAL")
    }


@pytest.mark.parametrize(
    ("name", "split", "flag"),
    [("LISTS", "micro_batch", "MICRO_BATCH"), ("GLOBAL", "chunk", "CHUNK")],
)
def test_a_step_above_the_limit_is_halved_until_it_fits(
    tmp_path, capsys, whole, name, split, flag
):
    """Sums over queries in micro-batches, what crosses queries in chunks."""
    objective = getattr(toy, name)
    fits = peak(objective, **{split: 2})
    result = fit(tmp_path, objective, memory_limit_bytes=fits)
    said = capsys.readouterr().err
    assert f"a device, which has {gigabytes(fits)}: " in said
    assert gigabytes(peak(objective)) in said
    assert f"2 of 4 queries at a time, the same result; --gin.{flag}=2" in said
    assert_alike(result, whole[name])


def test_what_can_not_be_split_is_refused_with_its_bytes(tmp_path):
    """One query at a time is the least; the limit and the flags are named."""
    with pytest.raises(UserError) as caught:
        fit(tmp_path, memory_limit_bytes=1000, show=False)
    told = str(caught.value)
    assert "1 of 4 queries at a time" in told
    assert f"{peak(toy.LISTS, micro_batch=1):,} bytes" in told
    assert "(1,000 bytes)" in told
    assert "--gin.LIST_SIZE" in told
    assert checkpoints.steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("at", [0, 1])
def test_a_device_that_runs_out_of_memory_is_given_less(
    tmp_path, monkeypatch, caplog, whole, at
):
    """The plan fitted and the allocator did not; the state is lost with the step.

    At the first step, and at one after a checkpoint.
    """
    run = programs.Programs.__call__

    def exhausted(self, state, fed):
        if fed.step == at and self.at_once is None:
            jax.tree.map(lambda leaf: leaf.delete(), state)
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."
            )
        return run(self, state, fed)

    monkeypatch.setattr(programs.Programs, "__call__", exhausted)
    result = fit(tmp_path, show=False)
    assert f"step {at + 1} (4 of 4 queries at a time) needs" in caplog.text
    assert "--gin.MICRO_BATCH=2" in caplog.text
    assert_alike(result, whole["LISTS"])
    # A later resume need not run out of memory to know.
    step = checkpoints.newest(tmp_path / "checkpoints")
    assert step.meta["at_once"] == 2
    assert fit(tmp_path, steps=3, show=False).step == 3


def test_pieces_are_shared_out_over_the_devices():
    """A piece of 2 queries would leave 6 of 8 devices idle and save nothing."""
    mesh = sharding.make_mesh("data=4,fsdp=2")
    graphdef, _ = toy.student()
    options = Fit(
        steps=1, directory=".", optimizer=optimizers.adamw(learning_rate=1e-2)
    )
    sized = programs.Programs(graphdef, toy.LISTS, options, mesh)
    assert sized.smaller(64, None) == 32
    assert sized.smaller(24, None) == 8
    assert sized.smaller(16, 8) is None
    # A batch that the devices do not share evenly is copied to each.
    assert sized.smaller(6, None) == 3
    assert sized.smaller(1, None) is None


@dataclasses.dataclass
class Read:
    """What a batch says of its size."""

    query_tokens: np.ndarray
    doc_tokens: np.ndarray


@pytest.mark.parametrize(
    ("shape", "devices", "objective", "at_once"),
    [
        ((8, 7, 96), 1, "LISTS", 2),  # 768 tokens a query with its own 96
        ((8, 63, 96), 1, "LISTS", 1),
        ((6, 3, 128), 1, "LISTS", 3),  # 4 would not divide the batch
        ((8, 1, 128), 1, "LISTS", None),
        ((8, 7, 96), 1, "GLOBAL", None),
        ((8, 7, 96), 8, "LISTS", None),
    ],
)
def test_a_cpu_takes_pieces_that_its_cache_holds(
    monkeypatch, shape, devices, objective, at_once
):
    monkeypatch.setattr(programs, "_CACHED_TOKENS", 2048)
    graphdef, _ = toy.student()
    options = Fit(
        steps=1, directory=".", optimizer=optimizers.adamw(learning_rate=1e-2)
    )
    mesh = sharding.make_mesh(f"data={devices}")
    sized = programs.Programs(graphdef, getattr(toy, objective), options, mesh)
    apart = objective == "LISTS"
    monkeypatch.setattr(sized, "_micro_batches", lambda fed: apart)
    b, n, length = shape
    batch = Read(np.zeros((b, length)), np.zeros((b, n, length)))
    fed = SimpleNamespace(queries=b, device=batch)
    assert sized._cached(fed) == at_once  # type: ignore[arg-type]


def test_a_limit_that_is_known_is_a_limit_of_this_machine():
    device = jax.devices()[0]
    limit = memory.limit_of(device)
    everything = memory.os.sysconf("SC_PHYS_PAGES") * memory.os.sysconf("SC_PAGE_SIZE")
    assert 0 < limit * len(jax.devices()) <= everything
