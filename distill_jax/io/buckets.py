"""Object stores (``gs://``, ``s3://``, any of fsspec): inputs in, a job's folder out.

Everything works on files of this machine. An input is fetched once into the cache
folder, under a name that its objects' entity tags give, and never again while they
stay. A job's ``MODEL_DIR`` in a bucket is a folder of the cache beside it: what a
finished part, a shard of labels or a checkpoint leaves is sent in the order in which
it was written, and what is in the bucket is fetched before the job begins. A kill loses
what was not sent; the same command on another machine goes on from there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError, clip
from distill_jax.io.files import digest, staging, sweep

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
# Folders of this machine that stand for a URL.
_places: dict[str, Path] = {}


def is_url(text: str) -> bool:
    """Whether a path begins with a scheme and ``://``."""
    return _URL.match(text) is not None


def place(url: str) -> Path:
    """The folder of this machine in which a job's folder in a bucket is worked on.

    From now on ``local`` of the URL, and of what is below it, is there.

    Raises:
        UserError: see ``store``.
    """
    url = url.rstrip("/")
    store(url)
    name = PurePosixPath(url).name
    _places[url] = cache_dir() / "buckets" / "jobs" / digest(url)[:16] / name
    return _places[url]


def url_of(folder: str | Path) -> str | None:
    """The URL that a folder stands for; None for one that is just a folder."""
    found = [url for url, at in _places.items() if at == Path(folder)]
    return found[0] if found else None


def local(url: str) -> str:
    """The path on this machine of a URL, fetched if it is not here.

    Raises:
        UserError: see ``store``; there is nothing under the URL, or it cannot be read.
    """
    for base, at in _places.items():
        if url == base or url.startswith(f"{base}/"):
            return str(at / url[len(base) :].strip("/"))
    return _fetched(url.rstrip("/"))


def store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        UserError: no such scheme, or its driver is not installed.
    """
    scheme = url.partition("://")[0].lower()
    try:
        import fsspec

        with failures(url):
            return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        driver = _DRIVERS.get(scheme, "a driver of fsspec")
        raise UserError(
            f"{clip(url)}: {scheme}:// needs {driver}, which is not installed",
            "pip install 'distill_jax[bucket]'; or copy it, and give that path",
        ) from None
    except ValueError:
        raise UserError(
            f"{clip(url)}: {scheme}:// is an unknown scheme",
            "use s3://, gs://, or a path of this machine",
        ) from None


@contextlib.contextmanager
def failures(url: str) -> Iterator[None]:
    """Turns a driver's error about a URL into a UserError."""
    try:
        yield
    except (UserError, ImportError, ValueError):
        raise
    except Exception as error:  # drivers raise errors of their own libraries
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{clip(url)}: {type(error).__name__}: {reason}",
            "check the name, the credentials and the network",
        ) from error


def tag(info: dict[str, Any]) -> str:
    """What changes when an object does: its entity tag, else its size and time."""
    named = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    seen = info.get("LastModified") or info.get("updated") or info.get("mtime")
    return f"{info['size']} {named or seen or info.get('created') or ''}"


def listed(files: Any, path: str) -> dict[str, dict[str, Any]]:
    """The objects below a path (or the one at it) by their names relative to it."""
    found = files.find(path, detail=True)
    root = path.rstrip("/")
    return {
        name[len(root) :].removeprefix("/"): info
        for name, info in sorted(found.items())
        if info["type"] == "file"
        and not name.endswith("/")  # what consoles make for an empty folder
        and (name == root or name.startswith(f"{root}/"))
    }


@functools.cache
def _fetched(url: str) -> str:
    """One state of the URL for this process, however often it is named."""
    files, path = store(url)
    with failures(url):
        objects = listed(files, path)
    if not objects:
        raise UserError(f"{clip(url)}: nothing is there", "check the name")
    for name in objects:
        refuse_escape(url, name)
    tags = {name: tag(info) for name, info in objects.items()}
    folder = cache_dir() / "buckets" / "inputs" / digest(url, tags)
    whole = folder / PurePosixPath(url).name
    if whole.exists():
        return str(whole)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(folder.parent, folder.name)
    aside = staging(folder.parent, folder.name)
    try:
        for name, info in objects.items():
            target = aside / whole.name / name if name else aside / whole.name
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(files, f"{path}/{name}" if name else path, target, info["size"], url)
        with contextlib.suppress(OSError):  # another process was first
            os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return str(whole)


def fetch(files: Any, path: str, target: Path, size: int, url: str) -> None:
    """One object into a file of this machine.

    Raises:
        UserError: it cannot be read, or is not as long as it was listed.
    """
    with failures(url):
        files.get_file(path, str(target))
    if target.stat().st_size != size:
        raise UserError(
            f"{clip(url)}: {path} has {target.stat().st_size:,} bytes, and was listed "
            f"with {size:,}",
            "nothing may write there meanwhile; run the same command again",
        )


def refuse_escape(url: str, name: str) -> None:
    """Refuses an object whose name leads out of its folder.

    Raises:
        UserError: it has a part ``..``, or an empty one.
    """
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise UserError(
            f"{clip(url)}: the object {clip(name)} has no name that a file can have",
            "rename or remove it",
        )
