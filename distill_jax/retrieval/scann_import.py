"""ScaNN alone: imported without TensorFlow, and first tried in another process."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

from distill_jax.io.errors import UserError

_PROBE = """
import sys
sys.modules["tensorflow"] = None
import numpy, scann
docs = numpy.eye(64, dtype=numpy.float32)
build = scann.scann_ops_pybind.builder(docs, 1, "dot_product")
build = build.tree(4, 4, training_sample_size=64, min_partition_size=1)
index = build.score_ah(2).reorder(8).build()
assert (index.search_batched_parallel(docs)[0][:, 0] == numpy.arange(64)).mean() > 0.5
"""


@functools.lru_cache(maxsize=1)
def module() -> Any:
    """``scann.scann_ops_pybind``, imported without TensorFlow.

    The first time it is tried in another process: built for a newer CPU than this
    one, it would end this process by an illegal instruction.

    Raises:
        UserError: not installed, or it does not run here.
    """
    tried = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300
    )
    if tried.returncode:
        told = tried.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(
            f"ScaNN does not run here (exit status {tried.returncode}: {told[0]})",
            "pip install 'distill_jax[scann]', or search with Exact, which needs none",
        )
    masked = "tensorflow" not in sys.modules
    if masked:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        from scann import scann_ops_pybind
    finally:
        if masked:
            del sys.modules["tensorflow"]
    return scann_ops_pybind
