"""The report in TensorBoard, beside the curves that each training showed live."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_jax.runtime.loggers import TensorBoard, finite


def show_report(directory: str | Path, data: Mapping[str, Any], step: int) -> None:
    """Rewrites ``MODEL_DIR/report/tensorboard``, if TensorBoard is installed.

    Args:
      directory: the MODEL_DIR.
      data: the report; its means become ``SYSTEM/MEASURE`` and its verdict and
        configuration texts.
      step: at which they are shown.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return
    folder = Path(directory) / "report"
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    board = TensorBoard(folder, {})
    means = {
        f"{system}/{measure}": value
        for system, values in (data.get("measures") or {}).items()
        for measure, value in values.items()
    }
    board.write(step, finite(means))
    for name in ("verdict", "again"):
        if data.get(name):
            board.text(step, name, str(data[name]))
    board.close()
