"""What a folder holds, recognised from its files alone.

``locate`` turns what a user types into a folder on disk; ``recognise`` says which of
the formats below it is. Nothing is imported, executed or unpickled on the way.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import json
import sys
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models.reranker import CROSS_ENCODER

LOOKED_FOR = {
    "student": "student.json (a model saved by distill_jax)",
    "model_dir": "student/ and checkpoints/ (a MODEL_DIR)",
    "step": "checkpoints/STEP of a MODEL_DIR (one Orbax step)",
    "dual_encoder": "modules.json with Pooling (sentence-transformers)",
    "static": "modules.json with StaticEmbedding (sentence-transformers, model2vec)",
    "two_towers": "query_encoder/ and doc_encoder/ with a modules.json each",
    "splade": "modules.json with SpladePooling",
    "pylate": "modules.json with a PyLate Dense or a MultiVectorMask",
    "cross_encoder": "config.json of a ...ForSequenceClassification or of "
    "lightning-ir's mono",
    "stanford": "config.json of HF_ColBERT and artifact.metadata",
    "hugging_face": "config.json of a T5 or an encoder, and its weights",
    "t5x": "checkpoint (T5X), or target/ or state/ with Orbax metadata (T5X)",
}
TOWERS = ("query_encoder", "doc_encoder")
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


@dataclasses.dataclass(frozen=True)
class Folder:
    """A recognised folder.

    Attributes:
        path: where it is.
        form: one of the keys of ``LOOKED_FOR``.
        config: its ``config.json``, {} when it has none.
        modules: the short class names of ``modules.json`` with their folders.
    """

    path: Path
    form: str
    config: dict = dataclasses.field(default_factory=dict)
    modules: tuple[tuple[str, Path], ...] = ()

    def json(self, name: str, default: Any = None) -> Any:
        """The JSON file ``name`` of this folder, ``default`` ({}) when absent."""
        return read_json(self.path / name, {} if default is None else default)


# Facts that no file of another library states. The rest is read from the folder,
# which another program may have changed since we wrote them.
_ONLY_NOTED = {
    "reranker": ("prompt", "words"),
    "duo": ("prompt", "words", "query_length", "doc_length"),
    "generator": ("query_length", "doc_length", "query_prefix", "doc_prefix"),
}
_OF_A_BARE_ENCODER = (
    *("pooling", "normalise", "similarity", "query_prefix", "doc_prefix"),
    *("query_activation", "doc_activation", "head_activation", "token_types"),
)
_LENGTHS = ("query_length", "doc_length", "length")


def stated(
    folder: Folder, *, most: int | None = None, prompt: str = ""
) -> dict[str, Any]:
    """The fields of the spec that our export noted and that no file can contradict.

    Args:
        most: the longest sequence that the folder's files allow. The lengths that were
            noted under another one are void: the files were changed since.
        prompt: the template that the files ask for.

    Raises:
        UserError: the noted prompt and that of the files are two.
    """
    note = folder.config.get("distill_jax") or {}
    noted = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in note.get("fields", {}).items()
    }
    kind = note.get("kind")
    names = set(_ONLY_NOTED.get(kind or "", ()))
    if folder.form == "hugging_face":
        # One transformers class: nothing else says how it is used.
        names |= {"head", *_LENGTHS, *_OF_A_BARE_ENCODER}
    elif most is not None and note.get("longest") == most:
        names |= set(_LENGTHS)
    kept = {name: value for name, value in noted.items() if name in names}
    if prompt and kept.get("prompt", prompt) not in (prompt, CROSS_ENCODER):
        raise UserError(
            f"{folder.path}: config.json notes the template {kept['prompt']!r}, "
            f"config_sentence_transformers.json asks for {prompt!r}",
            "take one of them out",
        )
    if prompt:
        kept.pop("prompt", None)
    return kept


def top(folder: Folder) -> dict:
    """What sentence-transformers and PyLate say of the whole model."""
    return folder.json("config_sentence_transformers.json")


def read_json(path: Path, default: Any = None) -> Any:
    """A JSON file, ``default`` when absent.

    Raises:
        UserError: the file exists and is not JSON.
    """
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}", "download it again") from error


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
    if not path.exists() and not _is_step(path):
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


def recognise(path: str | Path) -> Folder:
    """The form of a folder.

    Raises:
        UserError: no known format; the message lists the files that were looked for.
    """
    path = Path(path)
    if path.is_file():
        if path.name == "checkpoint" or path.suffix in ("", ".npz"):
            return Folder(path=path, form="t5x")
        path = path.parent
    own = _own(path)
    if own is not None:
        return own
    if all((path / name / "modules.json").is_file() for name in TOWERS):
        return Folder(path=path, form="two_towers")
    config = read_json(path / "config.json", {})
    if not isinstance(config, dict):
        raise UserError(f"{path}/config.json is not a JSON object")
    if (path / "modules.json").is_file():
        return _modular(path, config)
    if config:
        return Folder(path=path, form=_plain(config), config=config)
    if _is_t5x(path):
        return Folder(path=path, form="t5x")
    looked = "; ".join(LOOKED_FOR.values())
    raise UserError(f"{path}: no model is recognised here", f"looked for: {looked}")


def _own(path: Path) -> Folder | None:
    if (path / "student.json").is_file():
        return Folder(path=path, form="student")
    if (path / "student" / "student.json").is_file():
        return Folder(path=path, form="model_dir")
    if _is_step(path):
        return Folder(path=path, form="step")
    if (path / "checkpoints").is_dir():
        return Folder(path=path, form="model_dir")
    return None


def _is_step(path: Path) -> bool:
    """The folder of an Orbax step, which may be missing: its reader lists the steps."""
    run = path.parent
    return path.name.isdigit() and run.name == "checkpoints" and run.is_dir()


def _modular(path: Path, config: dict) -> Folder:
    records = read_json(path / "modules.json", [])
    try:
        modules = tuple(
            (record["type"].rsplit(".", 1)[-1], _inside(path, record["path"]))
            for record in sorted(records, key=lambda record: record["idx"])
        )
        classes = [record["type"] for record in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}/modules.json: not a list of modules: {error!r}"
        ) from error
    names = {name for name, _ in modules}
    top = read_json(path / "config_sentence_transformers.json", {})
    known = {"Transformer", "MLMTransformer", "Pooling", "SpladePooling", "Dense"}
    known |= {"Normalize", "MultiVectorMask", "StaticEmbedding"}
    if names - known:
        raise UserError(
            f"{path}/modules.json has the modules {sorted(names - known)}",
            f"these are read: {', '.join(sorted(known))}; no other code is run",
        )
    if "SpladePooling" in names:
        form = "splade"
    elif (
        "MultiVectorMask" in names
        or any(name.startswith("pylate.") for name in classes)
        or top.get("model_type") in ("ColBERT", "MultiVectorEncoder")
    ):
        form = "pylate"
    elif "StaticEmbedding" in names:
        form = "static"
    elif "Pooling" in names:
        form = "dual_encoder"
    else:
        form = _plain(config)
    root = modules[0][1] if modules else path
    if root != path and not config:
        config = read_json(root / "config.json", {})
    return Folder(path=path, form=form, config=config, modules=modules)


def _inside(path: Path, name: str) -> Path:
    folder = (path / name).resolve()
    if not folder.is_relative_to(path.resolve()):
        raise UserError(
            f"{path}/modules.json: the module {name[:80]!r} leads out of the folder",
            "do not trust this model",
        )
    return path / name if name else path


def is_mono(config: dict) -> bool:
    """lightning-ir's pointwise cross-encoder, on a backbone that it names beside."""
    return config.get("model_type") == "mono" and "backbone_model_type" in config


def _plain(config: dict) -> str:
    architecture = (config.get("architectures") or [""])[0]
    if "HF_ColBERT" in architecture:
        return "stanford"
    if architecture.endswith("ForSequenceClassification") or is_mono(config):
        return "cross_encoder"
    return "hugging_face"


def _is_t5x(path: Path) -> bool:
    if (path / "checkpoint").is_file():
        return True
    if any(inside.is_dir() for inside in path.glob("checkpoint_*")):
        return True  # T5X's MODEL_DIR: its reader takes the last step
    marks = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "checkpoint")
    return any(
        (path / inside / mark).exists()
        for inside in ("", "state", "target", "default")
        for mark in marks
    )
