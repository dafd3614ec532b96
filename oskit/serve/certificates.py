"""Whether a certificate can be served: a handshake with itself, in memory."""

from __future__ import annotations

import ssl
from pathlib import Path

from oskit.errors import UsageError


def check_certificates(certificate: Path, key: Path, client_ca: Path | None) -> None:
    """Refuse what no client would accept.

    Raises:
        UsageError: A file is none, key and certificate are no pair, or its time is over or still to come.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it: what counts here is its time
    try:
        server.load_cert_chain(certificate, key, password=lambda: "")  # else OpenSSL asks on the terminal
        if client_ca is not None:
            server.load_verify_locations(client_ca)
        client.load_verify_locations(certificate)
        _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        raise UsageError(
            f"no client would accept {certificate}: {error.verify_message}", hint="Renew it"
        ) from error
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificates cannot be used: {error}") from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    while sides:
        try:
            sides[0].do_handshake()
            sides.pop(0)
        except ssl.SSLWantReadError:
            sides.reverse()
