"""The lines of a bulk request, the dead letters, and what an index is made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archives import encoder_archive
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import Prune, matrix_to_weights, prune
from oskit.archive.truncation import Truncation
from oskit.archive.vector_writer import VectorWriter
from oskit.cluster.index.mapping import (
    EncoderIdentity,
    IndexInfo,
    IndexSettings,
    SparseVectorParameters,
    check_vocabulary,
    index_body,
    key_for,
)
from oskit.cluster.index.names import check_index_name
from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.actions import ItemMaker
from oskit.cluster.ingest.admission import Admission
from oskit.cluster.ingest.bulk import BulkOutcome
from oskit.cluster.ingest.dead_letter import DeadLetterFile
from oskit.cluster.ingest.load import dry_run
from oskit.cluster.search.query_weights import _payload_weight
from oskit.data.documents import Document, FieldNames, Refusal
from oskit.data.jsonl import document_of, parse_line
from oskit.data.values import clean_value
from oskit.errors import DataError, UsageError
from tests.fake_ingest import FixedEncoder

INFO = IndexInfo("i", "rank_features", "token")
KEYS = ['"', "é", "##s", ".", "a.b", "2020", "\N{GRINNING FACE}", "\\", "\u2028", "gone"]


def lines(document: Document, weights: dict[str, float] | None = None) -> tuple[dict, dict]:
    maker = ItemMaker(INFO, FixedEncoder(weights) if weights is not None else None, None)
    (item,) = maker.make([document])
    action, source = item.payload.decode().splitlines()
    return json.loads(action), json.loads(source)


def test_the_lines_of_a_document():
    document = Document("é\n1", 'a "b"', "t", {"n": 1}, text_field="body", title_field="head")
    action, source = lines(document, {'"': 1.5, "\N{GRINNING FACE}": 0.25})
    assert action == {"index": {"_id": "é\n1"}}
    assert source == {
        "head": "t",
        "body": 'a "b"',
        "n": 1,
        "passage": 't a "b"',
        "embedding": {'"': 1.5, "\N{GRINNING FACE}": 0.25},
    }
    assert "embedding" not in lines(document)[1]


def test_weights_that_the_index_refuses_are_not_sent():
    weights = {
        "a": 1.0,
        "zero": 0.0,
        "negative": -1.0,
        "nan": math.nan,
        "subnormal": 1e-39,
        "infinite": math.inf,
    }
    assert lines(Document("1", "a"), weights)[1]["embedding"] == {"a": 1.0}
    assert "embedding" not in lines(Document("1", "a"), {"zero": 0.0})[1]


FLOATS = st.floats(width=32) | st.sampled_from([1.1754944e-38, 3.4028235e38, 0.1, 1 / 3, 16777216.0])
RULES = st.sampled_from(["max_ratio:0.1", "top_k:3", "alpha_mass:0.9", "abs_value:0.5"])


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), FLOATS), max_size=4), st.none() | RULES)
def test_a_vector_is_carried_to_the_bit_and_pruned_as_by_the_cluster(rows, rule):
    """Against the dictionaries of the encoder, pruned one by one; ties and weights that are none included."""
    matrix = np.zeros((len(rows), len(KEYS)), dtype=np.float32)
    for number, row in enumerate(rows):
        for key, weight in row.items():
            matrix[number, KEYS.index(key)] = weight
    vectors = csr_matrix(matrix)
    named = SimpleNamespace(keys=(*KEYS[:-1], ""), size=len(KEYS))  # the cluster drops a token without a text
    prune_by = Prune.parse(rule) if rule else None
    with np.errstate(all="ignore"):
        written = VectorWriter(named, "token", prune_by).write(vectors)
        expected = matrix_to_weights(vectors, named)
        expected = [prune(row, prune_by) for row in expected] if prune_by else expected
    for line, row in zip(written, expected, strict=True):
        sent = {key: weight for key, weight in row.items() if np.finfo("f").tiny <= weight < math.inf}
        found = {} if line is None else {key: np.float32(weight) for key, weight in json.loads(line).items()}
        assert found == sent and (line is None) == (not sent)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"])
    | st.dates() | st.datetimes(timezones=st.none() | st.timezones()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.dictionaries(st.integers(), inner),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None)
@given(JSON)
def test_a_field_is_sent_as_it_is_or_as_json_can_have_it(value):
    (item,) = ItemMaker(INFO, None, None).make([Document("1", "x", fields={"f": value})])
    assert json.loads(item.payload.splitlines()[1])["f"] == json.loads(json.dumps(clean_value(value)))


def test_values_that_json_has_not_are_cleaned():
    fields = {"nan": math.nan, "set": {1}, "lone": "\ud800", "tuple": (1, 2)}
    _, source = lines(Document("\ud800", "\udfff", fields=fields), {"a": 1.0})
    assert source["text"] == source["lone"] == "\ufffd"
    assert (source["nan"], source["tuple"], source["set"]) == (None, [1, 2], "{1}")
    assert source["embedding"] == {"a": 1.0}


def test_dead_letters_are_read_back_as_they_were(tmp_path: Path):
    letters = DeadLetterFile(tmp_path / "refused.jsonl")
    document = Document("7", "b\udce9", "t", {"n": None}, "body", "head", "f:3")
    letters.add(document, "the reason", 400)
    letters.add(Refusal("f:4", "not UTF-8", 'caf\udce9 "x"'), "not UTF-8")
    letters.close()
    first, second = (tmp_path / "refused.jsonl").read_bytes().splitlines()
    assert document_of(parse_line(first, "g:1"), FieldNames("other", "else")) == Document(
        "7", "b\ufffd", "t", {"n": None}, "body", "head"
    )
    again = document_of(parse_line(second, "g:2"), FieldNames())
    assert isinstance(again, Refusal)
    assert (again.where, again.raw) == ("f:4", 'caf\udce9 "x"')


def test_no_refusal_makes_no_file(tmp_path: Path):
    letters = DeadLetterFile(tmp_path / "refused.jsonl")
    letters.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="--dead-letter"):
        DeadLetterFile(tmp_path / "no" / "folder").add(Document("1", "a"), "x")


def test_reasons_are_counted_without_the_ids():
    told: list[int] = []
    account = Account("i", None, progress=told.append, answers=True)
    for n in range(3):
        account.refuse(Document(f"id-{n}", "x"), f"the id 'id-{n}' is bad")
    account.settle(BulkOutcome(indexed=5, retries=2))
    account.duplicate()
    report = account.report()
    assert report.reasons == {"the id '…' is bad": 3}
    assert report.read == 9 == report.indexed + report.refused + report.duplicates == sum(told)


def test_progress_moves_with_documents_encoded_and_their_order_stays():
    """Not with requests of 500: it is told while a window is encoded, longest first."""
    documents = [Document(f"{n}", "x" * (n * 7 % 100 + 1)) for n in range(500)]
    told: list[int] = []

    class Lengths(FixedEncoder):
        def document_matrix(self, texts):
            return csr_matrix([[float(len(text))] for text in texts], dtype=np.float32)

    items = ItemMaker(INFO, Lengths({"a": 1.0}), None).make(documents, told.append)
    assert sum(told) == 500 and len(told) > 1
    assert [item.document for item in items] == documents
    sent = [json.loads(item.payload.splitlines()[1]) for item in items]
    assert all(source["embedding"] == {"a": len(source["text"])} for source in sent)
    here, there = (Account("i", None, progress=told.append, answers=answers) for answers in (False, True))
    told.clear()
    here.settle(BulkOutcome(indexed=3))
    there.settle(BulkOutcome(indexed=4))
    assert told == [4], "what was encoded here has been told before the cluster answers"


@pytest.mark.parametrize("encode", ["client", "cluster"])
def test_a_load_counts_what_is_too_long(tmp_path: Path, encode: str):
    """In both modes, without a second tokenization in the one and without encoding in the other."""
    encoder = ArchiveEncoder.open(encoder_archive(tmp_path / "encoder.zip"))
    documents = [Document(f"{n}", "quick fox " * n) for n in (1, 63, 64, 100)]
    maker = ItemMaker(replace(INFO, encode=encode), encoder, None)
    items = maker.make(documents)
    if encode == "cluster":
        maker.count(documents)
    assert [b'"embedding"' in item.payload for item in items] == [encode == "client"] * 4
    found = maker.truncation()
    assert found == Truncation(128, texts=4, cut=2, tokens=456, lost=2 + 74)
    report = Account("i", None, maker.truncation).report().to_dict()
    assert (report["truncation"]["cut"], report["truncation"]["max_length"]) == (2, 128)
    assert dry_run("i", documents, encoder=encoder).truncation == found
    nobody = ItemMaker(replace(INFO, encode="cluster"), None, None)
    nobody.count(documents)
    assert nobody.truncation() is None


def test_a_dry_run_counts():
    records = [Document("1", "a"), Document("1", "a"), Document("1", "b"), Refusal("f:4", "no text"),
               Document("2", "c", fields={"embedding": 1})]  # fmt: skip
    report = dry_run("i", records)
    assert (report.read, report.indexed, report.refused, report.duplicates) == (5, 1, 3, 1)


@pytest.mark.parametrize("encode", ["client", "cluster"])
@pytest.mark.parametrize(
    "name",
    ["embedding", "embedding.x", "passage.x", "_routing", "_version", "_index", "_source", "_if_seq_no",
     "_version_type", "_id", "_seq_no", "_ignored"],
)  # fmt: skip
def test_fields_that_would_be_lost_are_refused_in_both_modes(encode: str, name: str):
    """An ingest pipeline takes them for its own and drops them; without one they are refused."""
    maker = Admission(replace(INFO, encode=encode))
    assert repr(name) in (maker.check(Document("1", "x", fields={name: 1})) or "")
    assert maker.check(Document("1", "x", fields={"my_embedding.x": 1, "_score": 1.5, "_type": "t"})) is None


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        ({"a": {"x": 1}, "a.b": 2}, "'a' and 'a.b'"),
        ({"m": [{"a.b.c": 1, "a.b": {}}]}, "'a.b' and 'a.b.c'"),
        ({"text.raw": 1}, "'text' and 'text.raw'"),
        ({"ab": 1, "a.b": 2}, ""),
    ],
)
def test_one_of_two_names_is_lost_where_the_cluster_encodes(fields, lost, caplog: pytest.LogCaptureFixture):
    said = Admission(replace(INFO, encode="cluster")).check(Document("1", "x", fields=fields))
    assert lost in (said or "") and bool(said) == bool(lost)
    assert Admission(replace(INFO, encode="client")).check(Document("1", "x", fields=fields)) is None
    assert bool(caplog.messages) == (not lost), "names that are taken apart are told"


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "a*", "_all", "-a", "a,b", "a/b", ".a", "x" * 256, 'a"', "caf\udce9"]
)
def test_names_that_mean_something_else(name: str):
    with pytest.raises(UsageError, match="cannot be an index's name"):
        check_index_name(name)


def test_the_mapping_tells_how_the_index_was_made():
    info = IndexInfo(
        "i",
        "sparse_vector",
        "id",
        encode="cluster",
        encoder=EncoderIdentity("abc", "name", "inference-free", "m", "def", "q"),
        prune="max_ratio:0.1",
    )
    settings = IndexSettings("sparse_vector", sparse_vector=SparseVectorParameters(approximate_threshold=9))
    body = index_body(info, settings)
    assert IndexInfo.from_meta("i", body["mappings"]["_meta"]["oskit"]) == info
    assert body["settings"]["index"]["sparse"] is True
    assert body["mappings"]["properties"]["embedding"]["method"]["parameters"] == {"approximate_threshold": 9}
    assert "_source" not in body["mappings"], "an update takes all of it, the passage too"


def test_settings_that_do_not_fit():
    with pytest.raises(UsageError, match="approximate_threshold: only for sparse_vector"):
        IndexSettings(sparse_vector=SparseVectorParameters(approximate_threshold=9))
    with pytest.raises(UsageError, match="unknown index kind"):
        IndexSettings("dense")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="both be the field"):
        IndexSettings(passage_field="embedding")
    with pytest.raises(UsageError, match=r"50,000 tokens.*rank_features"):
        check_vocabulary("sparse_vector", 50_000)
    check_vocabulary("sparse_vector", 32_768)
    check_vocabulary("rank_features", 250_000)


def test_keys():
    assert key_for("rank_features", "token") == "token"
    assert key_for("rank_features", "id") == "id"
    assert key_for("sparse_vector", "token") == "id"


def test_the_payload_of_an_analyzers_token():
    assert _payload_weight("[40 de 2 1a]") == pytest.approx(6.93775, abs=1e-4)
    assert _payload_weight(None) == 1.0
