"""Finds incompatible installed packages, each with the command that fixes it.

pip keeps the bounds of what it installs, not of what was there before: a later
``pip install --upgrade tensorflow`` keeps tensorflow-text, and what fails then
is an undefined symbol in the middle of a job.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from distill_jax.io.errors import UserError, clip

_US = "distill_jax"
# The smallest use of libraries that load compiled code of other packages.
_TRIALS = {
    "seqio": "import seqio",
    "scann": "from distill_jax.retrieval import scann_import as s; s.numpy_half()",
}


def problems(path: list[str] | None = None, *, trials: bool = True) -> list[UserError]:
    """What is wrong with the packages that this one uses; empty where all fits.

    Looked at are its requirements, those of its extras that are installed, and all
    that these require in turn.

    Args:
        path: folders where packages are looked for; ``sys.path`` for None.
        trials: whether to load, each in another process, the libraries whose compiled
            code is known to break beside another release of a neighbour; seconds.
    """
    installed = _Installed(sys.path if path is None else path)
    found: dict[str, UserError] = {}
    for owner, requirement, optional in _requirements(installed):
        there = installed.get(requirement.name)
        spec = _plain(requirement)
        mend = f"python -m pip install {shlex.quote(spec)}"
        if there is None:
            if not optional:
                what = f"{owner} needs {spec}, which is not installed"
                found.setdefault(spec, UserError(what, mend))
        elif not _fits(requirement, there.version):
            name = requirement.name
            what = f"{owner} needs {spec}, and {name} {there.version} is installed"
            found.setdefault(spec, UserError(what, mend))
    broken = list(found.values())
    if trials and not broken:
        broken = [error for name in _TRIALS for error in _trial(name, installed)]
    return broken


class _Installed:
    """Distributions by name, in any spelling, of some folders."""

    def __init__(self, path: list[str]):
        self._path = path
        self._known: dict[str, Distribution | None] = {}

    def get(self, name: str) -> Distribution | None:
        key = canonicalize_name(name)
        if key not in self._known:
            context = DistributionFinder.Context(name=key, path=self._path)
            found = MetadataPathFinder.find_distributions(context)
            self._known[key] = next(iter(found), None)
        return self._known[key]


def _requirements(installed: _Installed) -> Iterator[tuple[str, Requirement, bool]]:
    """(who requires, what, whether it may be absent), from this package downwards."""
    todo: list[tuple[str, str]] = [(_US, "")]
    ours = installed.get(_US)
    extras = (ours.metadata.get_all("Provides-Extra") or []) if ours else []
    todo += [(_US, extra) for extra in extras]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        distribution = installed.get(name)
        if distribution is None:
            continue
        owner = _US if name == _US else f"{name} {distribution.version}"
        for text in distribution.requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue  # of a foreign package, in a form older than the standard
            marker = requirement.marker
            if marker is not None and not marker.evaluate({"extra": extra}):
                continue
            if extra and (marker is None or marker.evaluate({"extra": ""})):
                continue  # reported without the extra already
            if canonicalize_name(requirement.name) == canonicalize_name(_US):
                continue
            yield owner, requirement, bool(extra)
            if installed.get(requirement.name) is not None:
                for part in ("", *requirement.extras):
                    below = canonicalize_name(requirement.name), part
                    if below not in seen:
                        seen.add(below)
                        todo.append(below)


def _plain(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _fits(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _trial(name: str, installed: _Installed) -> Iterator[UserError]:
    there = installed.get(name)
    if there is None:
        return
    done = subprocess.run(
        [sys.executable, "-c", _TRIALS[name]], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        ours = installed.get(_US)
        wanted = [
            _plain(requirement)
            for requirement in map(Requirement, (ours and ours.requires) or [])
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": name})
        ]
        line = " ".join(map(shlex.quote, wanted or [name]))
        yield UserError(
            f"{name} {there.version} does not load beside what is installed: "
            f"{clip(reason, 160)}",
            f"python -m pip install --upgrade --force-reinstall {line}",
        )
