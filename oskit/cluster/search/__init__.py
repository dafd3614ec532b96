"""Searching an index in every way that the cluster offers."""
