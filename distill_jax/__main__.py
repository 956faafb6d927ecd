"""The command ``distill_jax``, and ``python -m distill_jax``: signals, then main."""

from __future__ import annotations

import sys

from distill_jax.runtime import signals


def console() -> int:
    """The command; what it imports takes seconds, in which Ctrl-C is heard too."""
    signals.listen()
    from distill_jax import main  # after the handlers, which is the point

    return main.console()


if __name__ == "__main__":
    sys.exit(console())
