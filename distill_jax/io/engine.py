"""A function over shards of a collection: in this process, or by Ray on a cluster.

    engine.choose("ray")
    for counts in engine.over_shards(count, engine.shards_of(texts, 8192)):
        ...

Stages on the host (reading, tokenising, BM25's terms, near-duplicates, cropping) are
written so: a shard's result depends on the shard alone, and results come in the order
of the shards. What they are put together to is therefore the same, byte by byte, on any
engine and any number of workers; a worker that dies costs its shard, which another
does again. Ray joins the cluster that ``RAY_ADDRESS`` names or that runs here already,
else it starts workers on this machine. Workers need this package, and no files.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from distill_jax.io.errors import UserError, near

S = TypeVar("S")
R = TypeVar("R")

ENGINES = ("local", "ray")
_RETRIES = 5  # of a shard whose worker died
_AHEAD = 2  # shards of a worker that wait or are done, so that memory is bounded

_chosen = "local"


def known(engine: str) -> str:
    """The name of an engine as it was given.

    Raises:
        UserError: there is none of that name.
    """
    if engine not in ENGINES:
        raise UserError(
            f"no engine {engine!r}{near(str(engine), ENGINES)}",
            f"ENGINE is one of {', '.join(ENGINES)}",
        )
    return engine


def choose(engine: str) -> None:
    """What ``over_shards`` runs on from now on, "local" or "ray".

    Raises:
        UserError: there is no such engine, or it is not installed.
    """
    global _chosen
    if known(engine) == "ray":
        _ray()
    _chosen = engine


def shards_of(items: Sequence[S], size: int) -> Iterator[Sequence[S]]:
    """``items`` in slices of ``size``; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def over_shards(function: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
    """``function`` of each shard, in the order of the shards.

    Args:
        function: depends on nothing but its shard, and reads no file that another
            machine may lack. It can be sent to a process, and so can its result.
        shards: drawn as workers become free.

    Raises:
        UserError: the function's own, or workers died again and again.
    """
    if _chosen == "local":
        return map(function, shards)
    return _over_shards_by_ray(function, shards)


def _over_shards_by_ray(function: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
    ray = _started()
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_applied)
    sent = ray.put(function)
    most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: collections.deque[Any] = collections.deque()
    try:
        for shard in shards:
            waiting.append(task.remote(sent, shard))
            if len(waiting) >= most:
                yield _result(ray, waiting.popleft())
        while waiting:
            yield _result(ray, waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _applied(function: Callable[[Any], Any], shard: Any) -> Any:
    return function(shard)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray's class has the cause as a field; a user's mistake is reported as here.
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"ENGINE='ray': a shard was lost {_RETRIES + 1} times ({reason[:200]})",
            "look at the workers' memory and logs (ray status, ray memory), run again",
        ) from error


def _ray() -> Any:
    # Optional: ENGINE='ray' alone needs it. It would report its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "ENGINE='ray': Ray is not installed", 'pip install "distill_jax[ray]"'
        ) from error
    return ray


@functools.cache
def _quiet() -> None:
    logging.getLogger("ray").setLevel(logging.WARNING)


def _started() -> Any:
    ray = _ray()
    _quiet()
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray
