"""Floor 3: towers."""
