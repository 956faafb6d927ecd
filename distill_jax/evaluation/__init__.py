"""Measures, significance, diagnostics and answers."""
