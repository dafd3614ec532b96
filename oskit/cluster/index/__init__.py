"""Indexes for sparse vectors: how they are made and what they record of that."""
