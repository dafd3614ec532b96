"""Tuning on a real index: a fusion that helps is found and stored, one that does not is not."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archives import WORDS
from opensearchpy import OpenSearch
from tiny_models import TinyModels, documents, index, tiny, write_documents

from oskit.cli.main import main
from oskit.cluster.ingest.load import ingest
from oskit.cluster.search.hybrid import Hybrid
from oskit.cluster.search.search import Searcher
from oskit.cluster.search.stored_fusion import put_fusion, stored
from oskit.errors import SearchError

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

QUERIES = {
    f"q{n}": f"{WORDS[n % len(WORDS)]} {WORDS[(5 * n + 3) % len(WORDS)]} {WORDS[(7 * n) % len(WORDS)]}"
    for n in range(30)
}
TRUTH = Hybrid.parse("bm25=0.45,sparse=0.55", depth=30)


def judge(folder: Path, relevant: dict[str, list[str]]) -> Path:
    """A collection in which these documents are relevant."""
    (folder / "qrels").mkdir(parents=True)
    write_documents(folder / "corpus.jsonl", documents(80))
    lines = [json.dumps({"_id": query, "text": text}) + "\n" for query, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(lines))
    judged = [f"{query}\t{document}\t1\n" for query, found in relevant.items() for document in found]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


def test_a_fusion_that_helps_is_stored_and_one_that_does_not_is_not(
    client: OpenSearch, tiny: TinyModels, index: str, tmp_path: Path, cluster_url: str, capsys
):
    def run(*arguments: str) -> tuple[int, dict, str]:
        code = main([
            "tune", *arguments, "--index", index, "--url", cluster_url, "--archive", str(tiny.archive),
            "--json", "--pagination-depth", "30", "--fusion", "min_max,rrf:60", "--folds", "3",
        ])  # fmt: skip
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    ingest(client, index, documents(80), encoder=tiny.encoder)
    lists = Searcher(client, index, encoder=tiny.encoder).candidates(list(QUERIES.values()), TRUTH)
    fused, between, sparse = {}, {}, {}
    for query, found in zip(QUERIES, lists, strict=True):
        fused[query] = list(found.fuse(TRUTH.fusion, TRUTH.weights, 4))
        bm25, sparse[query] = ([found.ids[place] for place in side[:3]] for side in found.lists)
        between[query] = [one for one in fused[query] if one not in (*bm25, *sparse[query])]
    helps, does_not = judge(tmp_path / "helps", between), judge(tmp_path / "not", sparse)
    name = f"ingtest-fusion-{uuid.uuid4().hex[:8]}"
    pipeline = f"/_search/pipeline/{name}"
    try:
        code, found, _ = run(str(helps), "--put-pipeline", name, "--report", str(tmp_path / "report"))
        assert code == 0 and found["advice"]["fusion_helps"], found["rows"]
        assert found["stored_as"] == name
        assert {path.name for path in (tmp_path / "report").iterdir()} == {"tune.json", "tune.html"}
        kept = client.transport.perform_request("GET", pipeline)[name]
        assert kept == found["pipeline"] and index in kept["description"]
        text = QUERIES["q0"]
        (tokens,) = tiny.encoder.query_weights([text])
        sides = [
            {"match": {"passage": {"query": text}}},
            {"neural_sparse": {"embedding": {"query_tokens": tokens}}},
        ]
        query = {"hybrid": {"pagination_depth": 30, "queries": sides}}
        answer = client.search(
            index=index, body={"query": query, "size": 5}, params={"search_pipeline": name}
        )
        assert [hit["_id"] for hit in answer["hits"]["hits"][:4]] == fused["q0"]

        code, found, err = run(str(does_not), "--put-pipeline", name)
        assert code == 0 and not found["advice"]["fusion_helps"] and found["stored_as"] is None
        assert found["advice"]["take"] == "sparse alone" and "is not stored" in err
        assert client.transport.perform_request("GET", pipeline)[name] == kept

        theirs = {"description": "theirs", "request_processors": []}
        client.transport.perform_request("PUT", pipeline, body=theirs)
        code, _, err = run(str(helps), "--put-pipeline", name)
        assert code == 7 and "theirs" in err and "--replace" in err
        assert client.transport.perform_request("GET", pipeline)[name] == theirs
        code, found, _ = run(str(helps), "--put-pipeline", name, "--replace")
        assert code == 0 and client.transport.perform_request("GET", pipeline)[name] == found["pipeline"]
    finally:
        client.search_pipeline.delete(id=name, ignore=404)


def test_judgements_of_another_corpus_are_said(client, tiny, index, tmp_path, cluster_url, capsys):
    ingest(client, index, documents(20), encoder=tiny.encoder)
    folder = judge(tmp_path / "other", {query: ["elsewhere"] for query in QUERIES})
    how = ["--index", index, "--url", cluster_url, "--archive", str(tiny.archive)]
    assert main(["tune", str(folder), *how]) == 3
    told = capsys.readouterr().err
    assert (
        "has none of the 1 documents of other that are judged relevant" in told
        and "Is it the index of this collection?" in told
    )
    known = judge(tmp_path / "known", {query: [f"d{n % 20}"] for n, query in enumerate(QUERIES)})
    write_documents(known / "corpus.jsonl", [replace(one, text=f"not {one.text}") for one in documents(20)])
    assert main(["tune", str(known), *how]) == 3
    assert "has other texts under the ids of known: all 20 relevant" in capsys.readouterr().err
    assert main(["tune", str(folder), *how, "--folds", "16"]) == 3
    assert "too few" in capsys.readouterr().err
    for fusions in ("min_max,", ",", ""):
        assert main(["tune", str(folder), *how, "--fusion", fusions]) == 2
        assert f"--fusion {fusions!r} has nothing beside a comma" in capsys.readouterr().err


def test_judged_documents_that_the_index_lacks_are_counted(
    client, tiny, index, tmp_path, cluster_url, capsys
):
    ingest(client, index, documents(20), encoder=tiny.encoder)
    there = {query: [f"d{n % 20}"] for n, query in enumerate(QUERIES)}
    folder = judge(tmp_path / "part", {query: [*found, f"gone{query}"] for query, found in there.items()})
    how = ["--url", cluster_url, "--archive", str(tiny.archive), "--json"]
    for command in (["tune", str(folder), "--index", index, "--folds", "3"], ["sweep", index, str(folder)]):
        assert main([*command, *how]) == 0
        (told,) = [w for w in json.loads(capsys.readouterr().out)["warnings"] if "lacks" in w]
        assert "lacks 30 of the 50 documents that are judged relevant, such as 'goneq0'" in told


def test_what_others_have_added_to_a_stored_fusion_stays(client: OpenSearch, index):
    """A filter, for one, without which its users see what they may not."""
    name, only = f"ingtest-fusion-{uuid.uuid4().hex[:8]}", {"query": {"term": {"public": True}}}
    other = Hybrid.parse("bm25=0.25,sparse=0.75", depth=30)
    try:
        put_fusion(client, name, TRUTH, index)
        own = client.search_pipeline.get(id=name)[name]
        client.search_pipeline.put(id=name, body={**own, "request_processors": [{"filter_query": only}]})
        added = client.search_pipeline.get(id=name)[name]
        put_fusion(client, name, other, index)
        assert client.search_pipeline.get(id=name)[name] == {**added, **stored(other, index)}
    finally:
        client.search_pipeline.delete(id=name, ignore=404)


def test_of_two_that_store_a_fusion_under_one_name_at_once_one_is_told(
    client: OpenSearch, index, monkeypatch
):
    name = f"ingtest-fusion-{uuid.uuid4().hex[:8]}"
    put = client.search_pipeline.put
    others = iter([index, f"{index}-other"])  # each in the moment after it was stored

    def and_another(**how: Any) -> Any:
        put(**how)
        return put(id=name, body=stored(TRUTH, next(others)))

    monkeypatch.setattr(client.search_pipeline, "put", and_another)
    try:
        put_fusion(client, name, TRUTH, index)
        with pytest.raises(SearchError, match="was not made for the fusion of"):
            put_fusion(client, name, TRUTH, index)
    finally:
        client.search_pipeline.delete(id=name, ignore=404)
