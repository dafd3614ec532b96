"""Fixtures of the integration tests."""

from container_support import container_url

__all__ = ["container_url"]
