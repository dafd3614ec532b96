"""Archives that are damaged or made to harm: refused before anything of them is sent or executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import incidents
import pytest
from archives import encoder_archive, write_manifest
from faulty_proxy import FaultyProxy
from incidents import Incident

from oskit.cli.main import main

pytestmark = pytest.mark.integration

REGIONS = 32
"""Places of an archive that are damaged in turn: headers, compressed data, directory."""

EXECUTED = "executed"


class _Harm:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self._path), "w")


def damaged_bytes(path: Path) -> list[Path]:
    """An archive for each region with a byte changed, and one for each that it is cut off in."""
    whole = encoder_archive(path).read_bytes()
    made = []
    for number in range(REGIONS):
        place = number * len(whole) // REGIONS
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        for kind, content in (("flipped", bytes(flipped)), ("cut", whole[:place])):
            made.append(path.with_name(f"{kind}-{number}.zip"))
            made[-1].write_bytes(content)
    return made


def tampered_manifest(path: Path) -> list[Path]:
    """What stands beside the archive speaks of another one."""
    encoder_archive(path)
    write_manifest(path, sha256="0" * 64)
    return [path]


def bomb(path: Path) -> list[Path]:
    """A few kilobytes that would become many megabytes."""
    return [_with_entry(path, ZipInfo("zeros"), bytes(64 << 20))]


def climbing(path: Path) -> list[Path]:
    """An entry that wants to lie outside of the folder that the archive is unpacked into."""
    return [_with_entry(path, ZipInfo(f"../{EXECUTED}"), b"x")]


def link(path: Path) -> list[Path]:
    """An entry that is a symbolic link."""
    entry = ZipInfo("vocab.txt")
    entry.external_attr = 0o120777 << 16
    return [_with_entry(path, entry, b"/etc/passwd")]


def program(path: Path) -> list[Path]:
    """An entry that DJL would load as code."""
    return [_with_entry(path, ZipInfo("libharm.so"), b"\x7fELF\x02\x01")]


def pickled(path: Path) -> list[Path]:
    """A pickle in the place of a TorchScript model."""
    harm = pickle.dumps(_Harm(path.with_name(EXECUTED)))
    with ZipFile(encoder_archive(path)) as archive:
        tokenizer = archive.read("tokenizer.json")
    with ZipFile(path, "w") as archive:
        archive.writestr("model.pt", harm)
        archive.writestr("tokenizer.json", tokenizer)
    return [path]


def _with_entry(path: Path, entry: ZipInfo, content: bytes) -> Path:
    encoder_archive(path)
    entry.compress_type = ZIP_DEFLATED
    with ZipFile(path, "a") as archive:
        archive.writestr(entry, content)
    return path


@pytest.mark.parametrize(
    "make",
    [
        incidents.fault(
            make, during="`deploy`, before the upload", what=what, then="nothing is executed or sent"
        )
        for make, what in (
            (damaged_bytes, "a byte of the archive is changed, or its end is missing, in each region"),
            (tampered_manifest, "the manifest speaks of another archive"),
            (bomb, "the archive is a zip bomb"),
            (climbing, "a path in the archive climbs out of its folder"),
            (link, "the archive holds a symbolic link"),
            (program, "the archive holds a native library"),
            (pickled, "the archive holds a pickle in the place of the model"),
        )
    ],
)
def test_a_damaged_archive_is_refused(
    cluster_url: str,
    tmp_path: Path,
    make: Callable[[Path], list[Path]],
    incident: Incident,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with FaultyProxy(cluster_url) as proxy:
        for path in make(tmp_path / "inside" / "encoder.zip"):
            assert main(["deploy", str(path), "--url", proxy.url, "--json"]) != 0, path.name
            out, err = capsys.readouterr()
            assert path.name in err
            assert len(err.splitlines()) == 1, err
            assert not out
        sent = [line for line in proxy.requests if not line.startswith("GET")]
    incident.orphans(sent)
    assert not list(tmp_path.rglob(EXECUTED))
