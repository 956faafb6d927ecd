"""Training lists: how they are made from labels, judgements and negatives."""
