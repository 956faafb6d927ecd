"""What importing costs and touches: each floor in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("tensorflow", "seqio", "torch", "transformers", "scann", "matplotlib")
OPTIONAL = (*FOREIGN, "tensorboard", "bm25s", "httpx", "faiss", "gin", "ir_datasets")
GROUND = ("io", "text", "collections", "runs", "labels", "lists", "evaluation")
CORE = (
    *GROUND,
    "ops",
    "batches",
    "losses",
    "models",
    "runtime",
    "inference",
    "weights",
    "training",
)
ROOMS = ("inputs", "retrieval", "teaching", "synthesis", "export", "report")

# Imports every module of some rooms, and tells what that did to the process. What the
# array libraries do by themselves when imported is done first, and is not ours.
PROBE = """
import importlib, json, logging, os, pkgutil, sys
rooms, blocked, first = json.loads(sys.argv[1])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in first:
    importlib.import_module(name)
flags = sys.modules.get("absl.flags")
def state():
    return {
        "environ": dict(os.environ),
        "level": logging.getLogger().level,
        "handlers": len(logging.getLogger().handlers),
        "flags": len(list(flags.FLAGS)) if flags else 0,
    }
before = state()
for room in rooms:
    module = importlib.import_module("distill_jax" + room)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []) if room else [],
                                       module.__name__ + "."):
        importlib.import_module(found.name)
after = state()
bridge = sys.modules.get("jax._src.xla_bridge")
print(json.dumps({
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "changed": {key: [str(before[key]), str(after[key])]
                for key in before if before[key] != after[key]},
    "backends": bool(bridge and bridge.backends_are_initialized()),
}))
"""
NUMERIC = ["jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint"]


def probe(rooms, *, blocked=(), first=()) -> dict:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([rooms, blocked, first])],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def untouched(found: dict) -> None:
    assert not found["changed"]
    assert not found["backends"], "importing started a device"


def test_the_package_itself_is_light():
    found = probe([""])
    assert not {"jax", "numpy", "tokenizers", *OPTIONAL} & set(found["loaded"])
    untouched(found)


def test_the_ground_floor_knows_no_jax():
    found = probe([f".{room}" for room in GROUND])
    assert not {"jax", "flax", *OPTIONAL} & set(found["loaded"])
    untouched(found)


def test_the_core_runs_where_nothing_else_is_installed():
    """A GPU box with jax, flax, optax and orbax only."""
    blocked = (*OPTIONAL, "sentence_transformers", "tensorflow_datasets")
    found = probe([f".{room}" for room in CORE], blocked=blocked, first=NUMERIC)
    assert not set(blocked) & set(found["loaded"])
    untouched(found)


@pytest.mark.parametrize(
    "rooms",
    [ROOMS, ("workspace", "recipe", "jobs", "predictor")],
    ids=["rooms", "jobs"],
)
def test_upper_floors_load_what_they_need_when_they_need_it(rooms):
    found = probe([f".{room}" for room in rooms], first=NUMERIC)
    assert not set(OPTIONAL) & set(found["loaded"])
    untouched(found)


def test_only_main_loads_gin():
    found = probe([".main"], first=[*NUMERIC, "gin"])
    assert "gin" in found["loaded"]
    assert not set(FOREIGN) & set(found["loaded"])
    untouched(found)


def test_recipes_are_listed_before_any_array_library_is_loaded():
    code = (
        "import sys; from distill_jax.main import main; status = main(['--list']); "
        "print(status, sorted({name.split('.')[0] for name in sys.modules}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    *listed, last = ended.stdout.splitlines()
    assert any("twolar" in line for line in listed), ended.stderr
    assert last.startswith("0 ")
    for name in ("jax", "flax", "optax", "pyarrow", *FOREIGN):
        assert f"'{name}'" not in last
