"""What a recipe will take of a slice of TPUs, found by compiling it for one that nobody has rented."""
