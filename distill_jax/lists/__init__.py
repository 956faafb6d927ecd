"""Training lists, built from labels, judgements and negatives."""
