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
        try:
            backend.normalizer = normalizers.Precompiled(model.charsmap)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(
                f"the SentencePiece model's character map is damaged ({error})",
                "fetch the file again",
            ) from None
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


def bert_normalizer(config: dict[str, Any]) -> Any:
    """What BERT's tokenizer classes do to a text before they split it."""
    from tokenizers import normalizers

    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def bert_backend(path: Path, config: dict[str, Any]) -> Any:
    """BERT's pipeline as transformers 5 builds it from a ``vocab.txt``."""
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

    with open(path, encoding="utf-8", newline="\n") as lines:
        pieces = [line.removesuffix("\n").removesuffix("\r") for line in lines]
    vocab = {piece: i for i, piece in enumerate(pieces)}
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


def deberta_backend(model: SentencePieceModel, config: dict[str, Any]) -> Any:
    """DeBERTa-v2's and v3's pipeline from an ``spm.model``, as transformers 5 has it.

    ``config`` gets the names of the special tokens that it lacks.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import Unigram

    names = {}
    roles = SPECIAL_TOKENS["bert"] | {"bos": "[CLS]", "eos": "[SEP]"}
    for role, usual in roles.items():
        given = config.setdefault(f"{role}_token", usual)
        names[role] = given["content"] if isinstance(given, dict) else given
    pieces = [(piece, score) for piece, score, _ in model.pieces]
    unknown = (names["unk"], 0.0)
    unk_id = pieces.index(unknown) if unknown in pieces else 1
    backend = Backend(Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    steps: list[Any] = [normalizers.Lowercase()] if config.get("do_lower_case") else []
    steps += [
        normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "),
        normalizers.NFC(),
        normalizers.Strip(left=False, right=True),
    ]
    backend.normalizer = normalizers.Sequence(steps)
    space: dict[str, Any] = {"replacement": SPACE}
    space["prepend_scheme"] = (
        "always" if config.get("add_prefix_space", True) else "first"
    )
    parts: list[Any] = [pre_tokenizers.Metaspace(**space)]
    if config.get("split_by_punct"):
        parts.insert(0, pre_tokenizers.Punctuation(behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.Metaspace(**space)
    backend.add_special_tokens(
        [AddedToken(n, normalized=False, special=True) for n in names.values()]
    )
    first, last = names["cls"], names["sep"]
    ids = {name: int(backend.token_to_id(name) or 0) for name in (first, last)}
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=list(ids.items()),
    )
    return backend


def byte_level_backend(path: Path, config: dict[str, Any]) -> Any:
    """RoBERTa's pipeline from ``vocab.json`` and the ``merges.txt`` beside it.

    Raises:
        UserError: no merges, or a class whose pipeline is another one.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    name = str(config.get("tokenizer_class") or "RobertaTokenizer")
    merges = path.parent / "merges.txt"
    if not name.startswith("Roberta") or not merges.is_file():
        raise UserError(
            f"{path}: vocab.json of {name} without a tokenizer.json",
            "save it with transformers' AutoTokenizer, which writes tokenizer.json",
        )
    backend = Backend(BPE.from_file(str(path), str(merges), fuse_unk=False))
    space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    roles = dict(zip(("bos", "eos", "unk", "pad"), ("<s>", "</s>", "<unk>", "<pad>")))
    roles |= {"cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    for role, usual in roles.items():
        given = config.setdefault(f"{role}_token", usual)
        record = given if isinstance(given, dict) else {"content": given}
        number = backend.token_to_id(record["content"])
        if number is not None:
            flags = {**record, "special": True, "normalized": False}
            flags["lstrip"] = record.get("lstrip", role == "mask")
            known = config.setdefault("added_tokens_decoder", {})
            known.setdefault(str(number), flags)
    first, last = (
        int(backend.token_to_id(roles[role]) or 0) for role in ("cls", "sep")
    )
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", last), ("<s>", first), True, space
    )
    return backend


def pair_frame(
    backend: Any, config: dict[str, Any], cls_id: int | None, sep_id: int | None
) -> dict[str, tuple[int, ...]]:
    """The special tokens that a post-processor puts around and between texts.

    ``add_bos_token`` and ``add_eos_token`` of a ``tokenizer_config.json`` win, as in
    transformers.
    """
    import json

    explicit = {"add_bos_token", "add_eos_token"} & set(config)
    if explicit and _plain_class(config):
        ends = {}
        for role in ("bos", "eos"):
            given = (
                config.get(f"{role}_token") if config.get(f"add_{role}_token") else None
            )
            given = given["content"] if isinstance(given, dict) else given
            token = None if given is None else backend.token_to_id(given)
            ends[role] = () if token is None else (token,)
        between = (*ends["eos"], *ends["bos"])
        return {"cls": ends["bos"], "pair": between, "sep": ends["eos"]}
    record = json.loads(backend.to_str()).get("post_processor") or {}
    for part in [record, *record.get("processors", [])]:
        kind = part.get("type")
        if kind in ("BertProcessing", "RobertaProcessing"):
            first, last = (part[role][1] for role in ("cls", "sep"))
            between = (last,) if kind == "BertProcessing" else (last, last)
            return {"cls": (first,), "pair": between, "sep": (last,)}
        if kind == "TemplateProcessing":
            return _template_frame(part)
    # A tokenizer that adds nothing, but names the roles.
    if cls_id is None or sep_id is None:
        return {"cls": (), "pair": (), "sep": ()}
    return {"cls": (cls_id,), "pair": (sep_id,), "sep": (sep_id,)}


def _plain_class(config: dict[str, Any]) -> bool:
    """Classes that put their own template together ignore the two settings."""
    name = str(config.get("tokenizer_class") or "")
    return not name.startswith(("Bert", "Roberta", "XLMRoberta", "MPNet", "T5"))


def _template_frame(part: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    runs: list[list[int]] = [[]]
    for piece in part["pair"]:
        if "Sequence" in piece:
            runs.append([])
        else:
            runs[-1] += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    before, between, after = (*map(tuple, runs), (), ())[:3]
    return {"cls": before, "pair": between, "sep": after}
