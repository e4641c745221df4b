"""Controllers, one a file; each is public as `optax_meta.<name>`."""
