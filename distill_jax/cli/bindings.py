"""Checks the bindings of one command: types, functions, and that something reads each.

Gin gives any value to any parameter, and takes a binding that nothing reads. Here each
value is compared with the annotation of the parameter it is bound to, functions get
their own bindings for good (so that a record of a job holds them), and what the user
bound is compared with what the job has called.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gin import config as gin_config

from distill_jax.cli import recipes
from distill_jax.cli.origins import OVERLAY, Names
from distill_jax.io.errors import UserError, near
from distill_jax.io.values import (
    Mismatch,
    Named,
    Text,
    argument_types,
    is_plain,
    read,
    refuse,
    untyped,
)

Key = tuple[str, str]  # scope, selector

_MACRO = "gin.macro"


class Bindings:
    """What gin holds, and which of it the user wrote.

    Args:
        parsed: statements of all files, in sequence.
        flags: names and texts of ``--gin.NAME=VALUE``.
    """

    def __init__(self, parsed: Sequence[Any], flags: Sequence[tuple[str, str]]):
        self._flags, self._names_of = flags, Names(parsed)
        self._own = {name for _, name in self._names_of.of_user(flags)}
        # The functions that a parameter's value holds, and the names it is built from.
        self._functions: dict[Key, set[Key]] = {}
        self._names = {
            key: {name for value in parameters.values() for name in _names(value)}
            for key, parameters in _parameters()
        }

    def settle(self) -> None:
        """Turns every value into its parameter's type.

        Raises:
            UserError: values that are of another type or out of range, by their flags.
        """
        wrong: dict[str, UserError] = {}
        uses: dict[str, list[tuple[Key, str, Any]]] = {}
        for key, parameters in _parameters():
            kinds = argument_types(_wrapped(key))
            for parameter, bound in parameters.items():
                name, value = _resolved(bound)
                label = name or "/".join(filter(None, (key[0], _short(key, parameter))))
                kind = kinds.get(parameter, Any)
                try:
                    found = read(_plain(value, kind), kind, _is_reference)
                except Mismatch as error:
                    if value is None and name not in self._own:
                        continue  # the recipe's own "not given", for a part unused
                    wrong.setdefault(label, refuse(label, value, str(error)))
                    continue
                except UserError as error:
                    wrong.setdefault(
                        label, UserError(f"{label}: {error.what}", error.todo)
                    )
                    continue
                self._check_part(label, found, kind, wrong)
                if name is None:
                    if repr(found) != repr(bound):
                        gin_config._CONFIG[key][parameter] = found
                else:
                    uses.setdefault(name, []).append((key, parameter, found))
        if wrong:
            raise _together(list(wrong.values()))
        for name, found in uses.items():
            _give(name, found)
        for (_, selector), parameters in gin_config._CONFIG.items():
            for parameter, value in parameters.items():
                if selector == _MACRO:
                    parameters[parameter] = _untyped(value)

    def _check_part(self, label: str, found: Any, kind: Any, wrong: dict) -> None:
        """Refuses a reference to a class whose objects do not fit the parameter."""
        if not isinstance(found, gin_config.ConfigurableReference):
            return
        made = _configurable(found).wrapped
        if is_plain(kind) and not found.evaluate:
            wrong.setdefault(label, refuse(label, found, "a plain value"))
            return
        kinds = [k for k in _flat(kind) if inspect.isclass(k)]
        if not kinds or not inspect.isclass(made) or Any in kinds or object in kinds:
            return
        protocols = any(getattr(k, "_is_protocol", False) for k in kinds)
        if not protocols and not issubclass(made, tuple(kinds)):
            wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
            wrong.setdefault(label, refuse(label, found, wanted))

    def make_functions(self) -> None:
        """Gives each function that is bound as a value its own bindings, for good.

        A loss, an optimizer or a schedule is then a plain function, or a partial that
        says what it was given: a digest of the job holds both.
        """
        for key, parameters in _parameters():
            kinds = argument_types(_wrapped(key))
            for parameter, bound in list(parameters.items()):
                named = _flat(kinds.get(parameter, Any), Named)
                used: set[Key] = set()
                value = self._with_functions(bound, named, used)
                if used:
                    parameters[parameter] = value
                    self._functions.setdefault(key, set()).update(used)

    def _with_functions(self, bound: Any, named: list[Named], used: set[Key]) -> Any:
        _, value = _resolved(bound)
        if isinstance(value, gin_config.ConfigurableReference):
            function = _configurable(value).wrapped
            if value.evaluate or not inspect.isfunction(function):
                return bound
            scope = "/".join(value.scopes)
            return self._bound_function((scope, _configurable(value).selector), used)
        if isinstance(value, str) and named:
            module = importlib.import_module(named[0].module)
            function = getattr(module, value)
            known = gin_config._INVERSE_REGISTRY.get(function)
            if known is None:
                used.add(("", f"{named[0].module}.{value}"))
                return function
            return self._bound_function(("", known.selector), used)
        if isinstance(value, tuple | list):
            items = [self._with_functions(item, named, used) for item in value]
            return type(value)(items) if used else bound
        return bound

    def _bound_function(self, key: Key, used: set[Key]) -> Any:
        scope, selector = key
        scopes = scope.split("/") if scope else []
        used.add(key)
        options = {}
        for name, bound in gin_config._get_bindings(selector, scopes).items():
            options[name] = self._with_functions(bound, [], used)
            if isinstance(options[name], gin_config.ConfigurableReference):
                _, options[name] = _resolved(options[name])
        function = gin_config._REGISTRY[selector].wrapped
        return functools.partial(function, **options) if options else function

    def unread(self) -> Iterator[tuple[str, str, set[str]]]:
        """What the user bound and the job did not read: compared with what it called.

        Yields:
            Where it was bound, its name, and the other names of the recipe.
        """
        called = {key for key in gin_config._OPERATIVE_CONFIG if key[1] != _MACRO}
        for key, functions in self._functions.items():
            if _is_called(key, called):
                called |= functions
        read_names = set()
        for key, names in self._names.items():
            if _is_called(key, called):
                read_names |= names
        own = self._names_of
        for where, name in own.of_user(self._flags):
            if "." in name:
                scope, _, selector = name.rpartition("/")
                selector, _, _ = selector.rpartition(".")
                if any(_is_called(k, called) for k in _matching(scope, selector)):
                    continue
            elif name in read_names or name in own.free:
                continue
            yield where, name, own.recipe - {name}


def unread_error(where: str, name: str, known: set[str]) -> UserError:
    """The error for a name or a parameter that nothing reads."""
    return UserError(
        f"{where}: nothing reads {name} here{near(name, known)}",
        "take it out, or see what else it needs in the recipe's header; a gin "
        f"file for several recipes says {OVERLAY} = True",
    )


def _parameters() -> list[tuple[Key, dict[str, Any]]]:
    """Bound parameters of everything but names."""
    return [item for item in gin_config._CONFIG.items() if item[0][1] != _MACRO]


def _wrapped(key: Key) -> Any:
    return gin_config._REGISTRY[key[1]].wrapped


def _short(key: Key, parameter: str) -> str:
    return ".".join([*key[1].split(".")[-2:], parameter])


def _is_macro(value: Any) -> bool:
    return (
        isinstance(value, gin_config.ConfigurableReference)
        and _configurable(value).wrapped is gin_config.macro
    )


def _is_reference(value: Any) -> bool:
    return isinstance(value, gin_config.ConfigurableReference)


def _resolved(bound: Any) -> tuple[str | None, Any]:
    """The last name of a chain of names, and its value."""
    name, seen = None, set()
    while _is_macro(bound) and repr(bound) not in seen:
        seen.add(repr(bound))
        name = "/".join(bound.scopes)
        values = gin_config._get_bindings(_MACRO, bound.scopes)
        if "value" not in values:
            raise UserError(f"no value for the name {name}", f"set --gin.{name}=...")
        bound = values["value"]
    return name, recipes.as_text(bound)


def _plain(value: Any, kind: Any) -> Any:
    """A value in which names are replaced by their values."""
    _, value = _resolved(value)
    if isinstance(value, tuple | list):
        return type(value)(_plain(item, kind) for item in value)
    if isinstance(value, Mapping):
        return {key: _plain(item, kind) for key, item in value.items()}
    return value


def _names(value: Any) -> Iterator[str]:
    """All names that a value depends on, directly or through other names."""
    if _is_macro(value):
        yield "/".join(value.scopes)
        found = gin_config._get_bindings(_MACRO, value.scopes)
        yield from _names(found.get("value"))
    elif isinstance(value, Mapping):
        yield from _names([*value, *value.values()])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _names(item)


def _give(name: str, found: list[tuple[Key, str, Any]]) -> None:
    """A name takes its type where all of its parameters agree on one."""
    if len({repr(value) for _, _, value in found}) == 1:
        *scopes, last = name.split("/")
        del last, scopes
        parameters = gin_config._CONFIG[(name, _MACRO)]
        parameters["value"] = found[0][2]
        return
    for key, parameter, value in found:
        if not _is_reference(value):
            gin_config._CONFIG[key][parameter] = value


def _untyped(value: Any) -> Any:
    found = recipes.as_text(value)
    return untyped(found.text) if isinstance(found, Text) else value


def _flat(kind: Any, of: type | None = None) -> list[Any]:
    """The plain types of an annotation, or its checks of one class."""
    arguments = typing.get_args(kind)
    found = [kind] if not arguments else []
    for argument in arguments:
        found += _flat(argument, None)
    if of is None:
        return found
    return [item for item in found if isinstance(item, of)]


def _is_called(key: Key, called: set[Key]) -> bool:
    scope, selector = key
    return any(
        selector == other and (not scope or f"{within}/".startswith(f"{scope}/"))
        for within, other in called
    )


def _matching(scope: str, selector: str) -> list[Key]:
    """Keys that a statement's selector can be: a file names a part by its import."""
    last = selector.rpartition(".")[2]
    return [
        key
        for key, _ in _parameters()
        if key[0] == scope and key[1].rpartition(".")[2] == last
    ]


def _together(errors: list[UserError]) -> UserError:
    """Several mistakes in two lines."""
    if len(errors) == 1:
        return errors[0]
    return UserError(
        "; ".join(error.what for error in errors)[:900],
        "set each of them again, in the gin file or by --gin.NAME=...",
    )


def _configurable(reference: gin_config.ConfigurableReference) -> Any:
    """What a reference names; gin fills it in as it parses."""
    return reference.configurable
