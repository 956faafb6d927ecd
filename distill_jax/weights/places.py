"""Where a model is: a folder on disk, a repository of the hub, an installed package.

Nothing is imported, executed or unpickled on the way.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.weights.folders import is_step, read_json

_HUB_PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.model",
    "vocab.txt",
    "merges.txt",
    "artifact.metadata",
]
# Copies of the same weights for other run times, and a Trainer's steps.
_HUB_IGNORED = ["onnx/*", "openvino/*", "checkpoint-*/*", "*/onnx/*", "*/openvino/*"]


def locate(name: str | Path) -> Path:
    """The folder of ``PATH``, ``hf:NAME[@REVISION]`` or ``package:MODULE/PATH``.

    Raises:
        UserError: the folder, the package or the hub client is missing.
    """
    text = str(name)
    if text.startswith("hf:"):
        return _from_hub(text[3:])
    if text.startswith("package:"):
        return _from_package(text[8:])
    path = Path(text).expanduser()
    if not path.exists() and not is_step(path):
        hint = (
            f"if it is a name on the Hugging Face hub, write hf:{text}"
            if text.count("/") <= 1 and not text.startswith((".", "/", "~"))
            else "give the folder of a model"
        )
        raise UserError(f"{text}: no such folder", hint)
    return path


def _from_hub(name: str) -> Path:
    """A snapshot of ``NAME`` or ``NAME@REVISION`` (a branch, tag, commit, refs/pr/N).

    PyTorch's ``.bin`` files are fetched only where a part of the model has no
    safetensors.
    """
    name, _, revision = name.partition("@")
    path = _snapshot(name, revision, _HUB_PATTERNS)
    lacking = [part for part in _parts(path) if not _has_safetensors(path / part)]
    if lacking:
        bins = [f"{part}/pytorch_model*.bin".lstrip("./") for part in lacking]
        path = _snapshot(name, revision, [*_HUB_PATTERNS, *bins])
    return path


def _snapshot(name: str, revision: str, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"hf:{name} needs huggingface_hub", "pip install 'distill_jax[hub]'"
        ) from error
    more: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        found = snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=_HUB_IGNORED, **more
        )
        return Path(found)
    except Exception as error:  # the hub client raises many unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"hf:{name}: {type(error).__name__}: {reason[:200]}",
            "download it elsewhere and give its folder",
        ) from error


def _parts(path: Path) -> list[str]:
    """The folders of a snapshot that hold weights: the root, and modules with some."""
    records = read_json(path / "modules.json", [])
    routes = (read_json(path / "router_config.json", {}) or {}).get("types") or {}
    records = [*records, *({"path": k, "type": v} for k, v in routes.items())]
    inner = [
        str(record.get("path", ""))
        for record in records
        if isinstance(record, dict)
        and str(record.get("type", "")).endswith(("Transformer", "Dense"))
    ]
    return inner or ["."]


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _from_package(name: str) -> Path:
    """A folder inside an installed package, found without importing the package."""
    module, _, inside = name.partition("/")
    # Submodules of a.b would import a: PathFinder on the parent's path does not.
    path: list[str] | None = list(sys.path)
    spec = None
    for part in module.split("."):
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        if spec is None:
            raise UserError(
                f"package:{name}: no installed package {module!r}",
                f"pip install {module.replace('_', '-')}",
            )
        path = list(spec.submodule_search_locations or [])
    for root in path or []:
        folder = (Path(root) / inside).resolve()
        if folder.is_relative_to(Path(root).resolve()) and folder.exists():
            return folder
    raise UserError(
        f"package:{name}: the package {module!r} has no folder {inside!r}",
        "the form is package:MODULE/PATH",
    )
