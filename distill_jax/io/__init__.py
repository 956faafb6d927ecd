"""Files, errors, strings and draws: code that does not depend on retrieval."""
