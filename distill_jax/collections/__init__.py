"""Documents, queries and judgements, and the formats they come in."""
