"""The folder that keeps data derived from large collections between runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from distill_jax.io.errors import UserError


def cache_dir() -> Path:
    """``$DISTILL_JAX_CACHE``, or ``distill_jax`` in the user's cache folder.

    Created private (0700). Its files are read back as data, so a folder that
    someone else owns or may write to is refused.

    Raises:
        UserError: the folder cannot be created, or others can write to it.
    """
    named = os.environ.get("DISTILL_JAX_CACHE")
    if named:
        path = Path(named).expanduser()
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path = Path(base).expanduser() / "distill_jax"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: the cache folder cannot be created ({error.strerror})",
            "set DISTILL_JAX_CACHE to a folder that you own",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is not a folder", "set DISTILL_JAX_CACHE to one")
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if hasattr(os, "geteuid") and (others or status.st_uid != os.geteuid()):
        raise UserError(
            f"{path}: the cache folder can be written by others",
            f"chmod 700 {path}, or set DISTILL_JAX_CACHE to a private folder",
        )
    return path
