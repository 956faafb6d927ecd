"""Folders that ``sentence_transformers`` loads, in the layout of every version."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.export import hugging_face
from distill_jax.export.folders import as_numpy, note_of, write_model, write_tensors
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_json, write_json
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.reranker import CROSS_ENCODER
from distill_jax.models.t5 import T5Sizes
from distill_jax.ops.vector_form import VectorForm
from distill_jax.weights import encoders, t5

TOWERS = {"query_encoder": "query_tower", "doc_encoder": "doc_tower"}
_IDENTITY = "torch.nn.modules.linear.Identity"
_ACTIVATIONS = {"identity": _IDENTITY} | {
    name.lower(): f"torch.nn.modules.activation.{name}"
    for name in ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
}
_VERSION = {"sentence_transformers": "5.3.0", "transformers": "5.3.0"}
_SPLADE = {"log1p_relu": "relu", "log1p_log1p_relu": "log1p_relu"}


def write(pretrained: Pretrained, folder: Path) -> None:
    """A SentenceTransformer, CrossEncoder or SparseEncoder.

    Separate towers become two folders, ``query_encoder`` and ``doc_encoder``, which
    every version reads, and around them a Router of both, which version 5 reads.

    Raises:
        UserError: the library has no form for this student.
    """
    spec = pretrained.spec
    if spec.documents == 1:
        return _cross_encoder(pretrained, folder)
    if spec.vectors not in (VectorForm.ONE, VectorForm.SPARSE):
        raise UserError(
            f"sentence-transformers of every version has no form of a {spec.kind}",
            'export with format="pylate" (ColBERT) or "transformers"',
        )
    made = towers(pretrained)
    for name, tower in made.items():
        (_dual if spec.vectors is VectorForm.ONE else _splade)(tower, folder / name)
    if len(made) > 1:
        _router_of(pretrained, folder)


def towers(pretrained: Pretrained) -> dict[str, Pretrained]:
    """Tied models by the name of the folder that each becomes, "" for the folder."""
    spec = pretrained.spec
    sides = (
        spec.vectors is VectorForm.SPARSE
        and not spec.inference_free
        and spec.query_activation != spec.doc_activation
    )
    if spec.tied and not sides:
        return {"": pretrained}
    made = {}
    for name, tower in TOWERS.items():
        side = name.split("_")[0]
        params = pretrained.params["tower" if spec.tied else tower]
        changes: dict[str, Any] = {"tied": True}
        length = getattr(spec, f"{side}_length")
        changes |= {"query_length": length, "doc_length": length}
        if spec.vectors is VectorForm.SPARSE:
            activation = getattr(spec, f"{side}_activation")
            changes |= dict.fromkeys(("query_activation", "doc_activation"), activation)
        made[name] = pretrained.replace(
            spec=dataclasses.replace(spec, **changes), params={"tower": params}
        )
    return made


def _dual(pretrained: Pretrained, folder: Path) -> None:
    spec, tower = pretrained.spec, as_numpy(pretrained.params["tower"])
    if getattr(spec.backbone, "is_static", False):
        kinds = ["StaticEmbedding"]
        _static(pretrained, folder, tower["encoder"]["embeddings"]["word"])
    else:
        kinds = ["Transformer", "Pooling"]
        _pooled(pretrained, folder, tower["encoder"])
    if spec.projection is not None:
        activations = [spec.projection_activation]
        activations += [activation for _, _, activation in spec.more_projections]
        layers = [tower["projection"]]
        layers += [tower["project"][f"dense_{i}"] for i in range(len(activations) - 1)]
        for layer, activation in zip(layers, activations):
            write_dense(
                folder / f"{len(kinds)}_Dense",
                layer["kernel"],
                layer.get("bias"),
                activation=_ACTIVATIONS[activation],
            )
            kinds.append("Dense")
    if spec.normalise:
        kinds.append("Normalize")
        _made(folder / f"{len(kinds) - 1}_Normalize")
        # An empty folder does not survive git and the hub.
        write_json(folder / f"{len(kinds) - 1}_Normalize" / "config.json", {})
    write_modules(folder, [f"sentence_transformers.models.{kind}" for kind in kinds])
    similarity = "cosine" if spec.similarity == "cosine" else "dot"
    _top(pretrained, folder, "SentenceTransformer", similarity)


def _pooled(pretrained: Pretrained, folder: Path, encoder: dict) -> None:
    spec = pretrained.spec
    if isinstance(spec.backbone, T5Sizes):
        sizes = dataclasses.replace(spec.backbone, decoder_layers=0)
        config, tensors = t5.write(sizes, {"encoder": encoder})
    else:
        config, tensors = hugging_face.bare(spec.backbone, encoder)
    _transformer(pretrained, folder, config, tensors)
    write_json(
        _made(folder / "1_Pooling") / "config.json",
        {
            "word_embedding_dimension": spec.backbone.d_model,
            "pooling_mode_cls_token": spec.pooling == "cls",
            "pooling_mode_mean_tokens": spec.pooling == "mean",
            "pooling_mode_max_tokens": spec.pooling == "max",
            "pooling_mode_mean_sqrt_len_tokens": spec.pooling == "mean_sqrt_len",
            "pooling_mode_weightedmean_tokens": spec.pooling == "weightedmean",
            "pooling_mode_lasttoken": spec.pooling == "last",
        },
    )


def _static(pretrained: Pretrained, folder: Path, words: Any) -> None:
    spec = pretrained.spec
    write_tensors(_made(folder) / "model.safetensors", {"embedding.weight": words})
    pretrained.tokenizer.save(folder)
    # The only place of a length that the library reads.
    record = read_json(folder / "tokenizer.json")
    record["truncation"] = {
        "direction": "Right",
        "max_length": max(spec.query_length, spec.doc_length),
        "strategy": "LongestFirst",
        "stride": 0,
    }
    write_json(folder / "tokenizer.json", record)


def _inference_free(pretrained: Pretrained, folder: Path) -> None:
    """A Router: a table of weights for queries, the encoder for documents."""
    pretrained = _without_spare_rows(pretrained)
    spec = pretrained.spec
    prefix = "sentence_transformers.sparse_encoder.models."
    query, doc = "query_0_SparseStaticEmbedding", "document_{}_{}"
    modules = ("MLMTransformer", "SpladePooling")
    docs = [doc.format(i, name) for i, name in enumerate(modules)]
    root = _made(folder / query)
    table = np.asarray(pretrained.params["query_weights"])
    write_tensors(root / "model.safetensors", {"weight": table})
    write_json(root / "config.json", {"frozen": False})
    pretrained.tokenizer.save(root, max_length=spec.query_length)
    tied = dataclasses.replace(spec, query_length=spec.doc_length)
    _masked_lm(pretrained.replace(spec=tied), folder / docs[0])
    _splade_pooling(spec, folder / docs[1])
    names = [query, *docs]
    types = [f"{prefix}{name.split('_')[-1]}" for name in names]
    routes = {"query": names[:1], "document": docs}
    _router(folder, dict(zip(names, types)), routes)
    _top(pretrained, folder, "SparseEncoder", "dot")


def _router_of(pretrained: Pretrained, folder: Path) -> None:
    """A Router whose modules are those of the two towers' own folders."""
    types: dict[str, str] = {}
    routes: dict[str, list[str]] = {}
    for side, name in zip(("query", "document"), TOWERS):
        for module in read_json(folder / name / "modules.json"):
            at = "/".join(filter(None, (name, module["path"])))
            types[at] = module["type"]
            routes.setdefault(side, []).append(at)
    _router(folder, types, routes)
    said = read_json(folder / name / "config_sentence_transformers.json")
    _top(pretrained, folder, said["model_type"], said["similarity_fn_name"])


def _router(folder: Path, types: dict[str, str], routes: dict[str, list[str]]) -> None:
    record = {
        "types": types,
        "structure": routes,
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(folder / "router_config.json", record)
    write_modules(folder, ["sentence_transformers.models.Router"])


def _without_spare_rows(pretrained: Pretrained) -> Pretrained:
    """The table of words as long as the vocabulary, which the library's queries are."""
    rows, params = pretrained.tokenizer.vocab_size, as_numpy(pretrained.params)
    tower = params["tower"]
    embeddings = tower["encoder"]["embeddings"]
    encoder = {
        **tower["encoder"],
        "embeddings": {**embeddings, "word": embeddings["word"][:rows]},
    }
    mlm = {**tower["mlm"], "bias": tower["mlm"]["bias"][:rows]}
    spec = pretrained.spec
    backbone = dataclasses.replace(spec.backbone, vocab_size=rows)
    return pretrained.replace(
        spec=dataclasses.replace(spec, backbone=backbone),
        params={
            "tower": {**tower, "encoder": encoder, "mlm": mlm},
            "query_weights": params["query_weights"][:rows],
        },
    )


def _splade(pretrained: Pretrained, folder: Path) -> None:
    if pretrained.spec.inference_free:
        return _inference_free(pretrained, folder)
    _masked_lm(pretrained, folder)
    _splade_pooling(pretrained.spec, folder / "1_SpladePooling")
    prefix = "sentence_transformers.sparse_encoder.models."
    write_modules(folder, [f"{prefix}MLMTransformer", f"{prefix}SpladePooling"])
    _top(pretrained, folder, "SparseEncoder", "dot")


def _masked_lm(pretrained: Pretrained, folder: Path) -> None:
    spec, tower = pretrained.spec, as_numpy(pretrained.params["tower"])
    tree = {"encoder": tower["encoder"], "head": tower["mlm"]}
    config, tensors = encoders.write(spec.backbone, tree, head="mlm")
    _transformer(pretrained, folder, config, tensors)


def _splade_pooling(spec: Any, folder: Path) -> None:
    if spec.doc_activation not in _SPLADE:
        raise UserError(
            f"sentence-transformers has no SPLADE with {spec.doc_activation!r}",
            f"it has {', '.join(_SPLADE)}",
        )
    write_json(
        _made(folder) / "config.json",
        {
            "pooling_strategy": spec.pooling,
            "activation_function": _SPLADE[spec.doc_activation],
            "word_embedding_dimension": spec.backbone.vocab_size,
        },
    )


def _cross_encoder(pretrained: Pretrained, folder: Path) -> None:
    spec = pretrained.spec
    if isinstance(spec.backbone, T5Sizes) or spec.prompt != CROSS_ENCODER:
        raise UserError(
            "a CrossEncoder reads '[CLS] query [SEP] document [SEP]' with a BERT or "
            "an ELECTRA",
            'export with format="transformers"',
        )
    hugging_face.write(pretrained, folder)
    config = read_json(folder / "config.json")
    # Without it, scores go through a sigmoid. The second name is that of versions 2, 3.
    config["sentence_transformers"] = {
        "activation_fn": _IDENTITY,
        "version": _VERSION["sentence_transformers"],
    }
    config["sbert_ce_default_activation_function"] = _IDENTITY
    write_json(folder / "config.json", config)
    if not spec.token_types:
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        write_json(path, {**read_json(path), **names})


def _transformer(pretrained, folder: Path, config: dict, tensors: dict) -> None:
    spec = pretrained.spec
    length = max(spec.query_length, spec.doc_length)
    write_model(folder, config, tensors, note_of(spec, length))
    pretrained.tokenizer.save(folder, max_length=length)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": length, "do_lower_case": False},
    )


def write_modules(folder: Path, types: list[str]) -> None:
    """``modules.json``: the first module at the root, the others in ``1_Pooling``..."""
    records = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind.rsplit('.', 1)[-1]}" if i else "",
            "type": kind,
        }
        for i, kind in enumerate(types)
    ]
    write_json(folder / "modules.json", records)


def write_dense(
    folder: Path,
    kernel: Any,
    bias: Any = None,
    *,
    activation: str = _IDENTITY,
    **more: Any,
) -> None:
    """A Dense module: ``config.json`` and ``linear.weight``."""
    config = {
        "in_features": int(kernel.shape[0]),
        "out_features": int(kernel.shape[1]),
        "bias": bias is not None,
        "activation_function": activation,
        **more,
    }
    write_json(_made(folder) / "config.json", config)
    tensors = {"linear.weight": kernel.T}
    if bias is not None:
        tensors["linear.bias"] = bias
    write_tensors(folder / "model.safetensors", tensors)


def _top(pretrained: Pretrained, folder: Path, model_type: str, similarity: str):
    spec = pretrained.spec
    cut = getattr(spec, "truncate_dim", None)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {**_VERSION, "pytorch": "2.6.0"},
            "model_type": model_type,
            "prompts": {
                "query": _prompt(spec.query_prefix),
                "document": _prompt(spec.doc_prefix),
            },
            "default_prompt_name": None,
            "similarity_fn_name": similarity,
            **({"truncate_dim": cut} if cut else {}),
        },
    )


def _prompt(prefix: str) -> str:
    # The template puts one blank between prefix and text, whatever the prefix ends in.
    if prefix.endswith("{join}"):
        return prefix.removesuffix("{join}")
    return f"{prefix.strip()} " if prefix.strip() else ""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
