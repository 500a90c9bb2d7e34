"""Floor 4: one file per paper; base.py holds the protocol."""
