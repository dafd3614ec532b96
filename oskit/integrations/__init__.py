"""Retrievers for the frameworks that people build applications with; each module needs its framework."""
