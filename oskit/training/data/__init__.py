"""What a run learns from: sources, examples, passages, held-out queries, leakage."""
