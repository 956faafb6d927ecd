"""Our own models on disk: a saved student, a ``MODEL_DIR``, one of its Orbax steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError, understood
from distill_jax.models.lora import merged
from distill_jax.models.pretrained import (
    Pretrained,
    abstract_params,
    flatten,
    unflatten,
)
from distill_jax.weights.safe import confined, read_header
from distill_jax.weights.students import check_vocabulary


def read_student(folder: Path) -> Pretrained:
    """What ``Pretrained.save`` wrote, its files checked first.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer is another model's.
    """
    for name in ("student.json", "params.safetensors", "tokenizer"):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no {name}", "the save was cut; train again")
    read_header(confined(folder, "params.safetensors"))
    with understood(
        f"{folder}/student.json is not understood",
        "it was written by another version of distill_jax, or edited",
    ):
        pretrained = Pretrained.read(folder)
    check_vocabulary(pretrained.tokenizer, pretrained.spec.backbone, str(folder))
    return _checked(pretrained, pretrained.params, folder)


def read_model_dir(folder: Path) -> Pretrained:
    """The trained student of a job's directory.

    Raises:
        UserError: the training has not ended.
    """
    if (folder / "student" / "student.json").is_file():
        return read_student(folder / "student")
    steps = _steps(folder / "checkpoints")
    if steps and _described(folder) is not None:
        return read_step(folder / "checkpoints" / str(steps[-1]))
    raise UserError(
        f"{folder}: no student/ here, the training has not ended",
        "run the same command again: it goes on from its last checkpoint",
    )


def read_step(folder: Path) -> Pretrained:
    """The parameters of one Orbax step, in the student that its run trains.

    Raises:
        UserError: the step is missing, or no file names its student.
    """
    run = folder.parent.parent
    if not (folder / "params").is_dir():
        there = _steps(folder.parent)
        raise UserError(
            f"{folder}: no checkpoint of this step", f"there are {there or 'none'}"
        )
    described = _described(run)
    if described is None:
        raise UserError(
            f"{run}: neither student/ nor initial/ says what {folder.name} is of",
            "run the training's command again, it writes them",
        )
    like = read_student(described)
    return _checked(
        like.replace(source=str(folder)), merged(_orbax(folder / "params")), folder
    )


def _described(run: Path) -> Path | None:
    for name in ("student", "initial"):
        if (run / name / "student.json").is_file():
            return run / name
    return None


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def _orbax(folder: Path) -> dict:
    import jax
    import orbax.checkpoint as ocp

    folder = folder.absolute()
    with ocp.PyTreeCheckpointer() as reader:
        found: Any = reader.metadata(folder)
        found = getattr(found, "item_metadata", found)
        tree = getattr(found, "tree", found)
        # As numpy: the devices that wrote it need not be here.
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, restore_args=args)


def _checked(pretrained: Pretrained, params: dict, folder: Path) -> Pretrained:
    """The student with ``params``, if they are the ones that its spec asks for."""
    flat = flatten(params)
    wanted = flatten(abstract_params(pretrained.spec))
    wrong = [
        f"{path}: {_shape(flat.get(path))} here, {_shape(wanted.get(path))} in the spec"
        for path in sorted({*flat, *wanted})
        if _shape(flat.get(path)) != _shape(wanted.get(path))
    ]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} parameters do not fit: {'; '.join(wrong[:3])}",
            "the files are of two different models",
        )
    return pretrained.replace(params=unflatten(flat))


def _shape(leaf: Any) -> str:
    return "absent" if leaf is None else "x".join(map(str, leaf.shape)) or "scalar"
