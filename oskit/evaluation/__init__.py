"""Proof: exact scores in process, quality, and the comparison with what a cluster retrieves."""
