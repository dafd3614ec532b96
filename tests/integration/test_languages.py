"""A script that the encoder's vocabulary hardly knows is told by a load and by a search, once each."""

from __future__ import annotations

import uuid

import pytest
from opensearchpy import OpenSearch

from oskit.cluster.index.mapping import delete_index
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search.search import Searcher
from oskit.data.documents import Document
from oskit.demo.data import demo_encoder
from oskit.encoder.model import NeuralSparseEncoder

pytestmark = pytest.mark.integration

RUSSIAN = "Разрешение на строительство нужно, когда владелец хочет изменить использование здания."
ENGLISH = "A building permit is needed when the owner wants to change the use of the building."


def test_a_load_and_a_search_say_so(client: OpenSearch) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(demo_encoder(), device="cpu")
    name = f"ingtest-languages-{uuid.uuid4().hex[:8]}"
    try:
        first = ingest(client, name, [Document("en", ENGLISH)], encoder=encoder)
        assert first.language_warning is None
        second = ingest(client, name, [Document("en", ENGLISH), Document("ru", RUSSIAN)], encoder=encoder)
        assert "documents (1 of 2), such as 'Разрешение на" in str(second.language_warning)
        searcher = Searcher(client, name, encoder=encoder)
        assert searcher.search("building permit").warning is None
        unknown = searcher.search("нужно ли разрешение на строительство")
        assert "hardly knows the query's script" in str(unknown.warning)
        by_words = Searcher(client, name, by="bm25", encoder=encoder).search("нужно ли разрешение")
        assert by_words.warning is None, "BM25 reads no vocabulary"
    finally:
        delete_index(client, name)
