"""The files of a tokenizer in a folder of transformers, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import read_json, write_json
from distill_jax.text.pipelines import EXTRA_IDS, bert_normalizer

# The class that transformers gives a folder whose tokenizer_config.json names none.
_CLASS_OF_MODEL = {
    **dict.fromkeys(("bert", "electra", "distilbert", "ernie"), "BertTokenizer"),
    "nomic_bert": "BertTokenizer",
}


_FURTHER = ("additional_special_tokens", "extra_special_tokens")


def settings(folder: Path) -> dict[str, Any]:
    """The settings in the files beside a vocabulary, as one ``tokenizer_config``.

    ``added_tokens.json`` becomes entries of ``added_tokens_decoder``,
    ``special_tokens_map.json`` names the roles that ``tokenizer_config.json`` does not,
    and the model's type decides if no class is named.

    Raises:
        UserError: a setting that changes ids and is not read.
    """
    config = dict(_object(folder / "tokenizer_config.json"))
    for role, value in _object(folder / "special_tokens_map.json").items():
        if role.endswith("_token") or role in _FURTHER:
            config.setdefault(role, value)
    if config.get("truncation_side", "right") != "right":
        raise UserError(
            f"{folder}/tokenizer_config.json: truncation_side is "
            f"{config['truncation_side']!r}",
            "texts are cut at their end; take the entry out to accept that",
        )
    if not config.get("tokenizer_class"):
        model = _object(folder / "config.json").get("model_type")
        if model in _CLASS_OF_MODEL:
            config["tokenizer_class"] = _CLASS_OF_MODEL[model]
    added = dict(config.get("added_tokens_decoder") or {})
    beside = _object(folder / "added_tokens.json")
    if len(set(beside.values())) < len(beside):
        raise UserError(
            f"{folder}/added_tokens.json: an id is given twice", "fetch the file again"
        )
    for token, number in beside.items():
        added.setdefault(str(number), {"content": token, "normalized": True})
    if added:
        config["added_tokens_decoder"] = added
    return config


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object", "fetch the file again")
    return found


def with_added_tokens(backend: Any, config: dict[str, Any], source: Path) -> Any:
    """``backend`` with the tokens that the files beside its vocabulary add to it.

    Raises:
        UserError: a token's id is not the one it would get, so that others would shift.
    """
    from tokenizers import AddedToken

    records = config.get("added_tokens_decoder") or {}
    for number, record in sorted(records.items(), key=lambda item: int(item[0])):
        flags = {
            name: bool(record[name])
            for name in ("single_word", "lstrip", "rstrip", "normalized")
            if name in record
        }
        special = bool(record.get("special", False))
        known = backend.get_added_tokens_decoder().get(int(number))
        token = AddedToken(record["content"], special=special, **flags)
        if known is None or known.content != record["content"]:
            add = backend.add_special_tokens if special else backend.add_tokens
            add([token])
        found = backend.token_to_id(record["content"])
        if found != int(number):
            raise UserError(
                f"{source}: the added token {record['content']!r} has the id {number} "
                f"in the files beside, {found} after the vocabulary",
                "fetch all files of one version of the model",
            )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name in _further_specials(config, source):
        if name not in known:
            backend.add_special_tokens([AddedToken(name, normalized=False)])
    return backend


def _further_specials(config: dict[str, Any], source: Path) -> list[str]:
    """Special tokens that a folder names without their ids."""
    names = []
    for field in _FURTHER:
        given = config.get(field) or ()
        given = list(given.values()) if isinstance(given, dict) else given
        given = [
            token["content"] if isinstance(token, dict) else token for token in given
        ]
        if isinstance(config.get(field), str) or not all(
            isinstance(n, str) for n in given
        ):
            raise UserError(
                f"{source}: {field} beside it is not a list of texts",
                "fetch tokenizer_config.json again",
            )
        names += given
    return names


def with_own_normalizer(backend: Any, config: dict[str, Any]) -> Any:
    """A backend read from ``tokenizer.json``, as its class in transformers has it.

    BERT's and ELECTRA's classes normalise as ``tokenizer_config.json`` says, whatever
    ``tokenizer.json`` holds; classes of other names take the latter.
    """
    name = str(config.get("tokenizer_class") or "")
    pieces = type(backend.model).__name__ == "WordPiece"
    if pieces and name.startswith(("BertTokenizer", "ElectraTokenizer")):
        backend.normalizer = bert_normalizer(config)
    return backend


def read_backend(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except BaseException as error:
        # A bare Exception, or a panic of Rust, which is not an Exception.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(
            f"{path}: not a tokenizer.json ({error})", "fetch the file again"
        ) from None


def write_files(
    directory: Path,
    backend: Any,
    kind: str,
    config: dict[str, Any],
    max_length: int | None,
) -> None:
    """Writes ``tokenizer.json``, its settings and, for BERT, ``vocab.txt``.

    Args:
        kind: ``Tokenizer.kind``.
        config: of ``tokenizer_config.json``.
        max_length: ``model_max_length`` in it, in tokens.
    """
    with atomic_write(directory / "tokenizer.json") as out:
        out.write(backend.to_str(pretty=False))
    config = {k: v for k, v in config.items() if k not in _LOCAL}
    if kind == "t5":
        names = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
        sentinels = [name for name in names if backend.token_to_id(name) is not None]
        config["extra_ids"] = len(sentinels)
        config.pop("extra_special_tokens", None)
        config["additional_special_tokens"] = sentinels
    if kind == "bert":
        normalizer = backend.normalizer
        config |= {
            "do_lower_case": bool(getattr(normalizer, "lowercase", True)),
            "strip_accents": getattr(normalizer, "strip_accents", None),
            "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
        }
        vocab = backend.get_vocab(with_added_tokens=False)
        with atomic_write(directory / "vocab.txt") as out:
            for token, _ in sorted(vocab.items(), key=lambda item: item[1]):
                out.write(token + "\n")
    if max_length is not None:
        config["model_max_length"] = max_length
    write_json(directory / "tokenizer_config.json", config)


# Paths of this machine, which mean nothing on another.
_LOCAL = ("is_local", "local_files_only", "name_or_path")
