"""The folder in which compiled programs are kept from one run to the next."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import jax

from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest

_log = logging.getLogger(__name__)


def keep_programs() -> None:
    """Keeps compiled programs in this user's cache, unless JAX has a folder set.

    A CPU's programs are machine code: each kind of processor has a folder of its own.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    kind = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind += sorted(
            {line for line in lines if line.startswith(("flags", "Features"))}
        )
    except OSError:
        pass  # no Linux
    try:
        use_compile_cache(str(cache_dir() / "programs" / digest(kind)[:12]))
    except (UserError, OSError) as error:
        # Only time is lost.
        _log.warning("compiled programs are not kept: %s", str(error).split("\n")[0])


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
