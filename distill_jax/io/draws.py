"""Random draws and splits keyed by name, independent of the order of names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random stream keyed by a name, independent of the order of calls."""
    text = "\x1f".join((str(seed), *names)).encode("utf-8", "surrogatepass")
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def share(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on a name only: for splits."""
    text = f"{salt}\x1f{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def split_by_hash(names: Sequence[str], dev: float) -> np.ndarray:
    """True for the names on the dev side: the same on every machine, in any order."""
    return np.asarray([share(name, "dev") < dev for name in names], bool)
