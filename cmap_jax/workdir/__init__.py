"""A self-describing model on disk; `cmap_jax.workdir.description` lists its files."""
