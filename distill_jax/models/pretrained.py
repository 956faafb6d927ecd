"""A model at rest: how to build it, its parameters, and its tokenizer.

This is what every reader of ``weights`` returns, what every writer of
``export`` takes, and what training starts from and ends with.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from distill_jax.io import sums
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest, written
from distill_jax.io.reading import read_record, write_record
from distill_jax.models.bert import BertEncoder
from distill_jax.models.dual_encoder import DualEncoderSpec, without_identity
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.specs import from_json, to_json
from distill_jax.models.t5 import T5, T5Sizes
from distill_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A student: its spec, its parameters as a plain nested dict, its tokenizer.

    Attributes:
        spec: a student spec (``RerankerSpec``, ``DualEncoderSpec``, ...).
        params: ``nnx.to_pure_dict(nnx.state(module, nnx.Param))``, numpy or jax leaves.
        tokenizer: the tokenizer whose ids the embedding table is for.
        source: where it was loaded from, for provenance and messages.
        fresh: names of parameters that the source did not have (initialised at random).
    """

    spec: Any
    params: dict
    tokenizer: Tokenizer
    source: str = ""
    fresh: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the architecture, every weight and the vocabulary."""
        leaves = [
            part
            for name, leaf in sorted(flatten(self.params).items())
            for part in (name, np.asarray(leaf))
        ]
        return digest(to_json(self.spec), self.tokenizer.digest, *leaves)

    @functools.cached_property
    def doc_digest(self) -> str:
        """Digest of what a document's vector depends on: equal for equal doc towers.

        What only queries pass through is left out, so that a model of two towers finds
        the vectors that a tied model of its document tower computed.
        """
        known = {field.name for field in dataclasses.fields(self.spec)}
        # One length for all, which has room for any marker.
        unread = {"tied": True, "query_prefix": "", "query_length": 32}
        unread |= {"inference_free": False, "query_activation": "relu"}
        spec = dataclasses.replace(
            self.spec, **{name: v for name, v in unread.items() if name in known}
        )
        params = self.params
        if "doc_tower" in params:
            params = {"tower": params["doc_tower"]}
        if "query_weights" in params:
            params = {"tower": params["tower"]}
        if isinstance(spec, DualEncoderSpec):
            # As of a query adapter, whose documents pass the identity.
            spec, tower = without_identity(spec, params["tower"])
            params = {"tower": tower}
        return self.replace(spec=spec, params=params).digest

    def graphdef(self) -> Any:
        """The module's static half; ``nnx.merge(graphdef, params)`` is the rest."""
        return graphdef_of(self.spec)

    def module(self) -> Any:
        """The module with these parameters, ready to be called."""
        return nnx.merge(self.graphdef(), nnx.State(self.params))

    def replace(self, **changes: Any) -> Pretrained:
        return dataclasses.replace(self, **changes)

    def save(self, directory: str | Path) -> None:
        """Writes ``student.json``, ``params.safetensors`` and ``tokenizer/``."""
        from safetensors.numpy import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: np.ascontiguousarray(leaf)
            for name, leaf in flatten(self.params).items()
        }
        aside = directory / ".params.safetensors.part"
        with written(directory / "params.safetensors", aside):
            save_file(arrays, str(aside))
        self.tokenizer.save(directory / "tokenizer")
        record = {
            "spec": to_json(self.spec),
            "source": self.source,
            "tokenizer": self.tokenizer.digest,
            "format": 1,
            "files": sums.take(directory, ["params.safetensors"]),
        }
        write_record(directory / "student.json", record)

    @classmethod
    def read(cls, directory: str | Path) -> Pretrained:
        """Reads what ``save`` wrote.

        Raises:
            UserError: the folder was written by a newer version, lacks a file, or has
                another tokenizer than the weights were saved with.
        """
        directory = Path(directory)
        todo = "restore the folder, or train again into another MODEL_DIR"
        path = directory / "student.json"
        record = read_record(path, todo, spec=dict)
        found = record.get("format", 0)
        if not isinstance(found, int) or found > 1:
            raise UserError(
                f"{directory}/student.json has format {found}, "
                "this version reads up to 1",
                "upgrade distill_jax, or export the model from the newer version",
            )
        sums.check(directory, record.get("files", {}), todo)
        tokenizer = Tokenizer.load(directory / "tokenizer")
        if record.get("tokenizer", tokenizer.digest) != tokenizer.digest:
            # One of the same size would load, and every id would mean another token.
            raise UserError(
                f"{directory}/tokenizer is another one than the weights' own",
                "put the model's own tokenizer back",
            )
        return cls(
            spec=from_json(record["spec"]),
            params=unflatten(_loaded(directory / "params.safetensors", todo)),
            tokenizer=tokenizer,
            source=record.get("source", str(directory)),
        )


def _loaded(path: Path, todo: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})", todo) from None


def build(spec: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The module of a student's spec, or a bare encoder of its sizes."""
    if isinstance(spec, T5Sizes):
        return T5(spec, rngs=rngs)
    if isinstance(spec, BertSizes):
        return BertEncoder(spec, rngs=rngs)
    return spec.build(rngs)


@functools.lru_cache(maxsize=64)
def _halves(spec: Any) -> tuple[Any, Any]:
    """A spec's graphdef and abstract state, built once without allocating weights."""
    return nnx.split(nnx.eval_shape(lambda: build(spec, nnx.Rngs(0))))


def graphdef_of(spec: Any) -> Any:
    """The static half of a spec's module."""
    return _halves(spec)[0]


def initial_params(spec: Any, seed: int) -> dict:
    """Random parameters of a spec: the same for a seed on any number of devices."""

    @jax.jit
    def make():
        return nnx.to_pure_dict(nnx.state(build(spec, nnx.Rngs(seed)), nnx.Param))

    return make()


def abstract_params(spec: Any) -> dict:
    """Shapes and dtypes of a spec's parameters, as a plain nested dict."""
    return nnx.to_pure_dict(nnx.filter_state(_halves(spec)[1], nnx.Param))


def flatten(params: dict, prefix: str = "") -> dict[str, Any]:
    """A nested dict to ``{"encoder.layers.0.wq": leaf}``; integer keys in decimal."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict:
    """The inverse of ``flatten``: digits become integer keys, as nnx.List has them."""
    nested: dict = {}
    for name, leaf in flat.items():
        *path, last = (int(p) if p.isdigit() else p for p in name.split("."))
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return nested
