"""A language model of this process at work: chats to prompts, prompts to replies."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.models.causal import CausalSpec
from distill_jax.teaching import calls
from distill_jax.teaching.ledger import Ledger
from distill_jax.text.buckets import buckets_up_to, plan
from distill_jax.text.replies import Reply

_TOO_LONG = "prompt too long"
_NO_CHOICE = "no token of the vocabulary is a choice"


class LocalSession:
    """A loaded model that completes chats and judges.

    Args:
        config: the ``clients.LocalModel``.
        pretrained: a T5, or a ``...ForCausalLM`` as ``weights.load`` gives it.
        folder: for the ledger.
        decode: generates in the model's place, for tests.
    """

    def __init__(
        self,
        config: Any,
        pretrained: Any,
        folder: str | Path,
        decode: Any = None,
    ):
        self.config, self.pretrained = config, pretrained
        # Apart from what is paid for: budgets count the other one.
        self.ledger = Ledger(Path(folder) / "local_ledger.sqlite")
        self.model = f"local:{pretrained.digest}"
        self._decode = decode
        # A T5 is loaded as the reranker it would make; its head is still there.
        causal = isinstance(pretrained.spec, CausalSpec)
        self._sizes = pretrained.spec if causal else pretrained.spec.backbone
        self._params = pretrained.params if causal else pretrained.params["backbone"]
        self._choices = functools.cache(self._ids_of_choices)

    def complete_all(self, requests: Sequence[Any]) -> list[str | None]:
        began = time.monotonic()
        ids = self._prompts(requests)
        replies: list[str | None] = [None] * len(requests)
        reasons = [_TOO_LONG] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            choices = getattr(request, "choices", ())
            how = (float(request.temperature), int(request.max_tokens), choices)
            if choices and not all(self._choices(choices)):
                reasons[place] = _NO_CHOICE
            elif len(ids[place]) <= self.config.longest:
                groups.setdefault((0.0, 0, choices) if choices else how, []).append(
                    place
                )
        for how, places in groups.items():
            for mine, tokens, seeds in self._batches(requests, ids, places):
                found = self._replies(tokens, seeds, *how)
                for place, reply in zip(mine, found):
                    if place is not None:
                        replies[place] = reply
        self._record(requests, replies, reasons, ids, time.monotonic() - began)
        return replies

    def counts(self, job: str | None = None) -> dict[str, Any]:
        """Sums of the ledger; see ``Ledger.counts``."""
        return self.ledger.counts(job)

    def close(self) -> None:
        self.ledger.close()

    def _prompts(self, requests: Sequence[Any]) -> list[list[int]]:
        """Token ids of each request's messages."""
        tokenizer, spec = self.pretrained.tokenizer, self.pretrained.spec
        template = getattr(spec, "chat_template", "")
        texts = [
            _rendered(template, spec.special_tokens, request.messages)
            if template
            else "\n\n".join(turn["content"] for turn in request.messages)
            for request in requests
        ]
        found = tokenizer.encode_batch(texts)
        if not isinstance(spec, CausalSpec):
            return [[*each, tokenizer.eos_id] for each in found]
        # A template writes the first token itself.
        before = () if template else tokenizer.frame["cls"]
        return [[*before, *each] for each in found]

    def _batches(self, requests: Sequence[Any], ids: list, places: list[int]):
        """Places, padded tokens and seeds of what is computed at once."""
        lengths = np.asarray([len(ids[place]) for place in places])
        buckets = buckets_up_to(-(-int(lengths.max()) // 8) * 8)
        pad = self.pretrained.tokenizer.pad_id
        for batch in plan(lengths, self.config.tokens_per_batch, buckets):
            mine = [places[row] if row >= 0 else None for row in batch.rows]
            tokens = np.full((len(mine), batch.length), pad, np.int32)
            seeds = np.zeros(len(mine), np.uint32)
            for line, place in enumerate(mine):
                if place is not None:
                    tokens[line, : len(ids[place])] = ids[place]
                    seeds[line] = requests[place].seed % 2**32
            yield mine, tokens, seeds

    def _replies(
        self,
        tokens: np.ndarray,
        seeds: np.ndarray,
        temperature: float,
        max_tokens: int,
        choices: tuple[str, ...],
    ) -> list[str]:
        if choices:
            return self._judged(tokens, choices)
        found = self._generate(
            tokens,
            seeds,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=self.config.top_k if temperature else None,
            top_p=self.config.top_p if temperature else None,
        )
        return [self._text(line.tolist()) for line in np.asarray(found)]

    def _judged(self, tokens: np.ndarray, choices: tuple[str, ...]) -> list[str]:
        """Each choice's log-probability as the next token, as ``calls.Judged`` has it.

        Over the whole vocabulary, so nothing is estimated.
        """
        from distill_jax.models.generation import first_logprobs

        logprobs = np.asarray(first_logprobs(self._sizes, self._params, tokens))
        sums = [
            np.logaddexp.reduce(logprobs[:, ids], axis=1)
            for ids in self._choices(choices)
        ]
        return [
            Reply(
                json.dumps(
                    {c: max(float(x), calls.LEAST) for c, x in zip(choices, line)}
                )
            )
            for line in np.stack(sums, axis=1)
        ]

    def _ids_of_choices(self, choices: tuple[str, ...]) -> list[list[int]]:
        """The tokens that are each choice, in any spelling."""
        tokenizer = self.pretrained.tokenizer
        words = [
            calls.word(tokenizer.token(i) or "") for i in range(tokenizer.vocab_size)
        ]
        return [[i for i, w in enumerate(words) if w == each] for each in choices]

    def _generate(self, tokens: np.ndarray, seeds: np.ndarray, **how: Any) -> Any:
        if self._decode is not None:
            return self._decode(self.pretrained, tokens, seeds=seeds, **how)
        from distill_jax.models.generation import Decoding, generate

        decoding = Decoding(**how, eos_id=self.pretrained.tokenizer.eos_id)
        return generate(self._sizes, self._params, tokens, decoding, seeds=seeds)[0]

    def _text(self, ids: list[int]) -> Reply:
        tokenizer = self.pretrained.tokenizer
        ended = tokenizer.eos_id in ids
        if ended:
            ids = ids[: ids.index(tokenizer.eos_id)]
        text = tokenizer.decode([i for i in ids if i != tokenizer.pad_id])
        return Reply(text, cut=not ended)

    def _record(
        self,
        requests: Any,
        replies: list[str | None],
        reasons: list[str],
        ids: Any,
        seconds: float,
    ) -> None:
        encode = self.pretrained.tokenizer.encode_batch
        lines = []
        for request, reply, reason, prompt in zip(requests, replies, reasons, ids):
            if reply is None:
                lines.append((request.id, "failed", reason, (0, 0)))
                continue
            judged = getattr(request, "choices", ())
            written = 1 if judged else len(encode([reply])[0])
            lines.append((request.id, "succeeded", "", (len(prompt), written)))
        self.ledger.record(lines, seconds)


def _rendered(
    template: str, special_tokens: tuple[tuple[str, str], ...], messages: Sequence[Any]
) -> str:
    """A chat as the model's own template writes it, up to where its reply begins.

    Raises:
        UserError: the template refuses the messages.
    """
    try:
        return _compiled(template).render(
            messages=[dict(turn) for turn in messages],
            add_generation_prompt=True,
            # The reply is read from its first token.
            enable_thinking=False,
            **dict(special_tokens),
        )
    except Exception as error:  # what a template of others raises
        raise UserError(
            f"the model's chat template refuses the prompt: {error}",
            "use a prompt without a system message, or another model",
        ) from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = time.strftime
    made.filters["tojson"] = lambda x, **how: json.dumps(x, ensure_ascii=False, **how)
    return made.from_string(template)
