"""Array operations that several rooms share; jax only."""
