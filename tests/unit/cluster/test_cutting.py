"""Cutting documents within a load, without a cluster."""

import pytest
from archives import encoder_archive

from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.index.mapping import IndexSettings
from oskit.cluster.ingest import cutting
from oskit.cluster.ingest.load import dry_run
from oskit.data.chunks import Chunking
from oskit.data.documents import Document
from oskit.errors import UsageError

SETTINGS = IndexSettings(chunking=Chunking(16))


def test_more_chunks_than_an_index_takes_are_refused_and_the_other_documents_are_not(tmp_path, monkeypatch):
    assert cutting.MAX_CHUNKS == 10_000  # by default, in OpenSearch 3.6
    monkeypatch.setattr(cutting, "MAX_CHUNKS", 40)
    encoder = ArchiveEncoder.open(encoder_archive(tmp_path / "encoder.zip"))
    fits = Document("fits", "fox " * 14 * 40)
    docs = [Document("a", "quick fox"), Document("long", fits.text + "jumps"), fits, Document("b", "")]
    report = dry_run("i", docs, SETTINGS, encoder=encoder)
    assert (report.indexed, report.refused, report.chunks) == (3, 1, 41)
    assert list(report.reasons) == ["it has 41 chunks, and an index takes 40 of a document"]


def test_a_field_of_its_own_where_the_chunks_go_is_refused(tmp_path):
    encoder = ArchiveEncoder.open(encoder_archive(tmp_path / "encoder.zip"))
    docs = [Document("a", "fox", "", {"passages": 1}), Document("b", "fox", "", {"embedding": 1})]
    report = dry_run("i", docs, SETTINGS, encoder=encoder)
    assert (report.indexed, report.refused) == (1, 1)
    assert "'passages' has the name of one of the index; rename it" in next(iter(report.reasons))


@pytest.mark.parametrize(
    "source",
    [{"excludes": ["passages"]}, {"excludes": "pass*"}, {"excludes": ["passages.*"]}, {"includes": ["t*"]}],
)
def test_a_source_without_the_chunks_texts_is_refused(source):
    """A search that asks for the best one would fail (3.6)."""
    with pytest.raises(UsageError, match="out of _source") as refused:
        IndexSettings(mapping={"_source": source}, chunking=Chunking(16))
    assert refused.value.hint == "Exclude passages.embedding alone"
    IndexSettings(mapping={"_source": {"excludes": ["passages.embedding"]}}, chunking=Chunking(16))


@pytest.mark.parametrize("field", ["text", "start", "a.b"])
def test_the_vector_has_a_name_of_its_own_in_a_chunk(field):
    with pytest.raises(UsageError, match="vectors of chunks cannot be in"):
        IndexSettings(embedding_field=field, chunking=Chunking(16))
    with pytest.raises(UsageError, match="holds the chunks"):
        IndexSettings(passage_field="passages", chunking=Chunking(16))
