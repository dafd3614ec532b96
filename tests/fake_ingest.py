"""Just enough of a cluster for a load: an index comes into being and takes every document; and an encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from tokenizers.models import BPE

from oskit.archive.vocabulary import Vocabulary
from tests.http_server import HttpServer, Reply, Request


class FakeIngest(HttpServer):
    """Use as a context manager.

    Args:
        limit: Bytes of a request, beyond which it is refused as nginx does (``client_max_body_size``).
        words: The answer to such a request instead; its status is in it.

    Attributes:
        sizes: Bytes of each bulk request so far.
        documents: Of all of them.
    """

    def __init__(self, limit: int = 1 << 40, words: Mapping[str, Any] | None = None) -> None:
        super().__init__(self._answer)
        self.sizes: list[int] = []
        self.documents = 0
        self._limit, self._words = limit, words

    def _answer(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        name = path.split("/")[1]
        if path.endswith("/_bulk"):
            count = len(re.findall(rb'^\{"index"', request.body, re.MULTILINE))
            self.sizes.append(len(request.body))
            if len(request.body) > self._limit:
                if self._words is not None:
                    return Reply(int(self._words["status"]), self._words)
                return Reply(
                    413, b"<title>413 Request Entity Too Large</title>", {"Content-Type": "text/html"}
                )
            self.documents += count
            return Reply(body={"items": [{"index": {"status": 201}}] * count})
        if path == "/":
            version = {"distribution": "opensearch", "number": "3.6.0"}
            return Reply(body={"cluster_name": "fake", "version": version})
        if "_alias" in path:
            return Reply(404, {"error": {"type": "aliases_not_found_exception"}, "status": 404})
        if path.endswith("/_mapping"):
            return Reply(body={})
        if "_settings" in path:
            return Reply(body={name: {"settings": {"index.uuid": "u"}}})
        return Reply(body={"acknowledged": True, "_shards": {}})


class FixedEncoder:
    """Gives every text the same weights."""

    architecture = "symmetric"

    def __init__(self, weights: Mapping[str, float]) -> None:
        words = {word: number for number, word in enumerate(weights)}
        self.vocabulary = Vocabulary(Tokenizer(BPE(words, [])))
        self._row = np.array([list(weights.values())], dtype=np.float32)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        matrix = csr_matrix(np.ones_like(self._row))
        matrix.data = self._row[0]
        return matrix[np.zeros(len(texts), dtype=int)]
