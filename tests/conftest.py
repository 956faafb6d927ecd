"""Eight fake devices, compiled programs that are shared, and the shared oracles."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before jax is imported. The tests of sharding need several devices. The others make a
# program a test run minutes shorter: most of a test's time is XLA's, not its own.
_DEVICES = "--xla_force_host_platform_device_count=8"
_QUICK_TO_COMPILE = (
    f"{_DEVICES} --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# XLA's threads allocate side by side; an arena for each would keep what they give back.
os.environ.setdefault("MALLOC_ARENA_MAX", "2")


def _flags() -> str:
    """The quick ones where this XLA knows them: it ends a process at others."""
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    tried = os.environ | {"XLA_FLAGS": _QUICK_TO_COMPILE}
    known = subprocess.run(probe, env=tried, capture_output=True).returncode == 0
    return _QUICK_TO_COMPILE if known else _DEVICES


if "XLA_FLAGS" not in os.environ:  # workers inherit it
    os.environ["XLA_FLAGS"] = _flags()


# A machine that does other work too makes examples slowly; that is no failure.
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")

# The workers inherit it: what one has compiled, the others and their children read.
_OWN_PROGRAMS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
_PROGRAMS = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    tempfile.mkdtemp(prefix="test-programs-") if _OWN_PROGRAMS else "",
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

pytest_plugins = ["tests.jobs.fixtures", "tests.io.object_store"]
ROOT = Path(__file__).resolve().parent.parent


def pytest_unconfigure(config):
    if _OWN_PROGRAMS:
        shutil.rmtree(_PROGRAMS, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _a_modules_programs_go_with_it():
    """Gives back what a module compiled, gigabytes in a whole run; the disk has it."""
    yield
    _give_back()


_LARGE = 256 << 20  # bytes that a worker grows by before its programs go
_held = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """A module of many small programs does not keep them all."""
    global _held
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") - _held > _LARGE:
        _give_back()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        _held = pages * os.sysconf("SC_PAGE_SIZE")


def _give_back() -> None:
    jax = sys.modules.get("jax")
    if jax is None:
        return
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir != _PROGRAMS:
        jax.config.update("jax_compilation_cache_dir", _PROGRAMS)
        compilation_cache.reset_cache()  # it is decided once whether there is one
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


SHARED = (ROOT / os.environ.get("DISTILL_JAX_SHARED", "../shared")).resolve()


def pytest_addoption(parser):
    parser.addoption(
        "--allow-skips",
        action="store_true",
        help="a test that lacks a package or a program is skipped; without this it "
        "fails, since what is not run is not known to work",
    )


def pytest_report_header(config):
    if not _has_shared():
        return (
            f"no public collections at {SHARED}: the tests that compare with other "
            "systems' runs and released weights are left out (set DISTILL_JAX_SHARED)"
        )
    return None


def _has_shared() -> bool:
    return (SHARED / "collections").is_dir()


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests of collections that no clone holds."""
    if _has_shared() or os.environ.get("DISTILL_JAX_REQUIRE_SHARED"):
        return
    left_out = [item for item in items if "shared" in item.fixturenames]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "shared" not in item.fixturenames]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _no_skip((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _no_skip((yield), collector.config)


def _no_skip(report, config):
    """The report; a skip is a failure unless ``--allow-skips`` is given."""
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and not config.option.allow_skips:
        report.outcome = "failed"
        report.longrepr = (
            f"{report.longrepr[-1]}: a test that is skipped proves nothing; install "
            "what is missing, or pass --allow-skips"
        )
    return report


@pytest.fixture(scope="session")
def cases() -> dict[str, dict]:
    """The known answers by name: inputs, what the papers' code gives, and the traps."""
    found = json.loads((ROOT / "tests/data/known_answers.json").read_text("utf-8"))
    return {case["name"]: case for case in found}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public collections, runs and weights that oracles come from."""
    assert _has_shared(), f"no public collections at {SHARED}; set DISTILL_JAX_SHARED"
    return SHARED
