"""Long documents on a real index: cut here, encoded here or by the pipeline, found by their best chunk."""

from __future__ import annotations

import copy
import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archives import WORDS
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, index, indexed, tiny

from oskit.archive.token_weights import Prune
from oskit.cli.main import main
from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, delete_index
from oskit.cluster.ingest.load import IngestReport, ingest
from oskit.cluster.search.run import run_queries
from oskit.cluster.search.search import Searcher, search
from oskit.data.chunks import Chunk, Chunking
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.data.queries import FileQuery
from oskit.errors import IndexingError, UsageError
from oskit.evaluation.live.sweep import sweep
from oskit.evaluation.live.sweep_settings import Grid
from oskit.evaluation.live.verify import verify

__all__ = ["index", "tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
MODES = ("client", "cluster")
CHUNKING = Chunking(32, 8)
ROUNDING = 2**-8
"""Weights are stored with 9 significant bits: at most this part of a score may be missing."""


def long_documents() -> list[Document]:
    """With and without a title, one of them longer than a chunk; huge, small, empty, without tokens."""
    draw = random.Random(5)
    made = []
    for number in range(14):
        sentences = 300 if number == 3 else 1 + 3 * (number % 7)
        text = " ".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) + "." for _ in range(sentences))
        made.append(Document(f"d{number}", text, "brown permit" if number % 3 == 0 else "", {"n": number}))
    made[9] = Document("d9", made[9].text, " ".join(2 * WORDS), {"n": 9})
    made[12] = Document("d12", made[12].text, "  brown   permit ", {"n": 12})
    made[1] = Document("d1", "")
    made[2] = Document("d2", "\u200b")
    return made


def chunks_of(tiny: TinyModels, document: Document) -> list[Chunk]:
    tokenize = tiny.encoder.vocabulary.tokenizer().encode
    return CHUNKING.split(document.title, document.text, tokenize)


def best_passages(
    tiny: TinyModels, query: str, *, symmetric: bool = True
) -> dict[str, tuple[float, set[int]]]:
    """Of each document that matches: the largest dot product of its chunks, and where those of it begin."""
    encoder = tiny.encoder if symmetric else tiny.inference_free
    asked, found = encoder.query_matrix([query]), {}
    for document in long_documents():
        if not (chunks := chunks_of(tiny, document)):
            continue
        matrix = encoder.document_matrix([chunk.text for chunk in chunks])
        scores = np.asarray((matrix @ asked.T).todense()).ravel()
        if (best := scores.max()) > 0:
            near = best * (1 - 2 * ROUNDING)
            starts = {chunk.start for chunk, score in zip(chunks, scores, strict=True) if score >= near}
            found[document.id] = (float(best), starts)
    return found


def load(
    client: OpenSearch, tiny: TinyModels, name: str, kind: str, mode: str, docs: list[Document] | None = None,
    **more: object,
) -> IngestReport:  # fmt: skip
    settings = IndexSettings(kind, chunking=CHUNKING)
    given = {"settings": settings, "encoder": tiny.inference_free if mode == "client" else tiny.encoder}
    if mode == "cluster":
        given |= {"encode": "cluster", "model_id": tiny.encoder_id, "query_model_id": tiny.tokenizer_id}
    return ingest(client, name, long_documents() if docs is None else docs, **{**given, **more})


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[tuple[str, str], str]]:
    """An index of each kind, encoded in each way, with the same documents."""
    names = {(kind, mode): f"ingtest-long-{uuid.uuid4().hex[:8]}" for kind in KINDS for mode in MODES}
    for (kind, mode), name in names.items():
        report = load(client, tiny, name, kind, mode)
        assert report.indexed == report.read == 14
        assert report.chunks == sum(len(chunks_of(tiny, document)) for document in long_documents())
        assert not report.truncation or not report.truncation.cut
    yield names
    for name in names.values():
        delete_index(client, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["model", "tokenizer", "tokens"])
def test_a_document_scores_as_its_best_chunk_and_tells_which_that_is(client, tiny, indexes, kind, mode, way):
    options = {
        "model": {"by": "model", "model_id": tiny.encoder_id},
        "tokenizer": {"by": "tokenizer", "model_id": tiny.tokenizer_id},
        "tokens": {"encoder": tiny.encoder},
    }[way]
    texts = {document.id: document.text for document in long_documents()}
    searcher = Searcher(client, indexes[kind, mode], **options)
    for query, result in zip(QUERIES, searcher.search_many(QUERIES, explain=True, size=20), strict=True):
        expected = best_passages(tiny, query, symmetric=way != "tokenizer")
        assert {hit.id: hit.score for hit in result.hits} == pytest.approx(
            {name: score for name, (score, _) in expected.items()}, rel=ROUNDING
        )
        assert len(expected) > 8
        for hit in result.hits:
            assert hit.passage.start in expected[hit.id][1]
            assert texts[hit.id][hit.passage.start :].startswith(hit.passage.text)
            assert sum(match.product for match in hit.matched.values()) == pytest.approx(
                hit.score, rel=ROUNDING
            )
            assert set(hit.source) <= {"text", "title", "n"}


def test_the_whole_text_is_searched_without_an_encoder(client, tiny, indexes):
    flat = f"ingtest-long-{uuid.uuid4().hex[:8]}"
    ingest(client, flat, long_documents(), encoder=tiny.encoder)
    try:
        due = {hit.id: hit.score for hit in search(client, flat, "quick permit", by="bm25", size=20).hits}
        for name in indexes.values():
            found = search(client, name, "quick permit", by="bm25", size=20).hits
            assert {hit.id: hit.score for hit in found} == pytest.approx(due)
    finally:
        delete_index(client, flat)


def collection() -> Collection:
    queries = {f"q{number}": query for number, query in enumerate(QUERIES)}
    return Collection(queries, {query: {"d4": 1} for query in queries}, tuple(long_documents()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_verification_ranks_by_the_best_chunk_and_sees_a_wrong_one(client, tiny, indexes, index, kind, mode):
    name, docs = indexes[kind, mode], [doc for doc in long_documents() if chunks_of(tiny, doc)]
    by = {"by": "model", "model_id": tiny.encoder_id} if mode == "cluster" else {}
    report = verify(client, name, collection(), tiny.encoder, k=20, sample=20, **by)
    assert report.failures == []
    assert report.comparison.hits == sum(len(best_passages(tiny, query)) for query in QUERIES)
    assert report.vectors.checked == len(docs) - 1  # of one nothing has weight
    for query, text in collection().queries.items():
        due = {document: score for document, (score, _) in best_passages(tiny, text).items()}
        assert report.comparison.exact[query] == pytest.approx(due)
    # Of one document the last chunk is another text's, which no query need meet.
    (hit,) = [hit for hit in indexed(client, name) if hit["_id"] == "d6"]
    source = copy.deepcopy(hit["_source"])
    source["passages"][-1]["embedding"] = source["passages"][0]["embedding"]
    client.index(index=name, id="d6", body=source, params={"refresh": "true", "pipeline": "_none"})
    try:
        wrong = verify(client, name, collection(), tiny.encoder, k=20, sample=20, examples=1, **by)
        assert [each["document_id"] for each in wrong.vectors.wrong] == ["d6"]
        assert any("such as 'd6'" in failure for failure in wrong.failures)
    finally:
        client.index(
            index=name, id="d6", body=hit["_source"], params={"refresh": "true", "pipeline": "_none"}
        )


def test_the_weights_of_each_chunk_are_pruned_by_its_own_heaviest(client, tiny, index):
    load(client, tiny, index, "rank_features", "client", prune=Prune.parse("max_ratio:0.5"))
    report = verify(client, index, collection(), tiny.encoder, k=20, sample=20)
    assert report.failures == [] and report.vectors.checked
    for query, text in collection().queries.items():
        whole = best_passages(tiny, text)
        assert all(score < whole[document][0] for document, score in report.comparison.exact[query].items())


def test_a_sweep_counts_documents_by_their_best_chunk(client, tiny, indexes):
    for exact in ("index", "encoder"):
        report = sweep(
            client, indexes["rank_features", "client"], collection(), tiny.encoder, exact=exact, rounds=1,
            grid=Grid(prune=["top_k:1"]),
        )  # fmt: skip
        assert [row.setting.name for row in report.rows] == ["as it is", "pruned top_k:1"]
        assert report.rows[0].recall[10] == 1.0
        assert report.warnings == []
    with pytest.raises(UsageError, match="two phases do not look into"):
        sweep(
            client,
            indexes["rank_features", "client"],
            collection(),
            tiny.encoder,
            grid=Grid(prune_ratio=[0.4]),
        )


def test_two_phase_search_is_refused(client, tiny, indexes):
    with pytest.raises(UsageError, match="does not look into the nested"):
        search(client, indexes["rank_features", "client"], "permit", encoder=tiny.encoder, two_phase=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_changed_is_encoded_again(client, tiny, index, kind, mode):
    # The one without tokens first: an empty vector would make the field refuse all others.
    docs = [*long_documents()[2::-1], *long_documents()[4:]]
    assert load(client, tiny, index, kind, mode, docs).encoded == len(docs)
    assert (again := load(client, tiny, index, kind, mode, docs)).encoded == 0
    assert again.chunks is None
    docs[4] = Document(docs[4].id, "quick brown fox. " * 30, "", {"n": 99})
    changed = load(client, tiny, index, kind, mode, docs)
    assert (changed.encoded, changed.chunks) == (1, len(chunks_of(tiny, docs[4])))
    (hit,) = [hit for hit in indexed(client, index) if hit["_id"] == docs[4].id]
    assert [chunk["text"] for chunk in hit["_source"]["passages"]] == [
        chunk.text for chunk in chunks_of(tiny, docs[4])
    ]


def test_an_index_takes_documents_that_are_cut_as_its_own_are(client, tiny, index):
    alias = f"{index}-alias"
    load(client, tiny, index, "rank_features", "client", long_documents()[:3])
    client.indices.put_alias(index=index, name=alias)
    for other in (None, Chunking(32), Chunking(40, 8)):
        with pytest.raises(IndexingError, match="were cut into chunks of tokens:32,overlap:8") as refused:
            load(client, tiny, index, KINDS[0], "client", settings=IndexSettings(chunking=other))
        assert "--chunk tokens:32,overlap:8" in refused.value.hint
    assert load(client, tiny, alias, "rank_features", "client").encoded == 11
    assert len(search(client, alias, "quick permit", encoder=tiny.encoder, size=20).hits) > 8
    load(client, tiny, index, KINDS[0], "client", settings=IndexSettings(), recreate=True)
    assert "passages" not in client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
    with pytest.raises(IndexingError, match="were not cut into chunks"):
        load(client, tiny, index, "rank_features", "client")


def test_an_approximate_search_finds_as_many_documents_as_are_wanted(client, tiny, index):
    """Above the threshold k counts passages, and the best of them are all of one document here."""
    docs = [Document("much", "quick brown fox. " * 200)]
    docs += [Document(f"d{n}", f"quick {' '.join(WORDS[n : n + 4])}.") for n in range(8)]
    method = SparseVectorParameters(approximate_threshold=1)
    settings = IndexSettings("sparse_vector", sparse_vector=method, chunking=CHUNKING)
    ingest(client, index, docs, encoder=tiny.encoder, settings=settings)
    client.indices.forcemerge(index=index, max_num_segments=1)
    searcher = Searcher(client, index, encoder=tiny.encoder)
    wanted = {"size": 5, "method_parameters": {"top_n": 1000, "heap_factor": 1e6}}  # all but k is exact
    query = "quick brown fox"
    for result in (searcher.search(query, **wanted), *searcher.search_many([query], **wanted)):
        assert len(result.hits) == 5
        assert result.hits[0].id == "much"
    assert [hit.id for hit in searcher.search(query, size=5, method_parameters={"k": 5}).hits] == ["much"]


def test_an_approximate_search_that_is_short_of_documents_finds_all_or_says_so(client, tiny, index):
    """Its clusters hide some that match, whatever k is."""
    draw = random.Random(1)
    docs = [
        Document(f"d{n}", ". ".join(" ".join(draw.choices(WORDS, k=6)) for _ in range(1 + 4 * (n % 6))))
        for n in range(24)
    ]
    method = SparseVectorParameters(approximate_threshold=10)
    settings = IndexSettings("sparse_vector", shards=2, sparse_vector=method, chunking=Chunking(48))
    ingest(client, index, docs, encoder=tiny.encoder, settings=settings)
    searcher, short = Searcher(client, index, encoder=tiny.encoder), 0
    for query in ("quick brown fox", WORDS[3], f"{WORDS[7]} {WORDS[11]}"):
        due = searcher.search(query, size=100, filter={"match_all": {}})
        for found in (searcher.search(query, size=100), *searcher.search_many([query], size=100)):
            assert {hit.id: hit.score for hit in found.hits} == {hit.id: hit.score for hit in due.hits}
            assert (found.total, found.total_relation, found.warning) == (len(due.hits), "eq", None)
        tuned = searcher.search(query, size=100, method_parameters={"heap_factor": 1})
        assert tuned.total_relation == "gte" and "hits may be missing" in str(tuned.warning)
        short += len(tuned.hits) < len(due.hits)
    assert short


def test_a_filter_is_on_documents_and_their_best_chunks_score_all_the_same(client, tiny, index):
    """Approximately, where most passages are of one document, and in a run, which shows none of them."""
    settings = IndexSettings(
        "sparse_vector", chunking=CHUNKING, sparse_vector=SparseVectorParameters(approximate_threshold=10)
    )
    load(client, tiny, index, "sparse_vector", "client", settings=settings, encoder=tiny.encoder)
    searcher = Searcher(client, index, encoder=tiny.encoder)
    queries = [FileQuery(str(number), query, "") for number, query in enumerate(QUERIES)]
    lines: list[str] = []
    run_queries(searcher, queries, lines.append, filter=["n>=4", "n<12"], size=20)
    found = [line.split() for line in "".join(lines).splitlines()]
    for query in queries:
        exact = best_passages(tiny, str(query.query)).items()
        expected = {name: score for name, (score, _) in exact if 4 <= int(name[1:]) < 12}
        scores = {doc: float(score) for key, _, doc, _, score, _ in found if key == query.id}
        assert len(scores) > 3 and scores == pytest.approx(expected, rel=0.01, abs=0.1)


def test_the_command_tells_of_chunks_and_where_a_passage_begins(
    cluster_url, tiny, index, tmp_path: Path, capsys
):
    lines = [
        {"_id": doc.id, "title": doc.title, "text": doc.text, "n": doc.fields["n"]}
        for doc in long_documents()
        if doc.fields
    ]
    source = tmp_path / "long.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)) + "\n")
    here = ["--url", cluster_url, "--archive", str(tiny.archive)]
    flat = ["ingest", f"{index}-flat", str(source), *here, "--dry-run"]
    assert main(flat) == 0
    told = capsys.readouterr().out
    assert "documents are longer than 128 tokens" in told and "of all tokens" in told
    assert "--chunk tokens:128,overlap:16" in told
    ingesting = ["ingest", index, str(source), *here, "--chunk"]
    assert main([*ingesting, "tokens:256"]) != 0
    assert "reads 128 tokens of a text" in capsys.readouterr().err
    chunked = [*ingesting, str(CHUNKING)]
    chunks = sum(len(chunks_of(tiny, doc)) for doc in long_documents() if doc.fields)
    assert main([*chunked, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chunks"] == chunks
    assert main(chunked) == 0
    assert f"cut into {chunks:,} chunks" in capsys.readouterr().out
    asking = ["search", index, "brown fox", *here]
    assert main([*asking, "--json"]) == 0
    expected = best_passages(tiny, "brown fox")
    for hit in json.loads(capsys.readouterr().out)["hits"]:
        assert hit["passage"]["start"] in expected[hit["id"]][1]
        assert "passages" not in hit["source"]
    assert main(asking) == 0
    assert "(at " in capsys.readouterr().out
