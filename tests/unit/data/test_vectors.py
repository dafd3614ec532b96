"""Vectors that come with documents, files of them, and shares of documents."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoder_archive
from hypothesis import given, settings
from hypothesis import strategies as st

from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.token_weights import DelegatingEncoder, Prune, matrix_to_weights, prune
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.ingest.admission import Admission, key_of_vectors
from oskit.cluster.ingest.dead_letter import dead_letter
from oskit.cluster.ingest.to_file import encode_to_file
from oskit.data.documents import Document, FieldNames, Refusal
from oskit.data.files import read_documents
from oskit.data.jsonl import document_of, parse_line
from oskit.data.parquet import read_metadata
from oskit.data.parts import Part
from oskit.data.vectors import Vector
from oskit.errors import DataError, UsageError
from tests.fake_ingest import FixedEncoder

DOCUMENTS = [
    Document("1", "quick brown fox", "a title"),
    Document("2", ""),
    Document(
        "é\ud800", "fox \udfff", fields={"n": 2**80, "nan": math.nan, "deep": {"a.b": [None, {"x": 1}]}}
    ),
    *(Document(f"n{n}", f"quick {'fox ' * (n % 7)}dog {n}", fields={"n": n}) for n in range(700)),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ArchiveEncoder:
    return ArchiveEncoder.open(encoder_archive(tmp_path_factory.mktemp("archive") / "encoder.zip"))


class Remembering(DelegatingEncoder[ArchiveEncoder]):
    """Remembers the vectors: those of one text differ in the last bits by what shares its batch."""

    def __init__(self, encoder: ArchiveEncoder) -> None:
        super().__init__(encoder)
        self.archive, self.rows = encoder.archive, {}

    def document_matrix(self, texts):
        matrix = super().document_matrix(texts)
        self.rows |= {text: matrix[n] for n, text in enumerate(texts)}
        return matrix


@pytest.mark.parametrize("name", ["v.parquet", "v.jsonl", "v.jsonl.gz"])
@pytest.mark.parametrize(("key", "rule"), [(None, None), ("id", "max_ratio:0.5")])
def test_a_file_gives_back_the_documents_and_their_vectors_to_the_bit(
    tmp_path: Path, encoder: ArchiveEncoder, name: str, key, rule: str | None
):
    path = tmp_path / name
    made = Remembering(encoder)
    report = encode_to_file(iter(DOCUMENTS), made, path, key=key, prune=Prune.parse(rule) if rule else None)
    assert (report.read, report.indexed) == (703, 703)
    assert [found.name for found in tmp_path.iterdir()] == [name]
    back = list(read_documents([path], vector_field="embedding"))
    for document, found in zip(DOCUMENTS, back, strict=True):
        (weights,) = matrix_to_weights(made.rows[document.passage], encoder.vocabulary, key=key or "token")
        assert isinstance(found, Document) and found.vector is not None, found
        assert (found.text, found.title) == (document.text.replace("\udfff", "\ufffd"), document.title)
        kept = prune(weights, Prune.parse(rule)) if rule else weights
        assert {key: np.float32(weight) for key, weight in found.vector.weights().items()} == kept
    assert back[2].id == "é\ufffd"  # type: ignore[union-attr]
    assert back[2].fields == {"n": 2**80, "nan": None, "deep": {"a.b": [None, {"x": 1}]}}  # type: ignore[union-attr]
    assert key_of_vectors(back)[0] == (key or "token")
    if name.endswith("parquet"):
        said = read_metadata(path)
        assert (said["sha256"], said["key"], said["prune"]) == (encoder.archive.sha256, key or "token", rule)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, encoder: ArchiveEncoder):
    path = tmp_path / "v.jsonl"
    path.write_text("before")

    def documents():
        yield from DOCUMENTS
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match="damaged"):
        encode_to_file(documents(), encoder, path)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    encode_to_file(DOCUMENTS[:1], encoder, link)
    assert link.is_symlink() and len(path.read_text().splitlines()) == 1
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("pipe.jsonl", "folder.jsonl"):
        (tmp_path / "folder.jsonl").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no file"):
            encode_to_file(DOCUMENTS, encoder, tmp_path / name)
    with pytest.raises(UsageError, match=r"\.parquet"):
        encode_to_file(DOCUMENTS, encoder, tmp_path / "v.txt")
    with pytest.raises(DataError, match="cannot write"):
        encode_to_file(DOCUMENTS, encoder, tmp_path / "no" / "v.jsonl")


WEIGHTS = st.dictionaries(
    st.text(max_size=3),
    st.floats()
    | st.integers()
    | st.none()
    | st.booleans()
    | st.text(max_size=2)
    | st.floats(0.1, 3)
    | st.sampled_from([2**63, 2**64, 2**70, 10**400]),
)


@settings(deadline=None)
@given(WEIGHTS)
def test_a_vector_is_taken_as_it_is_or_refused_by_name(weights):
    bad = [
        key
        for key, weight in weights.items()
        if not key or isinstance(weight, bool) or not isinstance(weight, int | float)
        or not float(np.finfo("f").tiny) <= weight <= float(np.finfo("f").max)
    ]  # fmt: skip
    line = json.dumps({"_id": "1", "text": "x", "w": weights}).encode()
    found = document_of(parse_line(line, "f:1"), FieldNames(vector="w"))
    if bad:
        assert isinstance(found, Refusal) and repr(bad[0]) in found.reason
        again = document_of(parse_line(json.dumps(dead_letter(found, "x")).encode(), "g:1"), FieldNames())
        assert isinstance(again, Document), "what was refused is kept, to be corrected"
    else:
        assert isinstance(found, Document) and found.vector is not None
        as_json = {key: weight if weight < 2**64 else float(weight) for key, weight in weights.items()}
        assert found.vector.weights() == as_json and "w" not in found.fields
        again = document_of(
            parse_line(json.dumps(dead_letter(found, "x")).encode(), "g:1"), FieldNames(vector="w")
        )
        assert again == found


def test_keys_that_utf8_cannot_carry_are_replaced_as_in_texts():
    assert Vector.of("w", {"\ud83d\ude00": 1.0, "a\ud800": 2}).json == '{"😀":1.0,"a\ufffd":2}'.encode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "a",
        1,
        [1],
        [["a", 1, 2]],
        [["a", 1.0], ["a", 2.0]],
        [[None, 1.0]],
        dict.fromkeys("\ud800\udfff", 1),
    ],
)
def test_what_is_no_vector_is_refused(value):
    found = document_of(
        parse_line(json.dumps({"text": "x", "w": value}).encode(), "f:1"), FieldNames(vector="w")
    )
    assert isinstance(found, Refusal) and "'w'" in found.reason
    missing = document_of(parse_line(b'{"text": "x"}', "f:1"), FieldNames(vector="w"))
    assert isinstance(missing, Refusal) and "--embedding-field" in missing.reason


@pytest.mark.parametrize(
    "kind",
    [
        pa.map_(pa.string(), pa.float32()),
        pa.map_(pa.string(), pa.float64()),
        pa.map_(pa.int32(), pa.float32()),
        pa.list_(pa.struct({"token": pa.string(), "weight": pa.float32()})),
        pa.large_list(pa.struct({"token": pa.large_string(), "weight": pa.float32()})),
        pa.list_(pa.struct({"id": pa.int64(), "weight": pa.int32()})),
    ],
    ids=str,
)
def test_the_shapes_of_a_column_of_vectors(tmp_path: Path, kind: pa.DataType):
    """Rows that are no vectors between others are refused, and no other row suffers."""
    numbers, whole = "int" in str(kind).split(",")[0].split("struct<")[-1], str(kind).endswith("int32>>")
    one, two = (7, 8) if numbers else ("a", "##b")
    weights = (3, 2) if whole else (0.1, 2.5)
    rows = [[(one, weights[0]), (two, weights[1])], [], [(one, -1)], None, [(one, None)], [(two, weights[1])]]
    if not pa.types.is_map(kind):
        names = [kind.value_type.field(n).name for n in (0, 1)]
        rows = [row and [dict(zip(names, pair, strict=True)) for pair in row] for row in rows]
    table = pa.table({"_id": list("abcdef"), "text": ["x"] * 6, "w": pa.array(rows, kind)})
    pq.write_table(table, tmp_path / "v.parquet")
    found = list(read_documents([tmp_path / "v.parquet"], vector_field="w"))
    assert [type(item) for item in found] == [Document, Document, Refusal, Refusal, Refusal, Document]
    weighed = found[0].vector.weights()  # type: ignore[union-attr]
    assert list(weighed) == [str(one), str(two)]
    assert [np.float32(weight) for weight in weighed.values()] == [np.float32(weight) for weight in weights]
    assert found[1].vector.weights() == {} and found[5].vector.weights() == {str(two): weighed[str(two)]}  # type: ignore[union-attr]


@pytest.mark.parametrize("kept", ["no JSON", "[1]", 5])
def test_a_file_by_oskit_that_somebody_has_changed_costs_the_rows_that_are_wrong(tmp_path: Path, kept):
    rows = {"_id": ["1", "2"], "text": ["x", "y"], "_fields": [kept, None]}
    pq.write_table(pa.table(rows).replace_schema_metadata({b"oskit": b"{}"}), tmp_path / "v.parquet")
    wrong, right = read_documents([tmp_path / "v.parquet"])
    assert isinstance(wrong, Refusal) and "'_fields'" in wrong.reason and isinstance(right, Document)


@pytest.mark.parametrize(
    ("keys", "key"), [(["2026", "fox"], "token"), (["2026", "7"], "id"), ([""], "token")]
)
def test_a_document_of_numbers_alone_does_not_make_tokens_ids(keys: list[str], key: str):
    documents = [Document("0", "", vector=Vector.of("w", {name: 1.0} if name else {})) for name in keys]
    found, all_of_them = key_of_vectors(iter(documents))
    assert found == key and list(all_of_them) == documents


def test_keys_have_to_fit_the_index():
    def said(kind: str, key: str, *keys: str, encoder: FixedEncoder | None = None) -> str | None:
        info = IndexInfo("i", kind, key, encode="none")  # type: ignore[arg-type]
        vector = Vector.of("embedding", dict.fromkeys(keys, 1.0))
        return Admission(info, encoder).check(Document("1", "x", vector=vector))

    assert said("rank_features", "token", "a", ".", "7") is None
    assert said("sparse_vector", "id", "7", "32767", "0") is None
    assert "'a'" in str(said("sparse_vector", "id", "7", "a"))
    assert "'07'" in str(said("rank_features", "id", "07"))
    assert "32768" in str(said("sparse_vector", "id", "7", "32768"))
    assert "'b'" in str(said("rank_features", "token", "a", "b", encoder=FixedEncoder({"a": 1.0})))
    without = Admission(IndexInfo("i", "rank_features", "token", encode="none")).check(Document("1", "x"))
    assert "no vector" in str(without)
    vector = Vector.of("embedding", {})
    assert "--encode none" in str(
        Admission(IndexInfo("i", "rank_features", "token")).check(Document("1", "x", vector=vector))
    )


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), max_size=50), st.integers(1, 7), st.randoms())
def test_parts_are_disjoint_whole_and_the_same_in_any_order(ids, of, random):
    """Of documents and of records that are refused; equal ids are in one part."""
    records = [Document(name, "x") if n % 3 else Refusal(f"f:{n}", "", name) for n, name in enumerate(ids)]
    parts = [Part(number, of) for number in range(1, of + 1)]
    shares = [list(part.only(records)) for part in parts]
    assert sorted(id(item) for share in shares for item in share) == sorted(map(id, records))
    assert [len(share) + part.elsewhere for share, part in zip(shares, parts, strict=True)] == [len(ids)] * of

    def name(item: Document | Refusal) -> str:
        return item.raw if isinstance(item, Refusal) else item.id

    place = {name(item): n for n, share in enumerate(shares) for item in share}
    shuffled = random.sample(records, len(records))
    assert all(place[name(item)] == n for n, part in enumerate(parts) for item in part.only(shuffled))


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "", "1", "1/0", "-1/4", "1/4/2", "1.5/4", "¹/4"])
def test_parts_that_there_are_not(text: str):
    with pytest.raises(UsageError):
        Part.parse(text)
    assert str(Part.parse("3/16")) == "3/16"


def test_many_digits_and_odd_lines_are_read_as_json_does(tmp_path: Path):
    values = [
        2**64,
        10**30,
        -(2**70),
        18446744073709551615,
        0.1,
        1e308,
        123456789012345678901.5,
        -0.0,
        "\ud83d",
    ]
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(
        gzip.compress(b"".join(json.dumps({"text": "x", "v": value}).encode() + b"\n" for value in values))
    )
    found = [item.fields["v"] for item in read_documents([path])]  # type: ignore[union-attr]
    assert found[:-1] == values[:-1] and found[-1] == "\ufffd"
    assert [type(value) for value in found] == [type(value) for value in values]
