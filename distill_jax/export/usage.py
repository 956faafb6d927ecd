"""The code of a model card: complete, and run by the tests."""

from __future__ import annotations

from typing import Any

from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.t5 import T5Sizes
from distill_jax.models.templates import side_template
from distill_jax.ops.vector_form import VectorForm
from distill_jax.text.templates import Template

_QUERY = "how do vaccines work"
_DOCS = """docs = [
    "Vaccines train the immune system to recognise a pathogen.",
    "The council voted on the new bus lanes.",
]
"""


def usage(pretrained: Pretrained, format: str) -> str:
    """Python code that scores two documents; ``folder`` is the card's own."""
    spec = pretrained.spec
    if isinstance(spec, GeneratorSpec):
        return _generator(pretrained, format)
    head = f'folder = "."  # this folder\nquery = "{_QUERY}"\n{_DOCS}'
    if format == "t5x":
        return _ours(head)
    if format == "pylate":
        return _colbert(head)
    if format == "sentence_transformers":
        if spec.documents == 1:
            return _cross_encoder(head)
        return _vectors(spec, head)
    if not spec.documents:
        return _bare(pretrained, head)
    template = spec.template.spelled(pretrained.tokenizer)
    if isinstance(spec.backbone, T5Sizes):
        return _t5(spec, template, head)
    return _classifier(spec, template, head)


def _ours(head: str, call: str = "rank(query, docs)") -> str:
    return (
        f"import distill_jax\n\n{head}\nmodel = distill_jax.load(folder)\n"
        f"print(model.{call})\n"
    )


def _generator(pretrained: Pretrained, format: str) -> str:
    head = f'folder = "."  # this folder\n{_DOCS}'
    if format == "t5x":
        return _ours(head, "generate(docs)")
    spec = pretrained.spec
    template = side_template(spec, "doc", pretrained.tokenizer).text
    text = template.removesuffix("</s>").replace("{text}", "{doc}")
    stem = _stem(spec)
    lines = [
        f"from transformers import AutoTokenizer, {stem}ForConditionalGeneration",
        "",
        head,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {stem}ForConditionalGeneration.from_pretrained(folder).eval()",
        f'texts = [f"{text}" for doc in docs]',
        'inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)',
        "written = model.generate(",
        '    input_ids=inputs["input_ids"],',
        '    attention_mask=inputs["attention_mask"],',
        "    do_sample=True,  # leave it out for the likeliest query, always the same",
        "    top_k=10,",
        "    num_return_sequences=2,",
        ")",
        "for query in tokenizer.batch_decode(written, skip_special_tokens=True):",
        "    print(query)",
    ]
    return "\n".join(lines) + "\n"


def _cross_encoder(head: str) -> str:
    return (
        f"from sentence_transformers import CrossEncoder\n\n{head}\n"
        "model = CrossEncoder(folder)\n"
        "scores = model.predict([(query, doc) for doc in docs])\n"
        "print(scores)  # raw logits: no sigmoid\n"
    )


def _vectors(spec: Any, head: str) -> str:
    sparse = spec.vectors is VectorForm.SPARSE
    name = "SparseEncoder" if sparse else "SentenceTransformer"
    free = getattr(spec, "inference_free", False)
    two = not spec.tied or (
        sparse and not free and spec.query_activation != spec.doc_activation
    )
    lines = [f"from sentence_transformers import {name}", "", head]
    if two:
        lines += [f"# Before version 5: {name} of folder/query_encoder, /doc_encoder"]
    lines += [f"model = {name}(folder)"]
    if free or two:
        lines += ["q = model.encode_query([query])", "d = model.encode_document(docs)"]
    else:
        lines += ['q = model.encode([query], prompt_name="query")']
        lines += ['d = model.encode(docs, prompt_name="document")']
    lines += [
        "print(model.similarity(q, d))",
    ]
    return "\n".join(lines) + "\n"


def _colbert(head: str) -> str:
    return (
        "try:\n"
        "    from pylate import models\n\n"
        "    def encoders(folder):\n"
        "        model = models.ColBERT(folder)\n"
        "        return (\n"
        "            lambda texts: model.encode(\n"
        '                texts, is_query=True, prompt_name="query"\n'
        "            ),\n"
        "            lambda texts: model.encode(\n"
        '                texts, is_query=False, prompt_name="document"\n'
        "            ),\n"
        "        )\n\n"
        "except ImportError:  # sentence-transformers 6 and later read it too\n"
        "    from sentence_transformers import MultiVectorEncoder\n\n"
        "    def encoders(folder):\n"
        "        model = MultiVectorEncoder(folder)\n"
        "        return model.encode_query, model.encode_document\n\n\n"
        f"{head}\n"
        "encode_queries, encode_docs = encoders(folder)\n"
        "(q,) = encode_queries([query])\n"
        "for d in encode_docs(docs):\n"
        "    print((q @ d.T).max(1)[0].sum() if hasattr(q, 'cpu') "
        "else (q @ d.T).max(1).sum())\n"
    )


def _join(template: Template, ending: str) -> tuple[str, str]:
    """The template as an f-string, and the loop over docs that fills it."""
    text = template.text.removesuffix(ending)
    names = [name for name in template.fields if name != "query"]
    for name, to in zip(names, ("doc", "other")):
        text = text.replace(f"{{{name}}}", f"{{{to}}}")
    loop = "for doc in docs"
    if len(names) == 2:
        loop = "for doc in docs for other in docs if doc != other"
    return text.replace('"', '\\"'), loop


def _stem(spec: Any) -> str:
    return "UMT5" if spec.backbone.layer_bias else "T5"


def _t5(spec: Any, template: Template, head: str) -> str:
    text, loop = _join(template, "</s>")
    decoder = spec.backbone.decoder_layers > 0
    cls = "ForConditionalGeneration" if decoder else "ForTokenClassification"
    cls = f"{_stem(spec)}{cls}"
    lines = [
        "import torch",
        f"from transformers import AutoTokenizer, {cls}",
        "",
        head,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {cls}.from_pretrained(folder).eval()",
        f'texts = [f"{text}" {loop}]',
        'inputs = tokenizer(texts, return_tensors="pt", padding=True)',
        "with torch.inference_mode():",
    ]
    if not decoder:
        lines += [
            '    ids, mask = inputs["input_ids"], inputs["attention_mask"]',
            "    logits = model(input_ids=ids, attention_mask=mask).logits",
            "scores = logits[:, 0, 0]  # the first position's",
        ]
    else:
        words = [w if w.startswith("<") else f"▁{w}" for w in spec.words]
        lines += [
            "    start = torch.zeros((len(texts), 1), dtype=torch.long)",
            '    ids, mask = inputs["input_ids"], inputs["attention_mask"]',
            "    logits = model(",
            "        input_ids=ids, attention_mask=mask, decoder_input_ids=start",
            "    ).logits[:, 0]",
            f"answers = tokenizer.convert_tokens_to_ids({words})",
            f"assert answers == {list(spec.word_ids)}",
            "picked = logits[:, answers]",
            {
                1: "scores = picked[:, 0]",
                2: "scores = picked[:, 0] - picked[:, 1]",
            }[len(words)],
        ]
        if getattr(spec, "head", "") == "monot5":
            lines[-1] = "scores = picked.log_softmax(-1)[:, 0]"
    return "\n".join([*lines, "print(scores.tolist())"]) + "\n"


def _classifier(spec: Any, template: Template, head: str) -> str:
    text, loop = _join(template, "")
    lines = [
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        head,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForSequenceClassification.from_pretrained(folder).eval()",
        f'texts = [f"{text}" {loop}]',
        "inputs = tokenizer(",
        '    texts, return_tensors="pt", padding=True, add_special_tokens=False',
        ")",
    ]
    if getattr(spec.backbone, "type_vocab", 0) < 2:
        pass
    elif spec.token_types:
        lines += [
            'ends = (inputs["input_ids"] == tokenizer.sep_token_id).long()',
            "after = ((ends.cumsum(1) - ends) > 0).long()",
            'inputs["token_type_ids"] = after * inputs["attention_mask"]',
        ]
    else:
        lines.append('inputs["token_type_ids"] = 0 * inputs["attention_mask"]')
    lines += [
        "with torch.inference_mode():",
        "    scores = model(**inputs).logits[:, 0]",
        "print(scores.tolist())",
    ]
    return "\n".join(lines) + "\n"


def _bare(pretrained: Pretrained, head: str) -> str:
    spec = pretrained.spec
    is_t5 = isinstance(spec.backbone, T5Sizes)
    cls = f"{_stem(spec)}EncoderModel" if is_t5 else "AutoModel"
    cls = "AutoModelForMaskedLM" if spec.vectors is VectorForm.SPARSE else cls
    texts = [
        side_template(spec, side, pretrained.tokenizer).text.replace("{text}", "{t}")
        for side in ("query", "doc")
    ]
    if spec.vectors is VectorForm.SPARSE:
        pool = [
            "weights = out.logits.relu().log1p() * mask",
            "    return weights.amax(1)",
        ]
        if spec.pooling == "sum":
            pool[1] = "    return weights.sum(1)"
    else:
        pool = [
            {
                "mean": "vectors = (out[0] * mask).sum(1) / mask.sum(1)",
                "cls": "vectors = out[0][:, 0]",
                "last": "vectors = out[0][range(len(mask)), mask.sum((1, 2)) - 1]",
            }[spec.pooling],
            "    return torch.nn.functional.normalize(vectors)"
            if spec.normalise or spec.similarity == "cosine"
            else "    return vectors",
        ]
    lines = [
        "import torch",
        f"from transformers import AutoTokenizer, {cls}",
        "",
        head,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {cls}.from_pretrained(folder).eval()",
        "",
        "",
        "@torch.inference_mode()",
        "def encode(texts):",
        "    inputs = tokenizer(",
        '        texts, return_tensors="pt", padding=True, add_special_tokens=False',
        "    )",
        '    ids, mask = inputs["input_ids"], inputs["attention_mask"]',
        "    out = model(ids, attention_mask=mask)",
        "    mask = mask.unsqueeze(-1)",
        f"    {pool[0]}",
        pool[1],
        "",
        "",
        f'q = encode([f"{texts[0]}" for t in [query]])',
        f'd = encode([f"{texts[1]}" for t in docs])',
        "print(q @ d.T)",
    ]
    return "\n".join(lines) + "\n"
