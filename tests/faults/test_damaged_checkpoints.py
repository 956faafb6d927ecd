"""One flipped byte in any file of a checkpoint, a cut file, a missing one."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding
from distill_jax.training import checkpoints, optimizers
from distill_jax.training.loop import Fit
from distill_jax.training.manifest import write_sealed
from tests.training.stored import read_params

_toy = Path(__file__).parent.parent / "training" / "toy.py"
_spec = importlib.util.spec_from_file_location("toy", _toy)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of steps 2 and 4; that of step 4 has notes added after it."""
    folder = tmp_path_factory.mktemp("run")
    graphdef, params = toy.student()
    Fit(
        steps=4,
        directory=folder,
        optimizer=optimizers.adamw(learning_rate=1e-2),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        checkpoint_period=2,
        keep=2,
        show=False,
    )(
        graphdef,
        params,
        toy.LISTS,
        lambda start: (toy.batch(step) for step in range(start, 4)),
    )
    notes = checkpoints.read_meta(folder / "checkpoints" / "4")
    later = folder / "checkpoints" / "4" / "later.json"
    write_sealed(later, {**notes, "evaluated": 4})
    return folder


def flipped(data: bytes, at: float) -> bytes:
    place = min(int(at * len(data)), len(data) - 1)
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGE = {
    "first byte": lambda data: flipped(data, 0.0),
    "middle": lambda data: flipped(data, 0.5),
    "last byte": lambda data: flipped(data, 1.0),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "gone": None,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_any_file_costs_one_checkpoint_at_most(run, tmp_path, kind):
    """Either the step is whole (the file does not matter) or the one before is."""
    spoil = DAMAGE[kind]
    whole = checkpoints.newest(run / "checkpoints")
    assert whole is not None
    assert (whole.step, whole.meta["evaluated"]) == (4, 4)
    newest = run / "checkpoints" / "4"
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(files) > 8
    fell_back = 0
    for path in files:
        copy = tmp_path / "copy"
        shutil.copytree(run / "checkpoints", copy / "checkpoints")
        victim = copy / "checkpoints" / "4" / path.relative_to(newest)
        if spoil is None:
            victim.unlink()
        else:
            data = victim.read_bytes()
            if spoil(data) == data:
                shutil.rmtree(copy)
                continue
            victim.write_bytes(spoil(data))
        found = checkpoints.newest(copy / "checkpoints")
        assert found is not None, victim
        if found.step == 2:
            fell_back += 1
            assert (copy / "damaged" / "4").is_dir()
            assert checkpoints.steps(copy / "checkpoints") == [2]
        else:
            # Nothing that a run goes on from has changed.
            meta = {**found.meta, "evaluated": 4}
            assert (found.step, meta) == (4, whole.meta), victim
            params = read_params(copy / "checkpoints", 4)
            expected = read_params(run / "checkpoints", 4)
            jax.tree.map(np.testing.assert_array_equal, params, expected)
        shutil.rmtree(copy)
    assert fell_back >= len(files) - 3


def test_a_step_that_is_asked_for_is_refused_not_replaced(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    victim = max(
        (tmp_path / "checkpoints" / "4").rglob("d/*"), key=lambda p: p.stat().st_size
    )
    victim.write_bytes(flipped(victim.read_bytes(), 0.5))
    with pytest.raises(UserError) as caught:
        read_params(tmp_path / "checkpoints", 4)
    assert victim.name in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "7", '{"a": 1}', '{"a": [1]}', '{"a": "b"}'])
def test_a_manifest_of_another_kind_is_damage(run, tmp_path, text):
    shutil.copytree(run / "checkpoints" / "4", tmp_path / "4")
    (tmp_path / "4" / "manifest.json").write_text(text)
    assert checkpoints.damage(tmp_path / "4") is not None


def test_everything_damaged_is_no_checkpoint_and_no_traceback(run, tmp_path, caplog):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for step in (2, 4):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    assert checkpoints.newest(tmp_path / "checkpoints") is None
    assert caplog.text.count("going back to the checkpoint before it") == 2
