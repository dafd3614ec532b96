from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import archives
import pytest
from in_process import GatedEncoder

from oskit.archive.encoder import ArchiveEncoder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.encoder_archive(tmp_path_factory.mktemp("encoder") / "tiny.zip", 300)


@pytest.fixture(scope="module")
def query_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archives.tokenizer_archive(tmp_path_factory.mktemp("tokenizer") / "tiny.zip", 300)


@pytest.fixture(scope="module")
def encoder(archive: Path) -> ArchiveEncoder:
    return ArchiveEncoder.open(archive)


@pytest.fixture
def gated(archive: Path) -> Iterator[GatedEncoder]:
    encoder = GatedEncoder.at(archive)
    yield encoder
    encoder.gate.set()
