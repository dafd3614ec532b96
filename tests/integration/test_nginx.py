"""TLS, users and a path prefix: every command through a real nginx, and what goes wrong there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import incidents
import pytest
from archives import encoder_archive
from incidents import Incident
from leftovers import nothing_is_left
from nginx import PASSWORD, USER, Nginx
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, indexed, tiny, write_documents

from oskit.archive.archive import open_archive
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.data.collection import Collection
from oskit.errors import ClusterError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

WRONG = "wröng pässwörd"


@pytest.fixture(scope="module")
def nginx(cluster_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(cluster_url, tmp_path_factory.mktemp("nginx")) as server:
        yield server


class Watch:
    """Looks for secrets in the command lines of all processes, as ``ps`` shows them to everybody."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets = [secret.encode() for secret in secrets]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: set[bytes] = set()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    line = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                self.seen |= {secret for secret in self._secrets if secret in line}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


Oskit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def oskit(nginx: Nginx, tmp_path: Path) -> Oskit:
    """Runs the real command in an empty folder, with credentials in the environment unless told otherwise."""

    def run(*words: str, url: str | None = None, stdin: str | None = None, **changes: str | None) -> Any:
        environment: dict[str, str | None] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OSKIT_")},
            "OSKIT_URL": url or f"{nginx.urls['good']}/search",
            "OSKIT_CA_CERTS": str(nginx.authority),
            "OSKIT_USERNAME": USER,
            "OSKIT_PASSWORD": PASSWORD,
            "OSKIT_RETRY_FOR": "0",
            "PYTHONUTF8": "1",
            **changes,
        }
        return subprocess.run(
            [sys.executable, "-m", "oskit", *words],
            env={name: value for name, value in environment.items() if value is not None},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def write_collection(folder: Path) -> Path:
    """A BEIR folder of the same documents."""
    Collection(queries={"q": "quick brown fox"}, qrels={"q": {"d1": 1}}, corpus=tuple(documents())).write(
        folder
    )
    return folder


def commands(tiny: TinyModels, archive: Path, index: str, tmp_path: Path) -> list[list[str]]:
    """Every command that talks to a cluster, in an order in which all succeed."""
    source = str(write_documents(tmp_path / "docs.jsonl", documents()))
    local = ["--archive", str(tiny.archive)]
    collection = str(write_collection(tmp_path / "collection"))
    return [
        ["doctor"],
        ["deploy", str(archive)],
        ["models"],
        ["ingest", index, source, *local],
        ["ingest", index, source, *local, "--recreate", "--index-kind", "sparse_vector"],
        ["ingest", f"{index}-cluster", source, "--model", archive.stem],
        ["search", index, "quick fox", *local],
        ["search", f"{index}-cluster", "quick fox"],
        ["verify", collection, "--index", index, *local, "--report", "proof"],
        ["undeploy", archive.stem, "--force"],
        ["delete", archive.stem, "--yes", "--force"],
    ]


def written(folder: Path) -> str:
    """All that is in the files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "\n".join(path.read_bytes().decode(errors="replace") for path in files)


def test_every_command_works_through_it_and_keeps_the_secret(
    client: OpenSearch, tiny: TinyModels, oskit: Oskit, index: str, tmp_path: Path
) -> None:
    archive = encoder_archive(tmp_path.parent / f"oskit-test-nginx-{index[-6:]}.zip", seed=41)
    basic = connect(ConnectionSettings(url="http://h", username=USER, password=PASSWORD))  # type: ignore[arg-type]
    header = basic.transport.connection_pool.connections[0].headers["authorization"].split()[1]
    secrets = [PASSWORD, quote(PASSWORD), header]
    try:
        with Watch(secrets) as watch:
            for words in commands(tiny, archive, index, tmp_path):
                for more in ({}, {"OSKIT_TRACEBACK": "1"}):
                    wrong = oskit(*words, **more, OSKIT_PASSWORD=WRONG)
                    assert wrong.returncode == 7, (words, wrong)
                    said = wrong.stdout + wrong.stderr
                    assert "refuses the user name or password" in " ".join(said.split()), (words, said)
                    assert WRONG not in said
                right = oskit(*words)
                assert right.returncode == 0, (words, right.stdout, right.stderr)
                assert not [secret for secret in secrets if secret in right.stdout + right.stderr]
        assert not watch.seen
        left = written(tmp_path)
        assert not [secret for secret in [*secrets, WRONG] if secret in left]
        assert nothing_is_left(client, open_archive(archive))
    finally:
        delete_index(client, f"{index}-cluster")


def test_ways_to_give_the_password(oskit: Oskit, nginx: Nginx, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    url = f"{nginx.urls['good']}/search"
    with Watch([PASSWORD, quote(PASSWORD)]) as watch:
        ways = [
            oskit("models", "--password-file", str(file), OSKIT_PASSWORD=None),
            oskit("models", OSKIT_PASSWORD_FILE=str(file), OSKIT_PASSWORD=None),
            oskit("models", "--password-stdin", stdin=f"{PASSWORD}\n", OSKIT_PASSWORD=None),
            oskit("models", url=url.replace("//", f"//{USER}:{quote(PASSWORD)}@"), OSKIT_USERNAME=None,
                  OSKIT_PASSWORD=None),
        ]  # fmt: skip
    assert [way.returncode for way in ways] == [0] * 4, ways
    assert not watch.seen
    typed = oskit("models", "--url", url.replace("//", f"//{USER}:{quote(PASSWORD)}@"))
    assert typed.returncode == 0
    assert "everybody on this machine can see the password" in typed.stderr
    assert quote(PASSWORD) not in typed.stderr


CONNECTION = "any command"


@pytest.mark.parametrize(
    ("server", "changes", "message"),
    [
        incidents.fault(server, changes, message, during=CONNECTION, what=what, then=then)
        for server, changes, message, what, then in [
            ("good", {"OSKIT_CA_CERTS": None}, "Give the authority with --ca-certs",
             "a certificate of an unknown authority", "nothing is sent; it names `--ca-certs`"),
            ("other-host", {}, "certificate is for another", "a certificate for another host name",
             "nothing is sent"),
            ("expired", {}, "certificate has expired", "an expired certificate", "nothing is sent"),
            ("client-certificate", {}, "Give --client-cert and --client-key",
             "the server wants a client certificate", "it names `--client-cert`"),
            ("good", {"OSKIT_PASSWORD": WRONG}, "refuses the user name or password", "a wrong password",
             "one request, never sent again"),
            ("good", {"OSKIT_USERNAME": None, "OSKIT_PASSWORD": None}, "Set --username", "no password",
             "it names the options"),
        ]
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    oskit: Oskit,
    nginx: Nginx,
    server: str,
    changes: dict[str, str | None],
    message: str,
    incident: Incident,
) -> None:
    for way in ({}, {"OSKIT_RETRY_FOR": "30"}):  # patience does not help
        incident.begins()
        answer = oskit("models", url=f"{nginx.urls[server]}/search", **changes, **way)
        incident.is_over()
        assert incident.seconds is not None
        assert answer.returncode == 7
        incident.said(answer.stderr, re.escape(message))
        assert "trying again" not in answer.stderr
        assert "Traceback" not in answer.stderr
    incident.seconds = None  # most of it is the start of Python


def test_client_certificates(oskit: Oskit, nginx: Nginx) -> None:
    url = f"{nginx.urls['client-certificate']}/search"
    mine, other = nginx.client, nginx.stranger
    good = oskit("models", "--client-cert", str(mine.certificate), "--client-key", str(mine.key), url=url)
    assert good.returncode == 0, good.stderr
    bad = oskit("models", "--client-cert", str(other.certificate), "--client-key", str(other.key), url=url)
    assert bad.returncode == 7
    assert "client certificate" in bad.stderr


def test_insecure_has_to_be_typed_and_warns(oskit: Oskit, nginx: Nginx) -> None:
    url = f"{nginx.urls['expired']}/search"
    assert oskit("models", url=url, OSKIT_INSECURE="1").returncode == 7
    typed = oskit("models", "--insecure", url=url)
    assert typed.returncode == 0
    assert "Warning: the cluster's certificate is not verified" in typed.stderr


@pytest.mark.parametrize(
    ("path", "message"),
    [
        incidents.fault(path, message, during=CONNECTION, what=what, then=then)
        for path, message, what, then in [
            ("nobody", r"not available \(502: 502 Bad Gateway\)", "nobody is behind the proxy (502)",
             "it says so; within a command it waits and tries again"),
            ("silent", r"not available \(504: 504 Gateway Time-out\)", "no answer behind the proxy (504)",
             "it says so; within a command it waits and tries again"),
        ]
    ],
)  # fmt: skip
def test_a_proxy_without_a_cluster(
    oskit: Oskit, nginx: Nginx, path: str, message: str, incident: Incident
) -> None:
    answer = oskit("models", url=f"{nginx.urls['good']}/{path}")
    assert answer.returncode == 7
    incident.said(answer.stderr, message)


@pytest.mark.incident(
    during="`ingest`",
    what="a proxy takes small requests only (413 by nginx)",
    then="requests shrink until they pass",
)
def test_a_proxy_that_takes_small_requests_only(
    client: OpenSearch, nginx: Nginx, tiny: TinyModels, index: str, incident: Incident
) -> None:
    small = connect(ConnectionSettings(url=f"{nginx.urls['good']}/small", ca_certs=str(nginx.authority)))
    report = ingest(small, index, documents(), encoder=tiny.encoder)
    assert (report.indexed, report.refused) == (40, 0)
    incident.said("")  # it is a matter of size, and nobody has to do anything
    incident.documents([doc.id for doc in documents()], [hit["_id"] for hit in indexed(client, index)])


@pytest.mark.incident(
    during="`deploy`, the upload",
    what="a proxy takes small requests only (413 by nginx)",
    then="it ends, names the setting and takes back what it made",
)
def test_an_upload_through_a_proxy_that_takes_small_requests_only(
    client: OpenSearch, nginx: Nginx, tmp_path: Path, incident: Incident
) -> None:
    archive = open_archive(encoder_archive(tmp_path / "oskit-test-small.zip", seed=42))
    small = connect(ConnectionSettings(url=f"{nginx.urls['good']}/small", ca_certs=str(nginx.authority)))
    with pytest.raises(ClusterError) as told:
        deploy_archive(small, archive)
    incident.said(told.value, r"chunk 1 of 1.*too large.*client_max_body_size")
    assert nothing_is_left(client, archive)
    incident.orphans([])
