"""Who scores the examples, and how scores become labels."""
