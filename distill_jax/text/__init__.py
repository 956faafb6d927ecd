"""Tokenizers, templates and token stores."""
