"""An nginx with TLS and passwords in front of a real node, as in front of many clusters."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import trustme
from own_nodes import free_port

USER, PASSWORD = "ada", "pässwörd 7€"

CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_set_header Authorization "";
  {servers}
}}
"""

SERVER = """\
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/{name}.pem;
    ssl_certificate_key {folder}/{name}.pem;
    {options}
    location /search/ {{
      auth_basic "OpenSearch";
      auth_basic_user_file {folder}/users;
      client_max_body_size 16m;
      proxy_pass {upstream}/;
    }}
    location /small/ {{ client_max_body_size 8k; proxy_pass {upstream}/; }}
    location /nobody/ {{ proxy_pass http://127.0.0.1:{nobody}/; }}
    location /silent/ {{ proxy_read_timeout 1s; proxy_pass http://127.0.0.1:{silent}/; }}
  }}
"""


@dataclass(frozen=True)
class ClientCertificate:
    """Of a user."""

    certificate: Path
    key: Path


class Nginx:
    """Servers with good and bad certificates. Use it as a context manager.

    ``/search`` asks for :data:`USER` and :data:`PASSWORD`; ``/small`` takes 8 kB; behind ``/nobody`` nobody
    listens (502); behind ``/silent`` nobody answers (504).

    Attributes:
        urls: By what is the matter with the server: ``good``, ``expired``, ``other-host``,
            ``client-certificate``.
        authority: PEM file with the authority of all certificates.
        client, stranger: Certificates of a user, by that authority and by another.
    """

    def __init__(self, upstream: str, folder: Path) -> None:
        self._folder = folder
        self._upstream = upstream
        self._silent = socket.create_server(("127.0.0.1", 0))
        self.urls: dict[str, str] = {}
        self.authority = folder / "authority.pem"

    def __enter__(self) -> Self:
        folder, authority = self._folder, trustme.CA()
        authority.cert_pem.write_to_path(str(self.authority))
        yesterday = datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(days=1)
        certificates = {
            "good": authority.issue_cert("127.0.0.1"),
            "expired": authority.issue_cert("127.0.0.1", not_after=yesterday),
            "other-host": authority.issue_cert("search.example.org"),
            "client-certificate": authority.issue_cert("127.0.0.1"),
        }
        demands = f"ssl_verify_client on; ssl_client_certificate {self.authority};"
        nobody = free_port()
        servers = []
        for name, certificate in certificates.items():
            certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
            port = free_port()
            self.urls[name] = f"https://127.0.0.1:{port}"
            servers.append(
                SERVER.format(
                    port=port,
                    folder=folder,
                    name=name,
                    options=demands if name == "client-certificate" else "",
                    upstream=self._upstream,
                    nobody=nobody,
                    silent=self._silent.getsockname()[1],
                )
            )
        self.client = self._client("ada", authority)
        self.stranger = self._client("stranger", trustme.CA())
        (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
        configuration = CONFIGURATION.format(folder=folder, servers="\n  ".join(servers))
        (folder / "nginx.conf").write_text(configuration)
        self._process = subprocess.Popen(
            [require_nginx(), "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
        )
        self._wait()
        return self

    def _client(self, name: str, authority: trustme.CA) -> ClientCertificate:
        issued = authority.issue_cert(f"{name}@example.org")
        made = ClientCertificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(str(made.certificate))
        issued.private_key_pem.write_to_path(str(made.key))
        return made

    def _wait(self) -> None:
        end = time.monotonic() + 10
        for url in self.urls.values():
            while True:
                try:
                    socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 1).close()
                    break
                except OSError:
                    log = self._folder / "error.log"
                    assert self._process.poll() is None, log.read_text() if log.exists() else "no log"
                    assert time.monotonic() < end
                    time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._silent.close()


def require_nginx() -> str:
    """The program; without it the test is skipped, or fails in CI."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        reason = "there is no nginx; on Debian: apt-get install nginx-light"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return found
