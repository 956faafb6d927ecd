"""Rerankers of decoders that answer by a word: Qwen3-Reranker, mxbai-rerank-v2.

Such a model scores a pair by the logits that its vocabulary head gives two words at the
last token. Their difference is linear in the last hidden state, so one column, the row
of "yes" minus the row of "no", is the whole head: the student is a classifier by
``head="linear", pooling="last"``, trained and exported as such. The probability that
the model cards print is the sigmoid of the score. Gemma 2 caps the logits: there the
head has a column for each word, and the score is the difference of the capped ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.reranker import PROMPTS
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights import encoders, safe
from distill_jax.weights.folders import Folder, read_json
from distill_jax.weights.hugging_face import backbone, longest
from distill_jax.weights.students import assemble


def answers(folder: Folder, kind: str | None, fields: Mapping[str, Any]) -> tuple:
    """The answer words of a decoder; () where the folder is another model.

    They are ``words``, or those of a named ``prompt``.
    """
    architecture = (folder.config.get("architectures") or [""])[0]
    if kind != "reranker" or not architecture.endswith("ForCausalLM"):
        return ()
    named = PROMPTS.get(str(fields.get("prompt") or ""), ("", ()))[1]
    return tuple(fields.get("words") or named)


def read(
    folder: Folder, tokenizer: Tokenizer, words: tuple, seed: int, fields: dict
) -> Pretrained:
    """A decoder with a vocabulary head as a reranker by the logits of one or two words.

    Args:
        words: the word for "relevant", and perhaps that against it.

    Raises:
        UserError: a word is not one token, there is not a prompt, or not a decoder.
    """
    ids = [tokenizer.token_id(str(word)) for word in words]
    if not fields.get("prompt"):
        raise UserError(
            f"{folder.path}: a decoder that answers {' or '.join(words)} has no prompt",
            "give prompt=: qwen3_reranker, mxbai_rerank, or a text with {query} and "
            "{document}",
        )
    return with_ids(folder, folder.path, tokenizer, ids, seed, fields)


def with_ids(
    folder: Folder, root: Any, tokenizer: Tokenizer, ids: list, seed: int, fields: dict
) -> Pretrained:
    """As ``read``, by token ids: the logit of the first minus that of the second."""
    if not 1 <= len(ids) <= 2:
        raise UserError(f"{len(ids)} answer words", "give one, or two")
    config = read_json(root / "config.json", {})
    family = encoders.family_of(config, f"{root}/config.json")
    if "linear" not in family.heads:
        raise UserError(
            f"{root}: {family.model_type} has no vocabulary head of a decoder",
            "give a ...ForCausalLM",
        )
    base = backbone(folder, tokenizer, root=root)
    rows = _vocabulary_head(safe.open_folder(root), config, ids)
    cap = config.get("final_logit_softcapping")
    if cap:
        score = rows.T
    else:
        score = (rows[0] - rows[1] if len(ids) == 2 else rows[0])[:, None]
    most = longest(root, base.sizes)
    found: dict[str, Any] = {
        "head": "linear",
        "pooling": "last",
        "length": most,
        "query_length": most,
        "doc_length": most,
    }
    if cap:
        found |= {"answer_cap": float(cap), "answers": len(ids)}
    fields = {**found, **{k: v for k, v in fields.items() if k != "words"}}
    if (fields["head"], fields["pooling"]) != ("linear", "last"):
        raise UserError(
            f"{folder.path}: answers are read with head 'linear' and pooling 'last'",
            "leave both out",
        )
    given = {"head.linear.kernel": np.ascontiguousarray(score)}
    return assemble("reranker", base, given, seed=seed, **fields)


def _vocabulary_head(tensors: Any, config: dict, ids: list) -> np.ndarray:
    """Rows of the matrix that logits are made with, float32[len(ids), D]."""
    ends = ("embed_tokens.weight",)
    if not config.get("tie_word_embeddings", False):
        ends = ("lm_head.weight", *ends)
    for end in ends:
        for name in tensors:
            if name == end or name.endswith(f".{end}"):
                return np.stack([np.asarray(tensors[name][i], np.float32) for i in ids])
    raise UserError(
        f"no {ends[0]} in the weights", "give the folder of a ...ForCausalLM"
    )
