"""Low-rank adapters: ``W + scale * A @ B`` in place of ``W`` (Hu et al. 2021).

An adapter is three leaves beside the kernel that it changes: ``lora_a`` [in, rank],
``lora_b`` [rank, out] and ``lora_scale`` [], which is alpha / rank. Layers know nothing
of them: the sum is taken before a module is built, so every family, mesh, scan and
GradCache serves them. It costs the product of A and B at each step, and no moments.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.io.errors import UserError, near
from distill_jax.models.pretrained import flatten, unflatten

_LEAF = re.compile(r"(.*\.)lora_(a|b|scale)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices get adapters, and of what size.

    Attributes:
        rank: the inner width of ``A @ B``.
        alpha: scale of the product times ``rank``, as in ``peft``.
        targets: regular expression, searched for in the dotted paths of kernels; the
            default is every matrix of every layer.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str = r"layers\."

    @classmethod
    def of(cls, text: str) -> LoRA:
        """``lora`` or ``lora:rank=8,alpha=16,targets=REGEX``, where targets is last.

        Raises:
            UserError: another field, or a value that does not fit.
        """
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        rest, given = text.partition(":")[2], {}
        todo = r"e.g. lora:rank=16,alpha=32,targets=attention\.(query|value)"
        while rest:
            name, equals, rest = rest.partition("=")
            if name not in known or not equals:
                raise UserError(
                    f"{text!r}: no field {name!r} of LoRA{near(name, known)}", todo
                )
            value, _, rest = (
                (rest, "", "") if name == "targets" else rest.partition(",")
            )
            try:
                given[name] = {"rank": int, "alpha": float, "targets": str}[name](value)
            except ValueError:
                raise UserError(f"{text!r}: {name} is {value!r}", todo) from None
        made = cls(**given)
        if made.rank < 1 or not 0 < made.alpha < math.inf:
            raise UserError(f"{text!r}: rank and alpha are above 0", todo)
        return made

    def adapted(self, params: dict, seed: int, besides: Collection[str] = ()) -> dict:
        """The parameters with adapters that change nothing yet: B is 0.

        A is uniform in +-1 / sqrt(in), as ``peft`` begins.

        Args:
            besides: paths of kernels that get none.

        Raises:
            UserError: no kernel is a target.
        """
        flat = flatten(params)
        kernels = [
            path
            for path, leaf in flat.items()
            if path.endswith(".kernel") and len(leaf.shape) == 2 and path not in besides
        ]
        targets = [path for path in kernels if re.search(self.targets, path)]
        if not targets:
            shown = ", ".join(kernels[:: max(1, len(kernels) // 4)][:4])
            raise UserError(
                f"LoRA: targets {self.targets!r} match none of {len(kernels)} matrices",
                f"their names are such as {shown or 'none'}",
            )
        for path in targets:
            stem, (width, out) = path.removesuffix("kernel"), flat[path].shape
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stem.encode()))
            bound = 1 / math.sqrt(width)
            flat[f"{stem}lora_a"] = jax.random.uniform(
                key, (width, self.rank), minval=-bound, maxval=bound
            )
            flat[f"{stem}lora_b"] = jnp.zeros((self.rank, out))
            flat[f"{stem}lora_scale"] = jnp.float32(self.alpha / self.rank)
        return unflatten(flat)


def merged(params: dict) -> dict:
    """The student's own parameters, each kernel with its adapter added."""
    flat, adapters = parted(params)
    for name, a in adapters.items():
        if name.endswith("lora_a"):
            stem = name.removesuffix("lora_a")
            product = jnp.matmul(a, adapters[f"{stem}lora_b"], precision="highest")
            change = adapters[f"{stem}lora_scale"] * product
            flat[f"{stem}kernel"] = flat[f"{stem}kernel"] + change
    return unflatten(flat) if adapters else params


def parted(params: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The student's own parameters by path, and the leaves of adapters."""
    own, adapters = {}, {}
    for name, leaf in flatten(params).items():
        (adapters if _LEAF.fullmatch(name) else own)[name] = leaf
    return own, adapters
