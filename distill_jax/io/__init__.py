"""Files, errors, strings and draws: what knows nothing of retrieval."""
