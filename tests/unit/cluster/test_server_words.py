"""What the server's words mean: each as OpenSearch 3.6.0, a proxy or AWS said it, provoked on purpose."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from oskit.cluster.client.server_words import TABLE, Meaning, Scope, meaning

DOCS = Path(__file__).parents[3] / "docs"

# asked about, status, words: reach, passes, fault, part of what it means
SEEN: list[tuple[Scope, int | None, str, str, str, str, str]] = [
    ("deployment", None, "Invalid input tensor name: input1.input_ids",
     "deployment", "never", "model", "inputs are not named"),
    ("deployment", None, "ORT_FAIL - Unsupported model IR version: 11, max supported IR version: 9",
     "deployment", "never", "model", "newer"),
    ("deployment", None, "Error code - ORT_INVALID_PROTOBUF - message: Protobuf parsing failed.",
     "deployment", "never", "model", "damaged"),
    ("deployment", None, "PytorchStreamReader failed reading zip archive: failed finding central directory",
     "deployment", "never", "model", "damaged"),
    ("deployment", None, "forward() Expected a value of type Tensor for argument a",
     "deployment", "never", "model", "one dictionary"),
    ("deployment", None, "Tokenizer file not exits: /x/tokenizer.json",
     "deployment", "never", "model", "tokenizer.json"),
    ("deployment", None, "data did not match any variant of untagged enum ModelUntagged",
     "deployment", "never", "model", "tokenizer.json"),
    ("deployment", None, "found multiple models", "deployment", "never", "model", "exactly one model file"),
    ("deployment", None, "e.pt file not found in: /x",
     "deployment", "never", "model", "exactly one model file"),
    ("deployment", None, "model content changed", "deployment", "never", "model", "not what was announced"),
    ("deployment", None, "Archive is not a ZIP archive", "deployment", "never", "model", "not a zip file"),
    ("deployment", None, "class o.BaseModelConfig cannot be cast to class o.TextEmbeddingModelConfig",
     "deployment", "never", "model", "model_config"),
    ("deployment", None, "Exceed max local model per node limit",
     "deployment", "never", "configuration", "as many models as it may"),
    ("deployment", None, "exceed max running task limit",
     "deployment", "soon", "configuration", "busy deploying"),
    ("deployment", 400, "no eligible node found", "deployment", "never", "configuration", "no node may run"),
    ("deployment", None, "Duplicate deploy model task", "deployment", "soon", "cluster", "already deploying"),
    ("deployment", None, "https://publish.djl.ai/pytorch/2.5.1/files.txt: Read timed out",
     "deployment", "never", "cluster", "PyTorch libraries"),
    ("deployment", None, "Unknown builtin op: aten::scaled_dot_product_attention.",
     "deployment", "never", "model", "operator"),
    ("deployment", None, "Memory Circuit Breaker is open, please check your resources!",
     "cluster", "soon", "configuration", "heap is too full"),
    ("item", 429, "circuit_breaking_exception: Memory Circuit Breaker is open, please check your resources!",
     "cluster", "soon", "configuration", "heap is too full"),
    ("deployment", None, "Disk Circuit Breaker is open, please check your resources!",
     "cluster", "soon", "configuration", "too little free disk"),
    ("request", 429, "circuit_breaking_exception: [parent] Data too large, data for [<http_request>]",
     "cluster", "soon", "configuration", "short of memory"),
    ("request", 400, "Reached end of search result, increase pagination_depth value to see more results",
     "request", "never", "request", "behind the last hit"),
    ("request", 500, "status_exception: Failed to Validate Access",
     "cluster", "soon", "configuration", "hides"),
    ("item", 400, "illegal_argument_exception: Model not ready yet. Please deploy the model first.",
     "cluster", "model", "model", "not in memory"),
    ("item", 500, "illegal_state_exception: NDManager has been closed already.",
     "cluster", "model", "model", "while it encoded"),
    ("item", 400, "Local Model is currently disabled. To enable it, update the setting",
     "cluster", "model", "configuration", "no models of its own"),
    ("request", 404, "status_exception: Failed to find model with the provided model id: x",
     "cluster", "never", "model", "not there"),
    ("deployment", 500, "status_exception: Fail to find model group", "request", "never", "request", "group"),
    ("request", 500, "No shard available for [get [.plugins-ml-task]]",
     "cluster", "soon", "cluster", "recovered"),
    ("request", 500, "status_exception: Fail to search model version",
     "request", "soon", "cluster", "cannot search"),
    ("request", 503, "cluster_block_exception: blocked by: [SERVICE_UNAVAILABLE/1/state not recovered];",
     "cluster", "soon", "cluster", "no manager"),
    ("item", 429, "cluster_block_exception: index [a] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded "
     "flood-stage watermark, index has read-only-allow-delete block];",
     "cluster", "soon", "configuration", "disk"),
    ("request", 403, "cluster_block_exception: blocked by: [FORBIDDEN/10/cluster create-index blocked];",
     "cluster", "never", "configuration", "no index can be made"),
    ("item", 403, "cluster_block_exception: index [a] blocked by: [FORBIDDEN/8/index write (api)];",
     "cluster", "never", "configuration", "block"),
    ("item", 400, "index_closed_exception: closed", "cluster", "never", "configuration", "closed"),
    ("item", 403, "cluster_block_exception: index [a] blocked by: [FORBIDDEN/4/index preparing to close. "
     "Reopen the index to allow writes again or retry closing the index to fully close the index.];",
     "cluster", "never", "configuration", "closed"),
    ("item", 400, "illegal_argument_exception: pipeline with id [a-sparse-encoding] does not exist",
     "cluster", "never", "configuration", "pipeline"),
    ("item", 400, "illegal_argument_exception: Limit of total fields [1000] has been exceeded",
     "item", "never", "document", "no room"),
    ("item", 400, "illegal_argument_exception: Field name '.' contains invalid dot usage",
     "item", "never", "document", "dot"),
    ("item", 400, "Inconsistency of field data structures across documents for field [emb] of doc [1]. "
     "index options: expected 'NONE', but it has 'DOCS_AND_FREQS'.",
     "cluster", "never", "configuration", "an empty vector was the first"),
    ("item", 400, 'cannot change field "emb" from index options=NONE to inconsistent index '
     "options=DOCS_AND_FREQS", "cluster", "never", "configuration", "an empty vector was the first"),
    ("item", 400, "Inconsistency of field data structures across documents for field [emb] of doc [1]. "
     "index options: expected 'DOCS_AND_FREQS', but it has 'NONE'.", "item", "never", "document", "empty"),
    ("item", 400, "illegal_argument_exception: [sparse_vector] fields should be valid integer",
     "cluster", "never", "request", "alias"),
    ("request", 400, "Query tokens should be valid integer", "request", "never", "request", "alias"),
    ("request", 400, "failed to create query: weight must be in (0, 64.0], got: 65.0",
     "request", "never", "request", "weighs too much"),
    ("request", 400, "failed to create query: maxClauseCount is set to 1024",
     "request", "never", "request", "more tokens than a query may have"),
    ("request", 400, "The two-phase window size of … should be [0,10000], but get the value of 12500",
     "request", "never", "request", "second phase"),
    ("request", 400, "illegal_argument_exception: failed to find global analyzer [nonsense]",
     "request", "never", "request", "no such analyzer"),
    ("request", 500, "Connection refused: /127.0.0.1:8878", "cluster", "soon", "model", "does not answer"),
    ("item", 500, "Acquire operation took longer than the configured maximum time",
     "cluster", "soon", "model", "in use"),
    ("item", 500, "array_index_out_of_bounds_exception: Index 15 out of bounds for length 15",
     "cluster", "never", "model", "one for each text"),
    ("request", 400, "Remote inference host name has private ip address: 127.0.0.1",
     "cluster", "never", "configuration", "private"),
    ("request", 401, "status_exception: Error from remote service: who are you?",
     "cluster", "never", "model", "remote model's server refuses"),
    ("item", 429, "status_exception: Error from remote service: busy", "cluster", "soon", "model", "is busy"),
    ("request", 401, "Unauthorized", "cluster", "never", "credentials", "password"),
    ("item", 403, "security_exception: no permissions for [indices:data/write]",
     "cluster", "never", "credentials", "lacks a permission"),
    ("item", 404, "index_not_found_exception: no such index [a]", "cluster", "never", "cluster", "gone"),
    ("request", 404, "index_not_found_exception: no such index [a]",
     "request", "never", "request", "no such index"),
    ("item", 413, "413 Request Entity Too Large", "item", "never", "document", "too large"),
    ("request", 413, "413 Request Entity Too Large", "request", "never", "request", "too large"),
    ("item", 429, "rejected_execution_exception: queue", "cluster", "soon", "cluster", "busy"),
    ("request", 502, "502 Bad Gateway", "cluster", "soon", "cluster", "not available"),
    ("request", 302, "302 Found", "cluster", "never", "gateway", "another address"),
    ("node", None, "java.net.BindException: Address already in use",
     "node", "never", "configuration", "port"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "status", "words", "reach", "passes", "fault", "means"), SEEN)
def test_known_words(
    asked: Scope, status: int | None, words: str, reach: str, passes: str, fault: str, means: str
) -> None:
    known = meaning(words, status, asked)
    assert known is not None
    assert (known.scope, known.passes, known.fault) == (reach, passes, fault)
    assert means in known.means


@pytest.mark.parametrize("quoted", ["Memory Circuit Breaker", "field [c] has null, cannot process it"])
def test_what_a_remote_server_quotes_decides_nothing(quoted: str) -> None:
    words = f'status_exception: Error from remote service: {{"error":"no such text: {quoted}"}}'
    known = meaning(words, 400, "item")
    assert known is not None and (known.scope, known.passes, known.fault) == ("cluster", "never", "model")


def test_no_words_are_no_meaning() -> None:
    assert meaning("item_exception: because", 500, "item") is None
    assert meaning("", None, "deployment") is None
    assert meaning("model not ready", None, "node") is None, "another speaker"


def alternatives() -> list[tuple[str, Meaning]]:
    return [(words, row) for row in TABLE for words in row.words.split(" | ")]


@pytest.mark.parametrize(("words", "row"), alternatives())
def test_no_row_hides_another(words: str, row: Meaning) -> None:
    asked: Scope = "request" if row.scope == "cluster" else row.scope
    assert meaning(words.replace("…", " [x] "), (row.statuses or (None,))[0], asked) is row


@pytest.mark.parametrize("quoted", ["index closed", "Model not ready", "Circuit Breaker is open"])
def test_a_document_may_hold_any_words(quoted: str) -> None:
    """Refusals by the mapping quote it."""
    known = meaning(f"mapper_parsing_exception: failed to parse field [year]: '{quoted}'", 400, "item")
    assert known is not None and known.fault == "document"


def test_only_what_is_about_one_document_is_a_documents_fault() -> None:
    assert all((row.scope == "item") == (row.fault == "document") for row in TABLE)
    assert all(row.passes == "never" for row in TABLE if row.scope == "item")


def test_the_documentation_holds_the_table() -> None:
    spec = importlib.util.spec_from_file_location("write_server_words", DOCS / "write_server_words.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.PAGES:
        page = (DOCS / name).read_text(encoding="utf-8")
        assert module.with_tables(page) == page, f"docs/{name} is out of date: make docs"
        assert module.MARK.search(page), name
