"""Fixtures of the integration tests."""

import os

from container_support import container_url

# Haystack reads it when it is imported, and would tell somebody on the internet of each pipeline.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "false")

__all__ = ["container_url"]
