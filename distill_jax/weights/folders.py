"""What a folder holds, recognised from its files alone.

Nothing is imported, executed or unpickled on the way.
"""

from __future__ import annotations

import dataclasses
import json
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
    "router": "modules.json with Router, and router_config.json",
    "pylate": "modules.json with a PyLate Dense or a MultiVectorMask",
    "cross_encoder": "config.json of a ...ForSequenceClassification or of "
    "lightning-ir's mono",
    "stanford": "config.json of HF_ColBERT and artifact.metadata",
    "hugging_face": "config.json of a T5 or an encoder, and its weights",
    "t5x": "checkpoint (T5X), or target/ or state/ with Orbax metadata (T5X)",
}
TOWERS = ("query_encoder", "doc_encoder")


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
        UserError: the file exists and is not JSON, which has no NaN and no infinity.
    """
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}", "download it again") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


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
    towers = all((path / name / "modules.json").is_file() for name in TOWERS)
    if towers and not (path / "modules.json").is_file():
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
    if is_step(path):
        return Folder(path=path, form="step")
    if (path / "checkpoints").is_dir():
        return Folder(path=path, form="model_dir")
    return None


def is_step(path: Path) -> bool:
    """The folder of an Orbax step, which may be missing: its reader lists the steps."""
    run = path.parent
    return path.name.isdigit() and run.name == "checkpoints" and run.is_dir()


def _modular(path: Path, config: dict) -> Folder:
    records = read_json(path / "modules.json", [])
    try:
        modules = tuple(
            (record["type"].rsplit(".", 1)[-1], inside(path, record["path"]))
            for record in sorted(records, key=lambda record: record["idx"])
        )
        classes = [record["type"] for record in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}/modules.json: not a list of modules: {error!r}"
        ) from error
    if modules and modules[0][0] in ("Router", "Asym"):
        return Folder(path=path, form="router", modules=modules)
    return modular(path, modules, classes, config)


def modular(
    path: Path, modules: tuple[tuple[str, Path], ...], classes: list[str], config: dict
) -> Folder:
    """The form of a chain of sentence-transformers' modules.

    Args:
        path: of the whole model.
        modules: short class names and folders.
        classes: whole class names.
        config: of the model at the root.

    Raises:
        UserError: a module that is not read.
    """
    names = {name for name, _ in modules}
    top = read_json(path / "config_sentence_transformers.json", {})
    known = {"Transformer", "MLMTransformer", "Pooling", "SpladePooling", "Dense"}
    known |= {"Normalize", "MultiVectorMask", "StaticEmbedding"}
    foreign = {name for name in classes if not name.startswith(_LIBRARIES)}
    if unread := (names - known) | foreign:
        raise UserError(
            f"{path}/modules.json has the modules {sorted(unread)}",
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


_LIBRARIES = ("sentence_transformers.", "pylate.", "model2vec.")


def inside(path: Path, name: str) -> Path:
    """The folder of a module.

    Raises:
        UserError: it lies outside of the model's.
    """
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
