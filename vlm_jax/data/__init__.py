"""Floor 1': bytes, records and hosts, in numpy; nothing here imports jax."""
