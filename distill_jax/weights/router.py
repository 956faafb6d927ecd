"""sentence-transformers' Router: one folder, one chain of modules for each side.

Two dense towers are one student of separate towers. ``SparseStaticEmbedding`` on the
queries' side makes a SPLADE inference-free: its queries are read from a table.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import safe
from distill_jax.weights.folders import Folder, inside, modular, read_json
from distill_jax.weights.sentence_folders import prompts

# Where no file limits a query. It only bounds the memory of a batch.
_LONGEST = 4096


def routes(folder: Folder) -> tuple[Folder, Folder]:
    """The queries' and the documents' modules, each as a folder of its own.

    Raises:
        UserError: other routes, or a module that is not read.
    """
    path = folder.path
    config = read_json(path / "router_config.json") or read_json(
        path / "config.json", {}
    )
    types, structure = config.get("types", {}), config.get("structure", {})
    if set(structure) != {"query", "document"}:
        raise UserError(
            f"{path}: a Router with the routes {sorted(structure)}",
            "the routes query and document are read",
        )
    return _route(folder, types, structure["query"]), _route(
        folder, types, structure["document"]
    )


def _route(folder: Folder, types: dict[str, str], names: list[str]) -> Folder:
    classes = [types[name] for name in names]
    modules = [
        (kind.rsplit(".", 1)[-1], inside(folder.path, name))
        for name, kind in zip(names, classes)
    ]
    if [name for name, _ in modules] == ["SparseStaticEmbedding"]:
        return Folder(folder.path, "query_weights", modules=tuple(modules))
    # What follows the Router is applied on both sides.
    whole = (*modules, *folder.modules[1:])
    config = read_json(whole[0][1] / "config.json", {})
    return modular(folder.path, whole, classes, config)


def inference_free(
    folder: Folder, tokenizer: Tokenizer, docs: Pretrained
) -> Pretrained:
    """The documents' SPLADE with the queries' table of weights.

    Args:
        folder: the queries' route.
        tokenizer: the queries'.

    Raises:
        UserError: the two sides have different features, or there is no table.
    """
    root = folder.modules[0][1]
    if docs.spec.kind != "splade" or tokenizer.digest != docs.tokenizer.digest:
        raise UserError(
            f"{folder.path}: queries and documents have different features",
            "SparseStaticEmbedding goes with a SPLADE of the same tokenizer",
        )
    weights = _weights(folder.path, root, tokenizer)
    if len(weights) > docs.spec.width:
        raise UserError(
            f"{root}: {len(weights)} weights of queries, {docs.spec.width} features",
            "give the two sides one vocabulary",
        )
    table = np.zeros(docs.spec.width, np.float32)
    table[: len(weights)] = weights
    most = read_json(root / "tokenizer_config.json", {}).get("model_max_length")
    spec = dataclasses.replace(
        docs.spec,
        inference_free=True,
        query_prefix=prompts(folder, tokenizer, {})["query_prefix"],
        query_length=int(min(most or _LONGEST, _LONGEST)),
    )
    return docs.replace(spec=spec, params={**docs.params, "query_weights": table})


def _weights(path: Path, root: Path, tokenizer: Tokenizer) -> np.ndarray:
    """float32[V]: the weight of each token."""
    named = read_json(root / "config.json", {}).get("path")
    if not named:
        return np.asarray(safe.open_folder(root)["weight"], np.float32)
    files = [at / Path(named).name for at in (root, path)]
    found = next((file for file in files if file.is_file()), None)
    if found is None or found.suffix != ".json":
        raise UserError(
            f"{root}/config.json reads the weights of queries from {named!r}",
            f"put that file beside it, as {files[0].name}",
        )
    table = np.zeros(tokenizer.vocab_size, np.float32)
    for token, weight in read_json(found).items():
        if (at := tokenizer.find(token)) is not None:
            table[at] = weight
    return table
