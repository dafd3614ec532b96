"""Requests signed for Amazon OpenSearch Service and OpenSearch Serverless (AWS Signature Version 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opensearchpy import Urllib3AWSV4SignerAuth

from oskit.errors import MissingDependencyError, UsageError


def signer(region: str, service: str) -> Callable[..., Any]:
    """What signs each request of a client anew, with the credentials that botocore finds.

    They come from the environment, the shared configuration (``AWS_PROFILE``), or the role of the machine or
    container, and are renewed when they expire.

    Args:
        region: For example ``eu-north-1``.
        service: ``es``, or ``aoss`` for OpenSearch Serverless.

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
        credentials = Session().get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()  # fetched now, where a failure can be told
    except BotoCoreError as error:
        raise UsageError(
            f"AWS credentials cannot be read: {' '.join(str(error).split())}", hint="Check AWS_PROFILE"
        ) from None
    if credentials is None:
        raise UsageError(
            "--aws-region (OSKIT_AWS_REGION) is given, but there are no AWS credentials",
            hint="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in",
        )
    return Urllib3AWSV4SignerAuth(credentials, region, service)
