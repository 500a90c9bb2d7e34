"""Floor 1: arrays to scalars."""
