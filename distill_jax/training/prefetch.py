"""Builds batches and moves them to the devices while the previous step runs."""

from __future__ import annotations

import dataclasses
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from distill_jax.runtime.sharding import shard_batch


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatch:
    """One prefetched batch: the host's copy, the devices' copy, and its counts.

    Attributes:
        step: updates done before it: batch ``step`` of the feed.
        digest: a checksum of every array of the host's part.
        queries, tokens: counts of the global batch; padding is not counted.
        shape: what a compiled step is specialised to.
    """

    step: int
    host: Any
    device: Any
    digest: str
    queries: int
    tokens: int
    shape: tuple


class Prefetch:
    """Iterates over ``feed(start)`` from a thread, ``ahead`` batches ahead.

    A context manager; an error of the feed is raised in the call for its batch.
    """

    def __init__(
        self,
        feed: Callable[[int], Iterator],
        start: int,
        mesh: Mesh,
        *,
        stop: int,
        ahead: int = 2,
        pad_id: int = 0,
    ):
        self._feed, self._mesh, self._pad_id = feed, mesh, pad_id
        self._range = range(start, stop)
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feed")

    def __enter__(self) -> Prefetch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[HostBatch]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item

    def _run(self) -> None:
        try:
            batches = self._feed(self._range.start) if self._range else iter(())
            for step, host in zip(self._range, batches):
                if self._closed.is_set() or not self._put(self._fed(step, host)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _fed(self, step: int, host: Any) -> HostBatch:
        leaves = jax.tree.leaves(host)
        tokens = sum(
            int(np.count_nonzero(leaf != self._pad_id))
            for name in ("tokens", "query_tokens", "doc_tokens")
            if (leaf := getattr(host, name, None)) is not None
        )
        device = shard_batch(host, self._mesh)
        return HostBatch(
            step=step,
            host=host,
            device=device,
            digest=digest(host),
            queries=device.targets.labels.shape[0],
            tokens=tokens * jax.process_count(),
            shape=tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves),
        )


def digest(batch: Any) -> str:
    """Eight hex digits that change when any array of the host does.

    What is on the devices already was gathered there by rows that the batch holds.
    """
    crc = 0
    for leaf in jax.tree.leaves(batch):
        if isinstance(leaf, jax.Array):
            continue
        leaf = np.ascontiguousarray(leaf)
        crc = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode(), crc)
        crc = zlib.crc32(leaf.tobytes(), crc)
    return f"{crc:08x}"
