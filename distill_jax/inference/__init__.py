"""Models on many rows: scores, vectors and generated texts."""
