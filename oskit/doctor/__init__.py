"""Checks of the machine, an encoder and a cluster; each finding says what to do about it."""

from oskit.doctor.cluster import check_cluster
from oskit.doctor.finding import Finding, Status
from oskit.doctor.loading import check_encoder, check_loading
from oskit.doctor.machine import check_machine

__all__ = ["Finding", "Status", "check_cluster", "check_encoder", "check_loading", "check_machine"]
