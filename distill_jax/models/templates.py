"""The template of one side of an encoder: prefix, text, special tokens, in its length.

A ``query_length`` or ``doc_length`` counts every token of the sequence, as
sentence-transformers' ``max_seq_length`` does; here it becomes the cut of the text.
"""

from __future__ import annotations

from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.text.templates import Template
from distill_jax.text.tokenizer import Tokenizer


def side_template(spec: Any, side: str, tokenizer: Tokenizer) -> Template:
    """How a query or a document becomes the tokens of an encoder.

    Args:
        spec: of a dual encoder, ColBERT or SPLADE. A spec whose sides are marked
            (ColBERT) gives its own text as ``spec.side_text(side)``.
        side: "query" or "doc".

    Raises:
        UserError: the length leaves no room for a single token of text.
    """
    length = spec.query_length if side == "query" else spec.doc_length
    if hasattr(spec, "side_text"):
        text = spec.side_text(side)
    else:
        prefix = getattr(spec, f"{side}_prefix", "")
        joined = f"{prefix.strip()} {{text}}" if prefix.strip() else "{text}"
        # A table of words has no rows for special tokens.
        static = getattr(spec.backbone, "is_static", False) or (
            side == "query" and getattr(spec, "inference_free", False)
        )
        text = joined if static else f"{{cls}} {joined} {{sep}}"
    literals = Template(text).compile(tokenizer)
    room = length - sum(map(len, literals))
    if room < 1:
        raise UserError(
            f"{side}_length {length} leaves no room beside {text!r}",
            f"set --gin.{'QUERY' if side == 'query' else 'DOC'}_LENGTH higher",
        )
    return Template(text, {"text": room}).spelled(tokenizer)
