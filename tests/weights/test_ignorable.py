"""What transformers leaves out of a file without a word, our readers leave out too."""

from __future__ import annotations

import re

import pytest

from distill_jax.weights import encoders, t5

transformers = pytest.importorskip("transformers")


def names(pattern: str) -> str:
    """A tensor's name that a pattern of transformers means."""
    return re.sub(r"\\(.)", r"\1", pattern).strip("^$").replace(".*", "x")


def classes():
    for family in {f.model_type: f for f in encoders.FAMILIES.values()}.values():
        for architecture in family.architectures.values():
            found = getattr(transformers, str(architecture), None)
            if found is not None:
                yield pytest.param(family, found, id=architecture)


@pytest.mark.parametrize(("family", "cls"), classes())
def test_ignorable_names_of_encoders(family, cls):
    ignored = [*encoders.IGNORED, *family.ignored]
    for pattern in cls._keys_to_ignore_on_load_unexpected or ():
        name = names(pattern)
        assert any(re.fullmatch(text, name) for text in ignored), name


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "T5EncoderModel"])
def test_ignorable_names_of_t5(name):
    for pattern in getattr(transformers, name)._keys_to_ignore_on_load_unexpected or ():
        if pattern.startswith("decoder") and name == "T5EncoderModel":
            continue  # an encoder's file that has a decoder is read with it
        assert any(re.fullmatch(text, names(pattern)) for text in t5.IGNORED)


@pytest.mark.parametrize(("family", "cls"), classes())
def test_tied_names_are_known(family, cls):
    tied = cls._tied_weights_keys or {}
    for name in tied:
        if name.endswith("weight") and "ForMaskedLM" in cls.__name__:
            assert name in family.tied
