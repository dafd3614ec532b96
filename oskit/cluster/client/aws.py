"""Amazon OpenSearch Service and Serverless: their addresses, and requests signed for them (AWS Signature
Version 4).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from opensearchpy import Urllib3AWSV4SignerAuth

from oskit.errors import MissingDependencyError, UsageError

Service = Literal["self-managed", "es", "aoss"]

SERVICES: dict[Service, str] = {
    "self-managed": "a cluster of one's own",
    "es": "Amazon OpenSearch Service",
    "aoss": "Amazon OpenSearch Serverless",
}

_HOST = re.compile(
    r"\.(?P<region>[a-z]{2,}(-[a-z]+)+-\d)\.(?P<service>es|aoss)\.amazonaws\.com(\.cn)?$"
    r"|\.(?P<dual>aos|aoss)\.(?P<place>[a-z]{2,}(-[a-z]+)+-\d)\.on\.aws$"
)
"""``search-NAME-ID.REGION.es.amazonaws.com``, ``ID.REGION.aoss.amazonaws.com``, and, for IPv6 too,
``NAME-ID.aos.REGION.on.aws``."""


def amazon_host(host: str) -> tuple[Service, str] | None:
    """Service and region of a host name that Amazon gives; None of others, such as a custom endpoint."""
    found = _HOST.search(host.lower().rstrip("."))
    if found is None:
        return None
    named = found["service"] or found["dual"]
    return "aoss" if named == "aoss" else "es", found["region"] or found["place"]


def signer(region: str, service: str, profile: str | None = None) -> Callable[..., Any]:
    """What signs each request of a client anew, with the credentials that botocore finds.

    They come from the environment, the shared configuration (``AWS_PROFILE``), or the role of the machine or
    container, and are renewed when they expire.

    Args:
        region: For example ``eu-north-1``.
        service: ``es``, or ``aoss`` for OpenSearch Serverless.
        profile: Of the shared configuration, instead of ``AWS_PROFILE``.

    Raises:
        MissingDependencyError: botocore is not installed.
        UsageError: There are no credentials.
    """
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        raise MissingDependencyError.for_extra("--aws-region", "botocore", "aws") from None
    try:
        credentials = Session(profile=profile).get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()  # fetched now, where a failure can be told
    except BotoCoreError as error:
        raise UsageError(
            f"AWS credentials cannot be read: {' '.join(str(error).split())}",
            hint="Check --aws-profile and AWS_PROFILE",
        ) from None
    if credentials is None:
        raise UsageError(
            "--aws-region (OSKIT_AWS_REGION) is given, but there are no AWS credentials",
            hint="Give --aws-profile, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in",
        )
    return Urllib3AWSV4SignerAuth(credentials, region, service)
