"""Floor 5: evaluators and the report."""
