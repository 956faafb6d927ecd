"""A target library's scores, computed in another process where it cannot share ours.

TensorFlow and the CUDA builds of PyTorch (by Triton) each load an LLVM, and a process
that has loaded one crashes when it loads the other. SeqIO loads TensorFlow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.export import foreign_scorers
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.specs import from_json, to_json
from distill_jax.text.tokenizer import Tokenizer

_CHILD = """
import sys
from distill_jax.export import subprocess_scorer
subprocess_scorer.answer(sys.argv[1])
"""


def needed() -> bool:
    """Whether this process has TensorFlow, and not PyTorch."""
    return "tensorflow" in sys.modules and "torch" not in sys.modules


def scores(
    pretrained: Any, folder: Path, format: str, tuples: Sequence[tuple[str, ...]]
) -> np.ndarray:
    """What ``foreign_scorers.scorer`` of these would say, by a process of its own.

    Raises:
        UserError: it ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as place:
        request = {
            "spec": to_json(pretrained.spec),
            "folder": str(Path(folder).resolve()),
            "format": format,
            "tuples": [list(texts) for texts in tuples],
        }
        Path(place, "request.json").write_text(json.dumps(request), encoding="ascii")
        pretrained.tokenizer.save(Path(place, "tokenizer"))
        path = os.pathsep.join([str(Path(part).resolve()) for part in sys.path])
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, place],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        found = Path(place, "scores.npy")
        if done.returncode or not found.is_file():
            told = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(
                f"{folder}: {format} did not read it (exit status {done.returncode}: "
                f"{told[0]})",
                "the student is saved; run export_hf.gin on it",
            )
        return np.load(found)


def answer(place: str) -> None:
    """The other process: reads the request, and leaves the scores beside it."""
    request = json.loads(Path(place, "request.json").read_bytes())
    pretrained = Pretrained(
        spec=from_json(request["spec"]),
        params={},
        tokenizer=Tokenizer.load(Path(place, "tokenizer")),
    )
    tuples = [tuple(texts) for texts in request["tuples"]]
    _, score = foreign_scorers.scorer(
        pretrained, Path(request["folder"]), request["format"]
    )
    assert score is not None
    np.save(Path(place, "scores.npy"), np.asarray(score(tuples)))
