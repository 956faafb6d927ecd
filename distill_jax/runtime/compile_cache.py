"""The folder in which compiled programs are kept from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from distill_jax.io.errors import UserError


def use_compile_cache(folder: str, least_seconds: float = 0.5) -> None:
    """Keeps compiled programs in a folder that only its owner can write.

    Args:
        least_seconds: programs that compile faster are not kept.

    Raises:
        UserError: others can write it: a compiled program is code.
    """
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(
            f"{path}: others can write to this cache of compiled programs",
            f"chmod 700 {path}, or choose another folder",
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
