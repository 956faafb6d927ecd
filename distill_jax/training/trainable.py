"""Which parameters are trained: chosen by name; the rest keep every bit.

What is not trained has no gradient and no moments: the train step differentiates with
respect to the chosen parameters alone.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Some of a student's parameters.

    Attributes:
        patterns: regular expressions, searched for in the dotted path of a parameter
            ("tower.encoder.layers.0.attention.query.kernel"); None is all parameters.
    """

    patterns: tuple[str, ...] | None = None

    @classmethod
    def of(cls, value: Any) -> Trainable:
        """What a recipe says: None, a regular expression, or several.

        Raises:
            UserError: none of these, or no regular expression.
        """
        if value is None or value == "None":
            return cls()
        patterns = (value,) if isinstance(value, str) else value
        todo = r"e.g. --gin.TRAINABLE='layers\.(10|11)\.|head'; None trains all"
        if not isinstance(patterns, tuple | list) or not patterns:
            raise UserError(f"TRAINABLE is {value!r}: no regular expression", todo)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise UserError(
                    f"TRAINABLE: {pattern!r} is no regular expression ({error})", todo
                ) from None
        return cls(tuple(patterns))

    def parted(self, params: dict) -> tuple[dict, dict]:
        """A nested dict of parameters as those that are trained, and the others.

        Raises:
            UserError: an expression matches no parameter.
        """
        if self.patterns is None:
            return params, {}
        flat = flatten(params)
        chosen = set()
        for pattern in self.patterns:
            found = {name for name in flat if re.search(pattern, name)}
            if not found:
                shown = [*flat][:: max(1, len(flat) // 4)][:4]
                raise UserError(
                    f"TRAINABLE: {pattern!r} matches none of {len(flat)} parameters",
                    f"their names are such as {', '.join(shown)}",
                )
            chosen |= found
        trained = {name: leaf for name, leaf in flat.items() if name in chosen}
        rest = {name: leaf for name, leaf in flat.items() if name not in chosen}
        return unflatten(trained), unflatten(rest)


ALL = Trainable()


def joined(trained: dict, rest: dict | None) -> dict:
    """The inverse of ``Trainable.parted``."""
    return unflatten({**flatten(trained), **flatten(rest)}) if rest else trained


def trainables(value: Any) -> tuple[str, ...] | None:
    """A recipe's value, checked, for ``io.values.Check``."""
    return Trainable.of(value).patterns
