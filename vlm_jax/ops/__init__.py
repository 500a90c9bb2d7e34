"""Floor 1: arrays to arrays, no parameters."""
