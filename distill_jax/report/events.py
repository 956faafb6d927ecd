"""TensorBoard events of the training log and the report, without TensorFlow.

The files are framed by ``ir.tfrecord`` and the ``Event`` messages are written by hand,
so neither TensorFlow nor TensorBoard is needed, nor loaded, to make them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distill_jax.io.files import atomic_write
from distill_jax.io.tfrecord import delimited, fixed32, fixed64, integer, write_records

_VERSION = b"brain.Event:2"
_STRING = 7  # DT_STRING of TensorFlow's types.proto


class EventsLog:
    """Appends records to a file of its own while training runs.

    Args:
      directory: ``MODEL_DIR/tensorboard``.
    """

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}.distill_jax"
        self.path = directory / name
        self._file = open(self.path, "wb")  # noqa: SIM115
        self._write([_first(time.time())])

    def write(self, record: Mapping[str, Any]) -> None:
        """The numbers of one record of ``metrics.jsonl``, on the disk at once."""
        self._write([scalars(record, time.time())])

    def close(self) -> None:
        self._file.close()

    def _write(self, events: Iterable[bytes]) -> None:
        write_records(self._file, events)
        self._file.flush()


def write_events(
    directory: str | Path,
    records: Iterable[Mapping[str, Any]],
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``MODEL_DIR/tensorboard`` anew from the log and the report.

    Args:
      directory: the MODEL_DIR.
      records: those of ``metrics.jsonl``.
      data: the report; its means become ``report/SYSTEM/MEASURE`` and its verdict and
        configuration texts.
    """
    records = list(records)
    # "time" is a moment or the seconds since the start: TensorBoard wants moments.
    last = records[-1].get("time") if records else None
    began = 0.0 if last is None or last > 1e9 else time.time() - last
    now = time.time()
    events = [_first(now)]
    for record in records:
        at = record.get("time")
        events.append(scalars(record, now if at is None else began + at))
    step = int(records[-1]["step"]) if records else 0
    if data:
        events.append(scalars({"step": step, **_means(data)}, now))
        for name in ("verdict", "again"):
            if data.get(name):
                events.append(_text(name, str(data[name]), step, now))
    path = Path(directory) / "tensorboard" / "events.out.tfevents.0.distill_jax"
    with atomic_write(path, "wb") as file:
        write_records(file, events)
    return path


def scalars(record: Mapping[str, Any], wall: float) -> bytes:
    """One Event with every finite number of a record."""
    values = b"".join(
        delimited(1, delimited(1, name.encode()) + fixed32(2, value))
        for name, value in record.items()
        if name not in ("step", "time") and _finite(value)
    )
    return _event(wall, int(record["step"]), delimited(5, values))


def _text(name: str, value: str, step: int, wall: float) -> bytes:
    tensor = integer(1, _STRING) + delimited(2, b"") + delimited(8, value.encode())
    metadata = delimited(1, delimited(1, b"text"))
    summary = (
        delimited(1, name.encode()) + delimited(8, tensor) + delimited(9, metadata)
    )
    return _event(wall, step, delimited(5, delimited(1, summary)))


def _first(wall: float) -> bytes:
    return fixed64(1, wall) + delimited(3, _VERSION)


def _event(wall: float, step: int, what: bytes) -> bytes:
    return fixed64(1, wall) + integer(2, step) + what


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _means(data: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"report/{system}/{measure}": value
        for system, values in (data.get("measures") or {}).items()
        for measure, value in values.items()
    }
