"""Array operations that several rooms share (jax only), and the forms of vectors."""
