"""A gin file names the declared parts of a recipe, and nothing else of the package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
from gin import config as gin_config

import distill_jax
from distill_jax.cli import config
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.recipe.registry import PARTS

HEADER = "from __gin__ import dynamic_registration\n"


def read(tmp_path, text: str, *argv: str) -> None:
    """What happens before anything that the file names is called."""
    path = tmp_path / "mine.gin"
    path.write_text(HEADER + text)
    config.read_config(parse_flags([f"--gin_file={path}", *argv]))


def public() -> list[tuple[str, str, object]]:
    """(module, name, value) of all callables that a gin file can reach by one import,
    methods of public classes among them."""
    found = []
    for info in pkgutil.walk_packages(distill_jax.__path__, "distill_jax."):
        module = importlib.import_module(info.name)
        for name, value in inspect.getmembers(module, callable):
            if name.startswith("_"):
                continue
            found.append((info.name, name, value))
            if inspect.isclass(value) and value.__module__ == info.name:
                found += [
                    (info.name, f"{name}.{attribute}", method)
                    for attribute, method in inspect.getmembers(value, callable)
                    if not attribute.startswith("_")
                ]
    return found


@pytest.fixture(scope="module", autouse=True)
def _gin_forgets():
    """Gin keeps what a file named: a class made later has gin's form of its methods."""
    known = list(gin_config._REGISTRY.items())
    inverse = dict(gin_config._INVERSE_REGISTRY)
    yield
    gin_config._REGISTRY = type(gin_config._REGISTRY)()
    for selector, value in known:
        gin_config._REGISTRY[selector] = value
    gin_config._INVERSE_REGISTRY.clear()
    gin_config._INVERSE_REGISTRY.update(inverse)


@pytest.mark.long
def test_exactly_the_declared_parts_can_be_named(tmp_path):
    declared = {
        id(getattr(importlib.import_module(module), name))
        for module, names in PARTS.items()
        for name in names
    }
    wrong, passed = [], set()
    for module, name, value in public():
        package, _, last = module.rpartition(".")
        try:
            read(tmp_path, f"from {package} import {last}\nSEED = @{last}.{name}()\n")
            accepted = True
        except (UserError, TypeError, ValueError, NameError, AttributeError):
            accepted = False
        if accepted:
            passed.add(id(value))
        if accepted and id(value) not in declared:
            wrong.append(f"{module}.{name}")
    assert not wrong
    assert passed == declared


@pytest.mark.parametrize(
    "text",
    [
        "from distill_jax.io import reading\nSEED = @reading.write_json()\n",
        "from distill_jax.io import reading\nSEED = @reading.write_json\n",
        "from distill_jax.io import reading\nreading.write_json.path = '/tmp/x'\n",
        "from distill_jax.io import reading\nSEED = {@reading.write_json(): 1}\n",
        "from distill_jax.io import reading\nSEED = ({1: [@reading.write_json()]},)\n",
        "from distill_jax.io import reading\nscope/reading.write_json.path = 'x'\n",
        "from distill_jax.export import subprocess_scorer\n"
        "SEED = @subprocess_scorer.answer()\n",
        "from distill_jax.workspace import cached_step\n"
        "SEED = @cached_step.move_aside()\n",
        "from distill_jax.recipe import registry\nSEED = @registry.is_part()\n",
        "from distill_jax.recipe import candidates\nSEED = @candidates.Run.read()\n",
        "import distill_jax.main\nSEED = @distill_jax.main.main()\n",
    ],
)
def test_what_is_no_part_is_refused_wherever_it_stands(tmp_path, text):
    for _ in range(2):  # gin keeps what it was given once
        with pytest.raises(UserError, match="not a part of a recipe"):
            read(tmp_path, text)


def test_an_allowed_package_opens_nothing_of_this_one(tmp_path, monkeypatch):
    (tmp_path / "mine_alone.py").write_text(
        "from distill_jax.io.reading import write_json\ndef width():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    allow = "--allow_import=mine_alone"
    read(tmp_path, "import mine_alone\nSEED = @mine_alone.width()\n", allow)
    text = "import mine_alone\nSEED = @mine_alone.write_json()\n"
    for flags in ([allow], [allow, "--allow_import=distill_jax"]):
        with pytest.raises(UserError, match="not a part of a recipe"):
            read(tmp_path, text, *flags)
