"""Which parameters are trained: chosen by name, or adapters; the rest keep every bit.

What is not trained has no gradient and no moments: the train step differentiates with
respect to the chosen parameters alone.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models import lora
from distill_jax.models.lora import LoRA
from distill_jax.models.pretrained import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A choice of a student's parameters to train, and adapters for others.

    Attributes:
        patterns: regular expressions, searched for in the dotted path of a parameter
            ("tower.encoder.layers.0.attention.query.kernel"); None is all parameters,
            or with ``lora`` none.
        lora: adapters that are trained as well, for kernels that are frozen.
    """

    patterns: tuple[str, ...] | None = None
    lora: LoRA | None = None

    @classmethod
    def of(cls, value: Any) -> Trainable:
        """Parses a recipe's value: None, a regular expression, ``lora:...``, or some.

        Raises:
            UserError: none of these, or no regular expression.
        """
        if value is None:
            return cls()
        given = (value,) if isinstance(value, str) else value
        todo = (
            r"e.g. --gin.TRAINABLE='layers\.(10|11)\.|head', or lora; None trains all"
        )
        if not isinstance(given, tuple | list) or not given:
            raise UserError(f"TRAINABLE is {value!r}: not a regular expression", todo)
        patterns, lora = [], None
        for text in given:
            if isinstance(text, str) and re.match(r"lora(:|$)", text):
                lora = LoRA.of(text)
                text = lora.targets
            else:
                patterns.append(text)
            try:
                re.compile(text)
            except (re.error, TypeError) as error:
                raise UserError(
                    f"TRAINABLE: {text!r} is not a regular expression ({error})", todo
                ) from None
        return cls(tuple(patterns) or None, lora)

    def prepared(self, params: dict, seed: int) -> dict:
        """A student's parameters with the adapters that are trained, if any."""
        if self.lora is None:
            return params
        return self.lora.adapted(params, seed, self._chosen([*flatten(params)]))

    def parted(self, params: dict) -> tuple[dict, dict]:
        """A nested dict of parameters as those that are trained, and the others.

        Args:
            params: as ``prepared`` makes them.

        Raises:
            UserError: an expression matches no parameter.
        """
        if self.patterns is None and self.lora is None:
            return params, {}
        own, adapters = lora.parted(params)
        chosen = self._chosen([*own])
        trained, rest = {}, {}
        for name, leaf in (own | adapters).items():
            adapts = name in adapters and not name.endswith("scale")
            (trained if name in chosen or adapts else rest)[name] = leaf
        return unflatten(trained), unflatten(rest)

    def _chosen(self, names: list[str]) -> set[str]:
        chosen = set()
        for pattern in self.patterns or ():
            found = {name for name in names if re.search(pattern, name)}
            if not found:
                shown = names[:: max(1, len(names) // 4)][:4]
                raise UserError(
                    f"TRAINABLE: {pattern!r} matches none of {len(names)} parameters",
                    f"their names are such as {', '.join(shown)}",
                )
            chosen |= found
        return chosen


ALL = Trainable()


def joined(trained: dict, rest: dict | None) -> dict:
    """The inverse of ``Trainable.parted``."""
    return unflatten({**flatten(trained), **flatten(rest)}) if rest else trained


def trainables(value: Any) -> Any:
    """A recipe's value, checked, for ``io.values.Check``: a tuple, or None."""
    Trainable.of(value)
    return (value,) if isinstance(value, str) else value
