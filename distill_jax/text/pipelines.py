"""The ``tokenizers`` pipelines of T5 and BERT, put together from vocabulary files.

They are what transformers 5 puts together from the same files, so that a text gets the
same ids with and without transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.text.spiece import SentencePieceModel

SPACE = "\u2581"
EXTRA_IDS = 100
SPECIAL_TOKENS = {
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "bert": {
        "pad": "[PAD]",
        "unk": "[UNK]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "mask": "[MASK]",
    },
}


def read_backend(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"{path}: not a tokenizer.json ({error})", "fetch the file again"
        ) from None


def t5_backend(model: SentencePieceModel, extra_ids: int) -> Any:
    """T5's pipeline as transformers 5 builds it from a ``spiece.model``."""
    from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import Unigram

    pieces = [(piece, score) for piece, score, _ in model.pieces]
    known = {piece for piece, _ in pieces}
    sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
    if not known.intersection(sentinels):
        # The last id is <extra_id_0>.
        pieces += [(sentinel, 0.0) for sentinel in reversed(sentinels)]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    unknown = [i for i, (_, _, kind) in enumerate(model.pieces) if kind == 2]
    if "</s>" not in ids or "<pad>" not in ids or not unknown:
        raise UserError(
            "the SentencePiece model lacks <pad>, </s> or <unk>",
            "T5 vocabularies have them; train with pad_id=0, eos_id=1, unk_id=2",
        )
    backend = Backend(Unigram(pieces, unk_id=unknown[0], byte_fallback=False))
    if model.charsmap:
        backend.normalizer = normalizers.Precompiled(model.charsmap)
    space: dict[str, Any] = {
        "replacement": SPACE,
        "prepend_scheme": "always",
        "split": True,
    }
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
    )
    backend.decoder = decoders.Metaspace(**space)
    specials = ["<pad>", "</s>", pieces[unknown[0]][0], *reversed(sentinels)]
    backend.add_special_tokens(
        [AddedToken(s, normalized=False, special=True) for s in specials if s in ids]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", ids["</s>"])],
    )
    return backend


def bert_normalizer(config: dict) -> Any:
    """What BERT's tokenizer classes do to a text before they split it."""
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def with_own_normalizer(backend: Any, config: dict) -> Any:
    """A backend read from ``tokenizer.json``, as its class in transformers has it.

    BERT's and ELECTRA's classes normalise as ``tokenizer_config.json`` says, whatever
    ``tokenizer.json`` holds; classes of other names take the latter.
    """
    name = str(config.get("tokenizer_class", ""))
    bert = type(backend.normalizer).__name__ == "BertNormalizer"
    if bert and name.startswith(("BertTokenizer", "ElectraTokenizer")):
        backend.normalizer = bert_normalizer(config)
    return backend


def bert_backend(path: Path, config: dict) -> Any:
    """BERT's pipeline as transformers 5 builds it from a ``vocab.txt``."""
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

    with open(path, encoding="utf-8", newline="\n") as lines:
        vocab = {line.rstrip("\n"): i for i, line in enumerate(lines)}
    names = {}
    for role, usual in SPECIAL_TOKENS["bert"].items():
        given = config.get(f"{role}_token", usual)
        # Older configs describe a token by its properties.
        names[role] = given["content"] if isinstance(given, dict) else given
    absent = [name for name in names.values() if name not in vocab]
    if absent:
        raise UserError(
            f"{path}: no {', '.join(absent)} in the vocabulary",
            "give the vocab.txt of a BERT or ELECTRA model",
        )
    backend = Backend(WordPiece(vocab, unk_token=names["unk"]))
    backend.normalizer = bert_normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(
        [AddedToken(n, normalized=False, special=True) for n in names.values()]
    )
    first, last = names["cls"], names["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    return backend
