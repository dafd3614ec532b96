"""Files of queries and requests for others: what `oskit search` writes is what the index really answers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, documents, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings, delete_index
from oskit.cluster.ingest.load import ingest

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
ROUNDING = 2**-8


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[str, str]]:
    names = {kind: f"ingtest-files-{uuid.uuid4().hex[:8]}" for kind in KINDS}
    for kind, name in names.items():
        ingest(
            client,
            name,
            documents(),
            encoder=tiny.encoder,
            settings=IndexSettings(kind),
            model_id=tiny.encoder_id,
        )
    yield names
    for name in names.values():
        delete_index(client, name)


def exact(tiny: TinyModels, query: str) -> dict[str, float]:
    docs = documents()
    matrix = tiny.encoder.document_matrix([doc.passage for doc in docs])
    scores = np.asarray((matrix @ tiny.encoder.query_matrix([query]).T).todense()).ravel()
    return {doc.id: float(score) for doc, score in zip(docs, scores, strict=True) if score > 0}


def run_of(path: Path) -> dict[str, dict[str, float]]:
    """A run as a reader of TREC's format sees it; ranks count from 1 and scores do not rise."""
    run: dict[str, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, q0, doc, rank, score, _tag = line.split()
        found = run.setdefault(query, {})
        assert q0 == "Q0" and int(rank) == len(found) + 1
        assert float(score) <= min(found.values(), default=float("inf"))
        found[doc] = float(score)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_holds_the_exact_scores(client, tiny, indexes, cluster_url, tmp_path, capsys, kind):
    beir = tmp_path / "beir"
    beir.mkdir()
    ids = [f"q{number}" for number in range(len(QUERIES))]
    lines = [{"_id": key, "text": text} for key, text in zip([*ids, "none"], [*QUERIES, " "], strict=True)]
    (beir / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = "".join(f"{key}\t{text}\n" for key, text in zip(ids, QUERIES, strict=True))
    (tmp_path / "queries.tsv").write_text(f"qid\ttext\n{table}")
    (tmp_path / "queries.txt").write_text("".join(f"{query}\n" for query in QUERIES))
    (weights,) = tiny.encoder.query_weights([QUERIES[0]], key="id" if kind == "sparse_vector" else "token")
    (tmp_path / "weights.jsonl").write_text(json.dumps({"id": "q0", "embedding": weights}))
    expected = [exact(tiny, query) for query in QUERIES]
    for source, options, name in [
        (beir, [], "q{}"),
        (tmp_path / "queries.tsv", ["--archive", str(tiny.archive)], "q{}"),
        (tmp_path / "queries.txt", [], "{}"),
        (tmp_path / "weights.jsonl", ["--by", "tokens"], "q{}"),
    ]:
        output = tmp_path / "run.trec"
        arguments = ["search", indexes[kind], "--queries", str(source), "-o", str(output), "-n", "40"]
        assert main([*arguments, *options, "--json", "--url", cluster_url]) == 0
        found, told = run_of(output), capsys.readouterr()
        shift = 1 if name == "{}" else 0
        for number, scores in enumerate(expected[: len(found)]):
            assert found[name.format(number + shift)] == pytest.approx(scores, rel=ROUNDING)
        report = json.loads(told.out)
        assert report["hits"] == sum(map(len, found.values()))
        assert report["empty"] == (["none"] if source == beir else [])
        assert ("empty, and not in the run: none" in told.err) == (source == beir)


def test_a_query_that_fails_ends_with_its_line_and_leaves_the_last_run_alone(
    client, indexes, cluster_url, tmp_path, capsys
):
    output, source = tmp_path / "run.trec", tmp_path / "queries.jsonl"
    output.write_text("the last run\n")
    lines = [{"id": f"q{n}", "embedding": {"fox": 65.0 if n == 60 else 1.0}} for n in range(80)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = indexes["rank_features"]
    arguments = ["search", name, "--queries", str(source), "--by", "tokens", "--url", cluster_url]
    assert main([*arguments, "-o", str(output)]) == 7
    assert f"{source}:61: the query 'q60'" in capsys.readouterr().err
    assert output.read_text() == "the last run\n"
    assert sorted(tmp_path.iterdir()) == [source, output]
    useless = (["--sort", "n"], ["--explain"], ["--fields", "n"], ["--from", "3"])
    for wrong in (*useless, ["-o", str(source)], ["--json"], ["--json", "-o", "-"]):
        assert main([*arguments, *wrong]) == 2
    assert main(["search", name, "--url", cluster_url]) == 2
    assert main([*arguments, "fox"]) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["text", "weights"])
def test_a_printed_request_finds_the_same(client, tiny, indexes, cluster_url, capsys, kind, way):
    alias = f"{indexes[kind]}-{way}"
    client.indices.put_alias(index=indexes[kind], name=alias, body={"filter": {"range": {"n": {"lt": 30}}}})
    secret = "p4ssw0rd"
    url = cluster_url.replace("//", f"//me:{secret}@")
    options = ["--filter", "n>=10", "-n", "5", "--from", "1", "--url", url]
    options += ["--archive", str(tiny.archive)] if way == "weights" else []
    assert main(["search", alias, QUERIES[1], "--print-request", *options]) == 0
    printed, told = capsys.readouterr()
    assert "Changed in the cluster" not in told
    assert secret not in printed and ("query_tokens" in printed) == (way == "weights")
    request = json.loads(printed)
    answer: Any = client.transport.perform_request(request["method"], request["path"], body=request["body"])
    assert main(["search", alias, QUERIES[1], "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)["hits"]
    hits = answer["hits"]["hits"]
    assert [(hit["_id"], hit["_score"]) for hit in hits] == [(hit["id"], hit["score"]) for hit in found]
    assert found and all(10 <= hit["_source"]["n"] < 30 for hit in hits)


def test_a_printed_request_warns_as_its_search_does(client, indexes, cluster_url, capsys):
    arguments = ["search", indexes["rank_features"], "fox", "--by", "bm25", "--url", cluster_url]
    arguments += ["--filter", f"text={'fox ' * 80}", "--print-request"]
    assert main(arguments) == 0
    printed, told = capsys.readouterr()
    assert set(json.loads(printed)) == {"method", "path", "body"}
    assert "'text.keyword' may not hold values as long as that of the filter" in told


@pytest.mark.parametrize("way", ["archive", "model"])
def test_explained_ids_are_called_by_their_tokens(client, tiny, indexes, cluster_url, capsys, way):
    options = ["--archive", str(tiny.archive)] if way == "archive" else []
    options += ["--explain", "--url", cluster_url]
    arguments = ["search", indexes["sparse_vector"], "quick brown fox", *options]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    vocabulary = tiny.encoder.vocabulary
    assert len(found["tokens"]) > 2
    assert found["tokens"] == {key: vocabulary.key_of(int(key)) for key in found["tokens"]}
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert " fox " in told.out
    assert ("shown by their ids" in told.err) == any(
        key not in found["tokens"] for hit in found["hits"] for key in hit["matched"]
    )


def test_token_weights_of_a_command_line_are_a_query(client, tiny, indexes, cluster_url, capsys):
    arguments = ["search", indexes["rank_features"], "--by", "tokens", "--json", "--url", cluster_url]
    assert main([*arguments, '{"fox": 2}']) == 0
    twice = json.loads(capsys.readouterr().out)["hits"]
    assert main([*arguments, '{"fox": 1, "nothing": 0}']) == 0
    once = json.loads(capsys.readouterr().out)["hits"]
    assert once and [hit["score"] for hit in twice] == pytest.approx([2 * hit["score"] for hit in once])
    here = [*arguments, "--archive", str(tiny.archive)]
    assert main([*here, '{"fox": 2}']) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == twice
    for text in ('{"fox": "brown"}', '{"fox": ', "{fox}", "{}"):
        assert main([*here, text]) == 0
        assert set(json.loads(capsys.readouterr().out)["query_weights"]) >= (
            {"fox"} if "fox" in text else set()
        )
    assert main([*arguments, '{"fox": ']) == 2
    assert "no JSON" in capsys.readouterr().err
