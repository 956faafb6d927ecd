"""Tiny decoders with their kind of tokenizer, as their users save them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers

# Qwen2's, of its tokenizer.json.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
_TEXT = (
    "how do vaccines protect against infection? what is the boiling point of water "
    "at high altitude, symptoms of vitamin d deficiency naïve café 東京 ('it's') yes no"
)
WORDS = _TEXT.split()
PIECES = (
    *WORDS,
    *("?", "!", "?\n", ".\n\n", " \n", "\n", "\n\n", "\t", "  ", "   ", ":", "::"),
    *("1", "0", "2024", "'s", "e\u0301", "\u0301", "\u00a0", "<Query>", "<Document>:"),
    *("<|im_end|>", "<|im_start|>", "😀", "<", ">", "\r\n", "document: ", "\u2028"),
)


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts whose ends merge with what stands beside them."""
    draw = random.Random(seed)
    made = ["", " ", "?", "\n", "a\n", "a?", " a", "what?!\n", "x \n ", "yes", "1"]
    while len(made) < count:
        parts = draw.choices(PIECES, k=draw.randint(1, 9))
        made.append(draw.choice(("", " ")).join(parts))
    return made[:count]


def qwen_tokenizer(prompts: tuple[str, ...] = ()):
    """Byte pairs with Qwen's split and normaliser, trained on texts like these."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(SPLIT), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(400, seed=1) + list(prompts) * 20, trainer)
    made.add_special_tokens(list(SPECIALS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=512,
    )


def saved(stem: str, folder: Path, prompts: tuple[str, ...] = (), **more):
    """A random ...ForCausalLM and its tokenizer, saved; the model and the tokenizer."""
    tokenizer = qwen_tokenizer(prompts)
    config = getattr(transformers, f"{stem}Config")(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
            **more,
        }
    )
    torch.manual_seed(3)
    cls = f"{stem.removesuffix('Text')}ForCausalLM"
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record))


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def write_spm(path: Path) -> None:
    """A vocabulary of DeBERTa-v3's form."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(300, 2) * 3),
        model_writer=out,
        vocab_size=150,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    path.write_bytes(out.getvalue())
