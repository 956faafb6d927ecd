"""Where the numbers of a run are shown while it runs: TensorBoard and others.

Loggers are created by name (``LOGGERS``); a library is imported when it is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from distill_jax.io.errors import UserError, near


class Logger(Protocol):
    """Takes the numbers of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows finite numbers by name, at once."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """TensorBoard's own event writer, without TensorFlow.

    Args:
        directory: gets ``tensorboard/``, one file each time it is opened.
        resumed_at: what earlier files hold of later steps is not shown.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed_at: int = 0):
        del config
        # With this module present TensorBoard never looks for TensorFlow.
        sys.modules.setdefault(
            "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
        )
        event_pb2, summary_pb2, tensor_pb2 = (
            importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")
            for name in ("event", "summary", "tensor")
        )
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2
        self._tensor = tensor_pb2.TensorProto
        self._writer = EventFileWriter(str(Path(directory) / "tensorboard"))
        if resumed_at:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(resumed_at + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._add_values(
            step,
            [
                self._summary.Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
            ],
        )

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, as Markdown."""
        metadata = self._summary.SummaryMetadata(
            plugin_data=self._summary.SummaryMetadata.PluginData(plugin_name="text")
        )
        tensor = self._tensor(dtype="DT_STRING", string_val=[text.encode()])
        value = self._summary.Summary.Value(tag=name, tensor=tensor, metadata=metadata)
        self._add_values(step, [value])

    def close(self) -> None:
        self._writer.close()

    def _add_values(self, step: int, values: list[Any]) -> None:
        self._add(step, summary=self._summary.Summary(value=values))
        self._writer.flush()

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._event(step=step, wall_time=time.time(), **what))


class WeightsAndBiases:
    """Weights & Biases; its own environment variables set the account and project."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed_at: int = 0):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            dir=str(directory),
            name=str(directory),
            config=dict(config),
            resume="allow" if resumed_at else None,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; the tracking server is set by ``MLFLOW_TRACKING_URI``."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed_at: int = 0):
        del resumed_at
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        mlflow.start_run(run_name=str(directory))
        mlflow.log_params({name: str(value)[:500] for name, value in config.items()})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # MLflow does not allow "@" in names.
        named = {name.replace("@", "_at_"): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class Trackio:
    """Trackio, Hugging Face's local-first tracker."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed_at: int = 0):
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio = trackio
        trackio.init(
            project="distill_jax",
            name=str(directory),
            config=dict(config),
            resume="allow" if resumed_at else "never",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_loggers(names: Sequence[str]) -> None:
    """Refuses loggers that do not exist or whose library is not installed.

    Raises:
        UserError: names the logger, and how to install it.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(
                f"no logger {name!r}{near(name, LOGGERS)}",
                f"LOGGERS takes {', '.join(LOGGERS)}",
            )
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed", f"pip install {name}")


def open_loggers(
    names: Sequence[str] | None,
    directory: Path,
    config: Mapping[str, Any],
    resumed_at: int = 0,
) -> list[Logger]:
    """Opens loggers by name; None is TensorBoard where it is installed.

    Raises:
        UserError: as ``check_loggers``.
    """
    if names is None:
        installed = importlib.util.find_spec("tensorboard") is not None
        names = ("tensorboard",) if installed else ()
    check_loggers(names)
    return [LOGGERS[name](directory, config, resumed_at) for name in names]


def finite(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, without its step and time."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in ("step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }
