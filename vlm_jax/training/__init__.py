"""Floor 4': state, step, loop; knows systems through systems.base only."""
