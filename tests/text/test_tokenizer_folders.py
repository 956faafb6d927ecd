"""All files of a tokenizer's folder count: ids equal transformers', or it fails."""

from __future__ import annotations

import json

import pytest

from distill_jax.io.errors import UserError
from distill_jax.text.tokenizer import Tokenizer

PIECES = [
    "[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdehklotw'!,.",
    *(f"##{letter}" for letter in "abcdehklotw"), "the", "cable", "##let", "中", "文",
    "É", "é",
]  # fmt: skip
TEXTS = [
    "The cable, kx!",
    "CABLET kx kxa KX [MASK] [SEP][unused0]",
    "É é e\u0301 中文 the\u00a0cable\tlet",
    "",
]
SPECIAL = {"content": "kx", "special": True, "normalized": False}
BERT = {"tokenizer_class": "BertTokenizer"}
N = len(PIECES)
FOLDERS = {
    "vocabulary alone": {},
    "class": {"tokenizer_config": BERT},
    "cased": {"tokenizer_config": {**BERT, "do_lower_case": False}},
    "accents": {"tokenizer_config": {**BERT, "strip_accents": False}},
    "no accents": {
        "tokenizer_config": {**BERT, "do_lower_case": False, "strip_accents": True}
    },
    "no ideographs": {"tokenizer_config": {**BERT, "tokenize_chinese_chars": False}},
    "another mask": {"tokenizer_config": {**BERT, "mask_token": "[unused0]"}},
    "added": {"added_tokens": {"kx": N}},
    "added and class": {"tokenizer_config": BERT, "added_tokens": {"kx": N}},
    "decoder": {
        "tokenizer_config": {**BERT, "added_tokens_decoder": {str(N): SPECIAL}}
    },
    "decoder, normalized": {
        "tokenizer_config": {
            **BERT,
            "added_tokens_decoder": {str(N): {"content": "kx", "normalized": True}},
        }
    },
    "whole words": {
        "tokenizer_config": {
            **BERT,
            "added_tokens_decoder": {
                str(N): {**SPECIAL, "single_word": True, "lstrip": True}
            },
        }
    },
    "further": {"tokenizer_config": {**BERT, "additional_special_tokens": ["kx"]}},
    "further, known": {
        "tokenizer_config": {**BERT, "additional_special_tokens": ["[unused0]", "kx"]}
    },
    "further, map": {
        "tokenizer_config": BERT,
        "special_tokens_map": {"additional_special_tokens": ["kx"]},
    },
    "extra": {"tokenizer_config": {**BERT, "extra_special_tokens": ["kx", "[SEP]"]}},
    "extra by name": {
        "tokenizer_config": {**BERT, "extra_special_tokens": {"x_token": "kx"}}
    },
    "further and added": {
        "tokenizer_config": {**BERT, "additional_special_tokens": ["the"]},
        "added_tokens": {"kx": N},
    },
}
REFUSED = {
    "gap": {"added_tokens": {"kx": N + 1}},
    "another's id": {"added_tokens": {"kx": 3}},
    "id twice": {"added_tokens": {"kx": N, "xk": N}},
    "no object": {"added_tokens": ["kx"]},
    "cut on the left": {"tokenizer_config": {**BERT, "truncation_side": "left"}},
    "further, a text": {"tokenizer_config": {"additional_special_tokens": "kx"}},
    "further, numbers": {"tokenizer_config": {"extra_special_tokens": [5]}},
    "unknown absent": {"tokenizer_config": {**BERT, "unk_token": "<unknown>"}},
}
BYTES = {
    "as written": lambda raw: raw,
    "CRLF": lambda raw: raw.replace(b"\n", b"\r\n"),
    "empty lines": lambda raw: raw + b"\n\n",
    "no last line end": lambda raw: raw.rstrip(b"\n"),
    "a piece twice": lambda raw: raw + b"the\n",
}


def write(folder, files, raw=lambda raw: raw):
    config = {"model_type": "bert", "vocab_size": N}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_bytes(raw("".join(f"{p}\n" for p in PIECES).encode()))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def assert_equal(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    assert [list(ids) for ids in Tokenizer.load(folder).encode_batch(TEXTS)] == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_of_a_folder_equal_transformers(tmp_path, name):
    assert_equal(write(tmp_path, FOLDERS[name]))


@pytest.mark.parametrize("raw", BYTES)
def test_ids_of_an_odd_vocabulary_equal_transformers(tmp_path, raw):
    assert_equal(write(tmp_path, {"tokenizer_config": BERT}, BYTES[raw]))


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_whose_ids_are_unsure_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.load(write(tmp_path, REFUSED[name]))
