"""ScaNN without TensorFlow: only its numpy half is imported, after a trial run.

``scann/__init__.py`` also loads a TensorFlow operation that is built for one release of
TensorFlow. Beside another release it fails, and takes the numpy half with it. That half
(``scann_pybind.so``) does not link TensorFlow, so it works with any release
there, and whichever of the two is loaded first.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import types
from importlib.util import find_spec
from typing import Any

from distill_jax.io.errors import UserError

_NUMPY_HALF = "scann.scann_ops.py.scann_ops_pybind"
_TRIAL = """
import numpy
from distill_jax.retrieval import scann_import
docs = numpy.eye(64, dtype=numpy.float32)
build = scann_import.numpy_half().builder(docs, 1, "dot_product")
build = build.tree(4, 4, training_sample_size=64, min_partition_size=1)
index = build.score_ah(2).reorder(8).build()
assert (index.search_batched_parallel(docs)[0][:, 0] == numpy.arange(64)).mean() > 0.5
"""


@functools.lru_cache(maxsize=1)
def module() -> Any:
    """``scann.scann_ops_pybind``, after it has run in another process.

    Built for a newer CPU than this one, it would end this process by an illegal
    instruction.

    Raises:
        UserError: not installed, or it does not run here.
    """
    trial = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path[:] = {sys.path!r}\n{_TRIAL}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if trial.returncode:
        reason = trial.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(
            f"ScaNN does not run here (exit status {trial.returncode}: {reason[0]})",
            "pip install 'distill_jax[scann]', or search with Exact, which needs none",
        )
    return numpy_half()


def numpy_half() -> Any:
    """``scann.scann_ops_pybind``, imported without running ``scann/__init__.py``.

    Raises:
        ModuleNotFoundError: ScaNN is not installed.
    """
    if "scann" in sys.modules:
        return importlib.import_module(_NUMPY_HALF)
    spec = find_spec("scann")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'scann'", name="scann")
    # A package of the same folder whose __init__ is empty, for this import alone: a
    # later ``import scann`` by someone else still runs the real one.
    package = types.ModuleType("scann")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["scann"] = package
    try:
        return importlib.import_module(_NUMPY_HALF)
    finally:
        del sys.modules["scann"]
