"""What C++ writes to the console is held back, and shown where something fails."""

from __future__ import annotations

import os

import pytest

from distill_jax.io.quiet import quiet_stderr


def test_what_is_written_inside_is_held_back(capfd):
    os.write(2, b"before ")
    with quiet_stderr():
        os.write(2, b"noise ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_a_failure_shows_what_was_written_before_it(capfd):
    def fails():
        os.write(2, b"a.so: cannot be mapped")
        raise ImportError

    with pytest.raises(ImportError), quiet_stderr():
        fails()
    os.write(2, b", after")
    assert capfd.readouterr().err == "a.so: cannot be mapped, after"


def test_no_file_is_left_open():
    with quiet_stderr():
        pass
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with quiet_stderr():
            pass
        with pytest.raises(ValueError, match="x"), quiet_stderr():
            raise ValueError("x")
    assert len(os.listdir("/dev/fd")) == before
