"""Archives that are damaged or made to harm: refused before anything of them is sent or executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipInfo

import incidents
import pytest
from archives import add_entry, encoder_archive, tokenizer, write_manifest, write_zip
from bomb import Bomb
from faulty_proxy import FaultyProxy
from incidents import Incident

from oskit.cli.main import main

pytestmark = pytest.mark.integration

REGIONS = 32
"""Places of an archive that are damaged in turn: headers, compressed data, directory."""

EXECUTED = "executed"


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
    entry = ZipInfo("zeros")
    entry.compress_type = ZIP_DEFLATED
    return [add_entry(encoder_archive(path), entry, bytes(64 << 20))]


def climbing(path: Path) -> list[Path]:
    """An entry that wants to lie outside of the folder that the archive is unpacked into."""
    return [add_entry(encoder_archive(path), ZipInfo(f"../{EXECUTED}"))]


def link(path: Path) -> list[Path]:
    """An entry that is a symbolic link."""
    entry = ZipInfo("vocab.txt")
    entry.external_attr = 0o120777 << 16
    return [add_entry(encoder_archive(path), entry, b"/etc/passwd")]


def program(path: Path) -> list[Path]:
    """An entry that DJL would load as code."""
    return [add_entry(encoder_archive(path), ZipInfo("libharm.so"), b"\x7fELF\x02\x01")]


def pickled(path: Path) -> list[Path]:
    """A pickle in the place of a TorchScript model."""
    harm = pickle.dumps(Bomb(path.with_name(EXECUTED)))
    return [write_zip(path, {"model.pt": harm, "tokenizer.json": tokenizer().to_str()})]


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
            incident.said(err, re.escape(path.name))
            assert len(err.splitlines()) == 1, err
            assert not out
        sent = [line for line in proxy.requests if not line.startswith("GET")]
    incident.orphans(sent)
    assert not list(tmp_path.rglob(EXECUTED))
