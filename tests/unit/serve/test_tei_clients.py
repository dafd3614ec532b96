"""Clients of text-embeddings-inference that others wrote, unchanged, with ``oskit serve``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from in_process import POISON, GatedEncoder, close, serving

from oskit.archive.encoder import ArchiveEncoder
from oskit.serve.app import Limits
from oskit.serve.server import Address

TEXTS = ["get a building permit", "", "the quick fox " * 200]


def weights(embedding: Any) -> dict[str, float]:
    assert embedding.indices == sorted(embedding.indices)
    return {str(index): value for index, value in zip(embedding.indices, embedding.values, strict=True)}


def test_haystack_s_sparse_embedders(gated: GatedEncoder, archive: Path) -> None:
    embedders = pytest.importorskip("haystack_integrations.components.embedders.huggingface_api")
    from haystack import Document
    from haystack.utils import Secret
    from httpx import HTTPStatusError

    wanted = ArchiveEncoder.open(archive).document_weights(TEXTS, key="id")
    address, limits = Address(tokens=("secret",)), Limits(texts=4, queue=4, body=10_000)
    with serving({"tiny": gated}, limits, address) as client:
        given = {"api_base_url": client.url, "token": Secret.from_token("secret")}
        embedder = embedders.HuggingFaceTEISparseDocumentEmbedder(**given, progress_bar=False)
        documents = [Document(content=text) for text in TEXTS]
        found = embedder.run(documents)["documents"]
        assert close([weights(document.sparse_embedding) for document in found], wanted)
        found = asyncio.run(embedder.run_async(documents))["documents"]
        assert close([weights(document.sparse_embedding) for document in found], wanted)
        one = embedders.HuggingFaceTEISparseTextEmbedder(**given)
        assert close([weights(one.run(TEXTS[0])["sparse_embedding"])], wanted[:1])

        def status(texts: list[str], **other: Any) -> int:
            asking = embedders.HuggingFaceTEISparseDocumentEmbedder(**{**given, **other}, progress_bar=False)
            with pytest.raises(HTTPStatusError) as caught:
                asking.run([Document(content=text) for text in texts])
            assert set(caught.value.response.json()) == {"error", "error_type"}
            return caught.value.response.status_code

        assert status(["fox"] * 5) == 422
        assert status(["x" * 20_000]) == 413
        assert status([POISON, POISON]) == 424
        assert status(["fox"], token=Secret.from_token("other")) == 401
        gated.gate.clear()
        connection = client.connection()
        connection.request(
            "POST", "/v1/sparse", b'{"texts": ["fox", "a", "b", "c"]}', {"authorization": "Bearer secret"}
        )
        assert gated.entered.acquire(timeout=20)
        assert status(["fox", "fox"]) == 429
        gated.gate.set()
        assert connection.getresponse().status == 200


def test_tei_client(encoder: ArchiveEncoder) -> None:
    tei_client = pytest.importorskip("tei_client")
    with serving({"tiny": encoder}) as client:
        tei = tei_client.HttpClient(client.url)
        info = tei.info()
        assert tei.health() and asyncio.run(tei.async_health())
        assert (info.max_client_batch_size, info.max_input_length) == (1024, encoder.max_length)
        assert (info.server_model_type.value, info.server_model_metadata.pooling) == ("embedding", "splade")
        assert tei.prompt_names() == []
