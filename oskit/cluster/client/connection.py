"""Where the cluster is, who we are, and a client that talks to it.

:class:`ConnectionSettings` is the same for every command: options override ``OSKIT_*`` environment
variables. Passwords stay inside a :class:`pydantic.SecretStr` and never reach a message or a log.
"""

from __future__ import annotations

import base64
import gzip
import logging
import os
import ssl
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Self
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from opensearchpy import OpenSearch, Urllib3HttpConnection
from opensearchpy.exceptions import ConnectionError as TransportFailure
from opensearchpy.exceptions import TransportError
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, field_validator, model_validator

from oskit.cluster.client.aws import SERVICES, Service, amazon_host, signer
from oskit.cluster.client.failures import REDIRECTS, ForeignAnswer
from oskit.cluster.client.retry import PLAIN_TEXT, RETRY_FOR_S, RetryingTransport, RetryPolicy
from oskit.errors import UsageError

DEFAULT_URL = "http://localhost:9200"
DEFAULT_TIMEOUT_S = 60.0
POOL_SIZE = 16
"""Sockets kept open; ingest sends from several threads, and urllib3 throws away what exceeds the pool."""

COMPRESSED = {"content-encoding": "gzip"}
"""Header with which a client of :func:`connect` compresses the body of a request."""

logging.getLogger("opensearch").addHandler(logging.NullHandler())  # else Python prints its warnings on stderr


class ConnectionSettings(BaseModel):
    """Address and credentials of a cluster.

    Attributes:
        url: Address with scheme; may have a port and a path prefix. ``user:password@`` in it is taken out and
            becomes ``username`` and ``password``, unless those are given.
        username: User name for basic authentication; needs ``password``.
        password: Its password.
        ca_certs: PEM file, or a folder in OpenSSL's hashed layout, with the authorities to trust instead of
            the system's.
        client_cert: PEM file with the client's certificate (and its key, unless ``client_key`` is given).
        client_key: PEM file with the client's unencrypted key.
        insecure: Do not verify the cluster's certificate. No environment variable switches that on.
        aws_region: Sign requests for the managed service in this region (:mod:`oskit.cluster.client.aws`).
        aws_service: ``es``, or ``aoss`` for OpenSearch Serverless. Only an address that Amazon does not give
            (a domain's custom endpoint, a proxy) needs it.
        aws_profile: Profile of the shared configuration whose credentials sign; ``AWS_PROFILE`` if None.
        timeout: Limit of one request in seconds.
        retry_for: Seconds for which a request is sent again that fails for a passing reason; 0 for never.

    Raises:
        UsageError: A value cannot be right; names the option and its environment variable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = DEFAULT_URL
    username: str | None = None
    password: SecretStr | None = None
    ca_certs: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    insecure: bool = False
    aws_region: str | None = None
    aws_service: Literal["es", "aoss"] | None = None
    aws_profile: str | None = None
    timeout: float = DEFAULT_TIMEOUT_S
    retry_for: float = RETRY_FOR_S

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("url"), str):
            return data
        url, username, password = split_url(data["url"])
        merged: dict[str, Any] = {**data, "url": url}
        if username is not None and merged.get("username") is None:
            merged["username"] = username
            if merged.get("password") is None:
                merged["password"] = password
        return merged

    @field_validator("ca_certs", "client_cert", "client_key", mode="before")
    @classmethod
    def _paths_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if not 0 < self.timeout < float("inf"):
            raise UsageError(
                f"{_named('timeout')} must be a positive number of seconds, not {self.timeout:g}"
            )
        if not 0 <= self.retry_for < float("inf"):
            raise UsageError(
                f"{_named('retry_for')} must be a number of seconds from 0 on, not {self.retry_for:g}"
            )
        if (self.username is None) != (self.password is None):
            given, missing = ("username", "password") if self.password is None else ("password", "username")
            raise UsageError(
                f"{_named(given)} is given, but no {missing}",
                hint=f"Set {_ENVIRONMENT[missing]}"
                + (" or OSKIT_PASSWORD_FILE, or use --password-stdin" if missing == "password" else ""),
            )
        if self.username is not None and (not self.username or ":" in self.username):
            raise UsageError(f"{_named('username')} must not be empty or hold a colon")
        for name in ("ca_certs", "client_cert", "client_key"):
            path = getattr(self, name)
            if path is not None and not Path(path).exists():
                raise UsageError(f"{_named(name)}: there is no file {path!r}")
        self._check_aws()
        if self.client_key is not None and self.client_cert is None:
            raise UsageError(f"{_named('client_key')} is given, but no {_named('client_cert')}")
        return self

    @property
    def service(self) -> Service:
        """Who runs the cluster, by the host's name or ``aws_service``; a signature alone means ``es``."""
        known = amazon_host(urlsplit(self.url).hostname or "")
        return self.aws_service or (known[0] if known else "es" if self.aws_region else "self-managed")

    def _check_aws(self) -> None:
        known = amazon_host(urlsplit(self.url).hostname or "")
        if known and self.service != known[0]:
            raise UsageError(
                f"{_named('aws_service')} is {self.aws_service}, but the host of {_named('url')} is one of "
                f"{SERVICES[known[0]]} ({known[0]})",
                hint=f"Leave out {_named('aws_service')}",
            )
        if known and self.aws_region not in (None, known[1]):
            host = f"the host of {_named('url')} is in {known[1]}"
            raise UsageError(f"{_named('aws_region')} is {self.aws_region}, but {host}")
        if self.service == "aoss" and self.username is not None:
            raise UsageError(
                f"{SERVICES['aoss']} knows no users: requests are signed",
                hint=f"Give {_named('aws_region')} in the place of {_named('username')}",
            )
        if self.aws_region is not None and self.username is not None:
            raise UsageError(
                f"{_named('aws_region')} signs requests, and {_named('username')} logs in: give one of them"
            )
        if self.service == "aoss" and self.aws_region is None:
            region = known[1] if known else "REGION"
            raise UsageError(
                f"{SERVICES['aoss']} takes signed requests only", hint=f"Give --aws-region {region}"
            )
        if self.aws_profile is not None and self.aws_region is None:
            raise UsageError(
                f"{_named('aws_profile')} has no effect without {_named('aws_region')}, which signs requests"
            )

    @classmethod
    def from_environment(
        cls, *, password_file: str | os.PathLike[str] | None = None, **overrides: Any
    ) -> ConnectionSettings:
        """Settings from ``OSKIT_*`` variables; ``overrides`` (fields of this class) win over them.

        A user name or password inside the URL wins over ``OSKIT_USERNAME`` and ``OSKIT_PASSWORD``, since it
        names this cluster; options win over both. Empty variables count as unset.

        Args:
            password_file: File whose first line is the password (``OSKIT_PASSWORD_FILE``).
            **overrides: Values that are not None win over the environment.

        Raises:
            UsageError: A value cannot be right; names the option and the variable.
        """
        values = {name: value for name, value in overrides.items() if value is not None}
        if password_file is not None and "password" not in values:
            values["password"] = _read_password(password_file, "--password-file")
        given_url = values.get("url") or os.environ.get(_ENVIRONMENT["url"])
        url_has_user = isinstance(given_url, str) and split_url(given_url)[1] is not None
        for name, variable in _ENVIRONMENT.items():
            if name in values or not os.environ.get(variable):
                continue
            if url_has_user and name in ("username", "password"):
                continue
            values[name] = os.environ[variable]
        file = os.environ.get("OSKIT_PASSWORD_FILE")
        if file and "password" not in values and not url_has_user:
            values["password"] = _read_password(file, "OSKIT_PASSWORD_FILE")
        try:
            return cls(**values)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            name = str(problem["loc"][0]) if problem["loc"] else "url"
            raise UsageError(f"{_named(name)}: {problem['msg'].lower()}") from None


_ENVIRONMENT = {
    name: f"OSKIT_{name.upper()}" for name in ConnectionSettings.model_fields if name != "insecure"
}


def _named(name: str) -> str:
    """A setting as people know it: its option and its environment variable."""
    option = {"password": "--password-file"}.get(name, f"--{name.replace('_', '-')}")
    return f"{option} ({_ENVIRONMENT[name]})" if name in _ENVIRONMENT else option


def _read_password(path: str | os.PathLike[str], source: str) -> str:
    try:
        password = Path(path).read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UsageError(f"{source}: cannot read {os.fspath(path)!r}: {reason}") from None
    if not password:
        raise UsageError(f"{source}: the first line of {os.fspath(path)!r} is empty")
    return password


def split_url(url: str) -> tuple[str, str | None, str | None]:
    """Check an address and take the credentials out of it: ``(url, username, password)``.

    Raises:
        UsageError: Not an address of a cluster. The message never holds what stood before an ``@``.
    """
    text = url.strip()
    shown = f"***@{text.rsplit('@', 1)[1]}" if "@" in text else text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UsageError(f"{_named('url')}: {shown!r} is not a URL with a valid host and port") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(
            f"{_named('url')}: {shown!r} does not begin with http:// or https://",
            hint=f"Write it like {DEFAULT_URL} or https://search.example.org/prefix",
        )
    if not parts.hostname or any(letter.isspace() for letter in text):
        raise UsageError(f"{_named('url')}: {shown!r} has no valid host name")
    if parts.query or parts.fragment:
        raise UsageError(f"{_named('url')}: {shown!r} must end after the path, without '?' or '#'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    clean = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    if parts.username is None:
        return clean, None, None
    return clean, unquote(parts.username), None if parts.password is None else unquote(parts.password)


def _readable(urlopen: Callable[..., Any]) -> Callable[..., Any]:
    """Requests whose answers are UTF-8: of a gateway's page in another encoding the status counts, too."""

    def request(*args: Any, **kwargs: Any) -> Any:
        response = urlopen(*args, **kwargs)
        if "json" in response.headers.get("content-type", ""):
            return response
        data = response.data.decode("utf-8", "replace").encode()
        return SimpleNamespace(status=response.status, headers=response.headers, data=data)

    return request


class _Connection(Urllib3HttpConnection):
    """opensearch-py's connection, without warnings on the terminal, and failures that know the address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pool.urlopen = _readable(self.pool.urlopen)

    def _raise_warnings(self, warning_headers: Collection[str]) -> None:
        for header in warning_headers or ():
            logging.getLogger("opensearch").debug("server warning: %s", header)

    def perform_request(
        self,
        method: str,
        url: str,
        params: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
        ignore: Collection[int] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        address = self.host + self.url_prefix
        ignore = (*ignore, *REDIRECTS)
        if body and headers and COMPRESSED.items() <= headers.items():
            # Quickest of all: 145 MB/s and a third of the size, where opensearch-py's level 9 has 10 MB/s.
            body = gzip.compress(body, 1)
        try:
            status, answered, text = super().perform_request(
                method, url, params, body, timeout, ignore, headers
            )
        except TransportFailure as error:
            error.oskit_url = address  # type: ignore[attr-defined]
            raise
        if status in REDIRECTS:
            redirect = TransportError(status, text, None)
            # What follows a question mark may be somebody's secret.
            redirect.oskit_location = answered.get("location", "").partition("?")[0]  # type: ignore[attr-defined]
            raise redirect
        kind = answered.get("content-type", "").partition(";")[0]
        is_page = not text.strip() or (kind and "json" not in kind)
        if is_page and 200 <= status < 300 and method != "HEAD" and not PLAIN_TEXT.search(url):
            raise ForeignAnswer(status, kind, text, address)
        return status, answered, text


def connect(settings: ConnectionSettings, *, policy: RetryPolicy | None = None) -> OpenSearch:
    """A client of the cluster; sends nothing yet.

    Args:
        settings: Where and as whom.
        policy: How long and how far apart failed requests are sent again
            (:mod:`oskit.cluster.client.retry`); the default one with ``settings.retry_for`` if None.

    Raises:
        UsageError: A certificate or key file cannot be used, or there are no AWS credentials.
        MissingDependencyError: Requests are to be signed, and botocore is missing.
    """
    parts: SplitResult = urlsplit(settings.url)
    secure = parts.scheme == "https"
    return OpenSearch(
        hosts=[
            {
                "host": parts.hostname,
                # As in every URL: without a port it is the scheme's own, not OpenSearch's 9200.
                "port": parts.port or (443 if secure else 80),
                "use_ssl": secure,
                "url_prefix": parts.path,
            }
        ],
        connection_class=_Connection,
        headers=_authorization(settings),
        http_auth=signer(settings.aws_region, settings.service, settings.aws_profile)
        if settings.aws_region
        else None,
        ssl_context=_ssl_context(settings) if secure else None,
        timeout=settings.timeout,
        pool_maxsize=POOL_SIZE,
        transport_class=RetryingTransport,
        policy=policy or RetryPolicy(retry_for_s=settings.retry_for),
        own_timeout="timeout" in settings.model_fields_set,
        service=settings.service,
    )


def _authorization(settings: ConnectionSettings) -> dict[str, str]:
    if settings.username is None or settings.password is None:
        return {}
    # Made here because urllib3 encodes credentials as latin-1, and OpenSearch reads UTF-8.
    pair = f"{settings.username}:{settings.password.get_secret_value()}".encode()
    return {"authorization": f"Basic {base64.b64encode(pair).decode('ascii')}"}


def _ssl_context(settings: ConnectionSettings) -> ssl.SSLContext:
    ca_certs = settings.ca_certs
    try:
        if ca_certs is not None and Path(ca_certs).is_dir():
            context = ssl.create_default_context(capath=ca_certs)
        else:
            context = ssl.create_default_context(cafile=ca_certs)
    except OSError:  # ssl.SSLError is one too
        raise UsageError(f"{_named('ca_certs')}: {ca_certs!r} holds no usable PEM certificates") from None
    if ca_certs is None and not context.cert_store_stats()["x509_ca"]:
        import certifi  # slim machines have no authorities of their own

        context.load_verify_locations(cafile=certifi.where())
    if settings.client_cert is not None:
        _add_client_certificate(context, settings.client_cert, settings.client_key)
    if settings.insecure:
        import urllib3

        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _add_client_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        reason = str(getattr(error, "reason", None) or error.strerror or "unreadable")
        reason = reason.replace("_", " ").lower()
        raise UsageError(
            f"{_named('client_cert')}: {certificate!r} and its key cannot be used ({reason})",
            hint="Both must be PEM files that belong together, and the key must not be encrypted",
        ) from None
