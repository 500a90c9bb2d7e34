"""Floor 2: NNX modules that the towers are made of."""
