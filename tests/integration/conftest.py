"""Fixtures of the integration tests, and the table of what has been tried."""

from container_support import container_url
from incidents import incident, pytest_runtest_makereport, pytest_sessionfinish

__all__ = ["container_url", "incident", "pytest_runtest_makereport", "pytest_sessionfinish"]
