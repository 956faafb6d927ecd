"""Eight fake devices, strict ranks, and the shared oracles."""

from __future__ import annotations

import json
import os
from pathlib import Path

# Before jax is imported: the tests of sharding need several devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest_plugins = ["tests.jobs.fixtures"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cases(shared) -> dict[str, dict]:
    """The known answers by name: inputs, what the papers' code gives, and the traps."""
    found = json.loads((shared / "cases" / "loss_cases.json").read_text())["cases"]
    return {case["name"]: case for case in found}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of collections, cases and reference outputs that oracles come from."""
    path = Path(os.environ.get("DISTILL_JAX_SHARED", "../shared"))
    path = path if path.is_absolute() else (ROOT / path).resolve()
    if not (path / "cases").is_dir():
        if os.environ.get("DISTILL_JAX_REQUIRE_SHARED"):
            pytest.fail(f"no shared data at {path}; set DISTILL_JAX_SHARED")
        pytest.skip(f"no shared data at {path}; set DISTILL_JAX_SHARED")
    return path
