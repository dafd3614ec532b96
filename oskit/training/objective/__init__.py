"""Batches and losses."""
