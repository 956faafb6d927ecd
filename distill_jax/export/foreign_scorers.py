"""Scores of an exported folder by the library that it was written for.

Each function computes with the target's own tokenizer, classes and forward pass; of
ours it takes only what the card tells its readers: the template and the answer words.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.export.sentence_transformers import TOWERS
from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.t5 import T5Sizes
from distill_jax.models.templates import side_template
from distill_jax.ops.vector_form import VectorForm

Tuples = Sequence[tuple[str, ...]]
Scorer = Callable[[Tuples], np.ndarray]
# Weights of 16 bits are compared in float32 too.
_FLOAT32: dict[str, Any] = {"model_kwargs": {"dtype": "float32"}}


def scorer(
    pretrained: Pretrained, folder: Path, format: str
) -> tuple[str, Scorer | None]:
    """The library's name and version, and a function from tuples to its scores.

    Without the library: why there is none, and None.
    """
    spec = pretrained.spec
    if format == "t5x":
        return "t5x: not on PyPI, so it is not asked", None
    if importlib.util.find_spec("torch") is None:
        return "torch: not installed", None
    library = {
        "transformers": "transformers",
        "sentence_transformers": "sentence-transformers",
        "pylate": "pylate",
    }[format]
    if format == "pylate" and _version("pylate") is None:
        # From version 6 on it reads PyLate's folders.
        library = "sentence-transformers"
        if int((_version(library) or "0").split(".")[0]) < 6:
            return "pylate, sentence-transformers>=6: not installed", None
        return f"{library} {_version(library)}", _multi_vector(folder)
    if _version(library) is None:
        return f"{library}: not installed", None
    name = f"{library} {_version(library)}"
    if format == "pylate":
        return name, _pylate(folder)
    if format == "sentence_transformers":
        if spec.documents == 1:
            return name, _cross_encoder(folder)
        return name, _sentence_vectors(folder, spec)
    if isinstance(spec, GeneratorSpec):
        return name, _likelihood(folder, pretrained)
    if not spec.documents:
        return name, _bare_encoder(folder, pretrained)
    if isinstance(spec.backbone, T5Sizes):
        return name, _t5(folder, pretrained)
    return name, _classifier(folder, pretrained)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cross_encoder(folder: Path) -> Scorer:
    def score(tuples: Tuples) -> np.ndarray:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(folder), device="cpu", **_FLOAT32)
        return model.predict([list(t) for t in tuples], show_progress_bar=False)

    return score


def _sentence_vectors(folder: Path, spec: Any) -> Scorer:
    def score(tuples: Tuples) -> np.ndarray:
        from sentence_transformers import SentenceTransformer, SparseEncoder

        sparse = spec.vectors is VectorForm.SPARSE
        cls = SparseEncoder if sparse else SentenceTransformer
        routed = (folder / "router_config.json").is_file()
        old = int((_version("sentence-transformers") or "0").split(".")[0]) < 5
        sides = ["", ""] if routed and not old else list(TOWERS)
        sides = sides if (folder / sides[0]).is_dir() else ["", ""]
        loaded = {
            side: cls(str(folder / side), device="cpu", **_FLOAT32)
            for side in set(sides)
        }
        query_model, doc_model = loaded[sides[0]], loaded[sides[1]]
        vectors = []
        for model, texts, prompt in (
            (query_model, [t[0] for t in tuples], "query"),
            (doc_model, [t[1] for t in tuples], "document"),
        ):
            how: dict[str, Any] = {"prompt_name": prompt, "convert_to_tensor": True}
            if routed and not old:
                how["task"] = prompt  # the route
            found: Any = model.encode(texts, **how)
            found = found.to_dense() if found.is_sparse else found
            vectors.append(found.cpu().double())
        if getattr(spec, "similarity", "dot") == "cosine":
            vectors = [v / v.norm(dim=1, keepdim=True) for v in vectors]
        return (vectors[0] * vectors[1]).sum(1).numpy()

    return score


def _multi_vector(folder: Path) -> Scorer:
    def score(tuples: Tuples) -> np.ndarray:
        from sentence_transformers import MultiVectorEncoder

        model = MultiVectorEncoder(str(folder), device="cpu", **_FLOAT32)
        queries = model.encode_query([t[0] for t in tuples])
        docs = model.encode_document([t[1] for t in tuples])
        return _max_sim(queries, docs)

    return score


def _pylate(folder: Path) -> Scorer:
    def score(tuples: Tuples) -> np.ndarray:
        model = importlib.import_module("pylate.models").ColBERT(
            str(folder), device="cpu", **_FLOAT32
        )
        prompts = {"query", "document"} & set(model.prompts or {})
        names = {n: {"prompt_name": n} if n in prompts else {} for n in prompts}
        queries = model.encode(
            [t[0] for t in tuples], is_query=True, **names.get("query", {})
        )
        docs = model.encode(
            [t[1] for t in tuples], is_query=False, **names.get("document", {})
        )
        return _max_sim(queries, docs)

    return score


def _max_sim(queries: Any, docs: Any) -> np.ndarray:
    pairs = zip(map(np.asarray, queries), map(np.asarray, docs))
    return np.array([(query @ doc.T).max(1).sum() for query, doc in pairs])


def _t5(folder: Path, pretrained: Pretrained) -> Scorer:
    spec = pretrained.spec
    template = spec.template.spelled(pretrained.tokenizer)

    def score(tuples: Tuples) -> np.ndarray:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        names = ["query", *sorted(f for f in template.fields if f != "query")]
        texts = [template.join(**dict(zip(names, t))) for t in tuples]
        # The tokenizer adds </s> itself.
        ending = "</s>" if template.text.endswith("</s>") else ""
        texts = [text.removesuffix(ending) for text in texts]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            if not spec.backbone.decoder_layers:
                cls = _t5_class(spec, "ForTokenClassification")
                model = cls.from_pretrained(folder, dtype="float32").eval()
                return model(**inputs).logits[:, 0, 0].double().numpy()
            cls = _t5_class(spec, "ForConditionalGeneration")
            model = cls.from_pretrained(folder, dtype="float32").eval()
            start = torch.zeros((len(texts), 1), dtype=torch.long)
            logits = model(**inputs, decoder_input_ids=start).logits[:, 0].double()
        words = [w if w.startswith("<") else f"▁{w}" for w in spec.words]
        picked = logits[:, tokenizer.convert_tokens_to_ids(words)]
        if len(words) == 1:
            return picked[:, 0].numpy()
        if getattr(spec, "head", "difference") == "monot5":
            return picked.log_softmax(-1)[:, 0].numpy()
        return (picked[:, 0] - picked[:, 1]).numpy()

    return score


def _t5_class(spec: Any, name: str) -> Any:
    import transformers

    stem = "UMT5" if spec.backbone.layer_bias else "T5"
    return getattr(transformers, f"{stem}{name}")


def _likelihood(folder: Path, pretrained: Pretrained) -> Scorer:
    """Mean log-probability of the query's tokens, teacher-forced over all words."""
    spec = pretrained.spec

    def score(tuples: Tuples) -> np.ndarray:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        cls = _t5_class(spec, "ForConditionalGeneration")
        model = cls.from_pretrained(folder, dtype="float32").eval()
        sides = []
        for i, side in enumerate(("query", "doc")):
            template = side_template(spec, side, pretrained.tokenizer)
            texts = [template.join(text=t[i]).removesuffix("</s>") for t in tuples]
            sides.append(tokenizer(texts, return_tensors="pt", padding=True))
        queries, docs = sides
        real = queries["attention_mask"]
        with torch.inference_mode():
            logits = model(
                input_ids=docs["input_ids"],
                attention_mask=docs["attention_mask"],
                labels=queries["input_ids"].masked_fill(real == 0, -100),
            ).logits
        log_p = logits.double().log_softmax(-1)
        log_p = log_p.gather(-1, queries["input_ids"][..., None])[..., 0]
        return ((log_p * real).sum(1) / real.sum(1)).numpy()

    return score


def _classifier(folder: Path, pretrained: Pretrained) -> Scorer:
    spec = pretrained.spec
    template = spec.template.spelled(pretrained.tokenizer)

    def score(tuples: Tuples) -> np.ndarray:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        names = ["query", *sorted(f for f in template.fields if f != "query")]
        texts = [template.join(**dict(zip(names, t))) for t in tuples]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=False
        )
        if getattr(spec.backbone, "type_vocab", 0) > 1:
            # Token type 1 begins after the first [SEP].
            ends = (inputs["input_ids"] == tokenizer.sep_token_id).long()
            types = ((ends.cumsum(1) - ends) > 0).long() * inputs["attention_mask"]
            inputs["token_type_ids"] = types * int(spec.token_types)
        cls = transformers.AutoModelForSequenceClassification
        model: Any = cls.from_pretrained(folder, dtype="float32").eval()
        with torch.inference_mode():
            return model(**inputs).logits[:, 0].double().numpy()

    return score


def _bare_encoder(folder: Path, pretrained: Pretrained) -> Scorer:
    spec = pretrained.spec

    def score(tuples: Tuples) -> np.ndarray:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        t5 = isinstance(spec.backbone, T5Sizes)
        cls: Any = _t5_class(spec, "EncoderModel") if t5 else transformers.AutoModel
        sparse = spec.vectors is VectorForm.SPARSE
        cls = transformers.AutoModelForMaskedLM if sparse else cls
        model = cls.from_pretrained(folder, dtype="float32").eval()
        vectors = []
        for i, side in enumerate(("query", "doc")):
            template = side_template(spec, side, pretrained.tokenizer)
            texts = [template.join(text=t[i]) for t in tuples]
            inputs = tokenizer(
                texts, return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.inference_mode():
                mask = inputs["attention_mask"]
                out = model(inputs["input_ids"], attention_mask=mask)
                mask = mask.unsqueeze(-1)
                hidden = (out.logits if sparse else out[0]).double()
                vectors.append(_pooled(spec, side, hidden, mask))
        return (vectors[0] * vectors[1]).sum(1).numpy()

    return score


def _pooled(spec: Any, side: str, hidden: Any, mask: Any) -> Any:
    if spec.vectors is VectorForm.SPARSE:
        weights = hidden.relu().log1p() * mask
        twice = getattr(spec, f"{side}_activation") == "log1p_log1p_relu"
        weights = weights.log1p() if twice else weights
        return weights.amax(1) if spec.pooling == "max" else weights.sum(1)
    if spec.pooling == "cls":
        vector = hidden[:, 0]
    elif spec.pooling == "last":
        vector = hidden[range(len(hidden)), mask[:, :, 0].sum(1) - 1]
    else:
        vector = (hidden * mask).sum(1) / mask.sum(1)
    if spec.normalise or spec.similarity == "cosine":
        vector = vector / vector.norm(dim=1, keepdim=True)
    return vector
