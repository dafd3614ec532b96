"""Files of every kind: what is read is what was written, and nothing is lost or crashes."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oskit.data import jsonl
from oskit.data.documents import Document, FieldNames, Record, Refusal
from oskit.data.files import count_records, read_documents, read_records
from oskit.data.jsonl import document_of, parse_line
from oskit.data.values import memory_of
from oskit.errors import DataError, UsageError

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, **options) -> list[Document | Refusal]:
    return list(read_documents([path], **options))


def documents_of(path: Path, **options) -> list[Document]:
    found = read(path, **options)
    assert not [item for item in found if isinstance(item, Refusal)]
    return [item for item in found if isinstance(item, Document)]


def test_jsonl_keeps_the_other_fields(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"_id": "1", "title": "t", "text": "a", "n": {"x": [1, null]}}\r\n\n{"text":"b"}'
    )
    first, second = documents_of(path)
    assert first == Document("1", "a", "t", {"n": {"x": [1, None]}})
    assert first.passage == "t a"
    assert first.where == f"{path}:1"
    assert second.where == f"{path}:3"
    assert len(second.id) == 32


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress),
                                                  (".xz", lzma.compress)])  # fmt: skip
def test_compression_is_noticed_by_content(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]):
    content = b'{"text": "a"}\n{"text": "b"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(content))
    assert [document.text for document in documents_of(path)] == ["a", "b"]
    path.write_bytes(content)
    assert len(documents_of(path)) == 2, "a name that lies is no problem"
    path.write_bytes(compress(content * 9000)[:-7])
    with pytest.raises(DataError, match=r"a\.jsonl.*(damaged|cut off)"):
        read(path)


def test_zstd(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(b'{"text": "a"}\n' * 3)
    assert len(documents_of(path)) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"oops", "not JSON"),
        (b"[1]", "array, not an object"),
        (b"null", "null, not an object"),
        (b'{"text": "caf\xe9"}', "not UTF-8 .byte 0xe9 at position 14"),
        (b'{"body": "a"}', "no field 'text' .it has 'body'.; --text-field"),
        (b'{"text": ["a"]}', "'text' holds a list"),
        (b'{"text": {"a": 1}}', "'text' holds an object"),
        (b'{"text": "a", "_id": ""}', "0 bytes"),
        (b'{"text": "a", "_id": "' + b"x" * 513 + b'"}', "513 bytes"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "4300"),
        (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_no_document_says_why(line: bytes, reason: str):
    found = document_of(parse_line(line, "f:1"), FieldNames())
    assert isinstance(found, Refusal)
    assert found.where == "f:1"
    assert found.raw.encode("utf-8", "surrogateescape") == line
    import re

    assert re.search(reason, found.reason)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("3", "3"),
        ("2.5", "2.5"),
        ("true", "true"),
        ("null", ""),
        (r'"a\u0001\u0000"', "a\x01\x00"),
        (r'"\ud800b"', "\ufffdb"),
        (r'"\ud83d\ude00"', "\N{GRINNING FACE}"),
    ],
)
def test_values_that_are_not_plain_strings(value: str, text: str):
    found = document_of(parse_line(f'{{"text": {value}}}'.encode(), "f:1"), FieldNames())
    assert isinstance(found, Document)
    assert found.text == text


def test_numbers_that_json_has_not_become_null():
    found = document_of(parse_line(b'{"text": "a", "n": NaN, "m": [Infinity]}', "f:1"), FieldNames())
    assert isinstance(found, Document)
    assert found.fields == {"n": None, "m": [None]}


def test_an_id_is_made_of_the_content():
    def identity(line: str) -> str:
        found = document_of(parse_line(line.encode(), "f:1"), FieldNames())
        assert isinstance(found, Document)
        return found.id

    assert identity('{"text": "a", "n": 1, "m": 2}') == identity('{"m": 2, "n": 1, "text": "a"}')
    assert identity('{"text": "a"}') != identity('{"text": "b"}')
    assert identity('{"text": "a"}') != identity('{"text": "a", "n": 1}')
    assert identity('{"text": "a", "id": 7}') == "7"


def test_a_line_without_end_is_refused_and_the_next_is_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * 1000 + '"}\n{"text": "b"}\n')
    long, short = read(path)
    assert isinstance(long, Refusal) and "longer than" in long.reason and not long.raw
    assert isinstance(short, Document) and short.where.endswith(":2")


@quick
@given(
    st.lists(
        st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")), max_size=20
    )
)
def test_every_line_gives_a_document_or_a_refusal(tmp_path: Path, lines: list[bytes]):
    path = tmp_path / "any.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + b"\n".join(lines))
    found = read(path)
    assert len(found) == 1 + sum(bool(line.strip()) for line in lines)
    assert all(isinstance(item, Document) or item.reason for item in found)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@quick
@given(
    st.dictionaries(
        st.sampled_from(["_id", "id", "text", "title", "_oskit", "x"]) | st.text(max_size=4), json_values
    )
)
def test_every_record_can_be_sent_or_is_refused(record: dict):
    found = document_of(parse_line(json.dumps(record).encode(), "f:1"), FieldNames())
    if isinstance(found, Refusal):
        assert found.reason
        return
    assert 0 < len(found.id.encode()) <= 512
    json.dumps(found.source(), ensure_ascii=False, allow_nan=False).encode()
    found.passage.encode()


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=30)


@quick
@given(st.lists(st.tuples(st.uuids(), texts, texts), max_size=10), st.sampled_from([",", ";", "\t", "|"]))
def test_csv_gives_back_what_was_written(tmp_path: Path, rows: list, delimiter: str):
    path = tmp_path / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text", "title"])
        writer.writerows(rows)
    found = documents_of(path)
    assert [(d.id, d.text, d.title) for d in found] == [(str(i), text, title) for i, text, title in rows]


def test_a_column_s_name_may_go_on_in_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('id,"text\nmore",text\n1,other,mine\n')
    (record,) = read_records(path, wanted=["text"])
    assert isinstance(record, Record) and record.values["text"] == "mine"


@pytest.mark.parametrize(
    ("header", "columns", "told"),
    [
        ("Titel;Text", "'Titel', 'Text'", "semicolons"),
        ("Titel|Body, long|Id", "'Titel', 'Body, long', 'Id'", "bars"),
        ("Titel\tBody", "'Titel', 'Body'", "tabs"),
        ('"Titel;long",Body', "'Titel;long', 'Body'", ""),
        ("Body", "'Body'", ""),
    ],
)
def test_a_separator_is_told_by_the_header_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str, columns: str, told: str
):
    """No semicolon CSV is read as one column, whether its columns have the expected names or not."""
    path = tmp_path / "excel.csv"
    path.write_text(f"{header}\n{header.lower()}\n")
    with pytest.raises(DataError, match=re.escape(f"no column 'text', but {columns}")):
        read(path)
    (record,) = read_records(path, wanted=["query"])
    assert isinstance(record, Record) and ", ".join(map(repr, record.values)) == columns
    assert {line.message for line in caplog.records} == (
        {f"{path} is read as a table separated by {told}"} if told else set()
    )


@quick
@given(st.binary(max_size=200))
def test_csv_never_crashes(tmp_path: Path, content: bytes):
    path = tmp_path / "any.csv"
    path.write_bytes(b"id,text\n" + content)
    for item in read(path):
        assert isinstance(item, Document) or item.reason


def test_csv_rows_that_do_not_fit_are_refused(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'id,text\n1,"a\nb"\n2,too,many\n3,"un"quoted"\n4,caf\xe9\n5,good\n6,"never closed\n7,x\n'
    )
    found = read(path)
    assert [item.where.rsplit(":")[-1] for item in found] == ["2", "4", "5", "6", "7", "8"]
    assert [item.id for item in found if isinstance(item, Document)] == ["1", "5"]
    reasons = [item.reason for item in found if isinstance(item, Refusal)]
    assert ["3 values" in reasons[0], "not CSV" in reasons[1], "not UTF-8" in reasons[2]] == [True] * 3
    last = found[-1]
    assert isinstance(last, Refusal) and last.raw == '6,"never closed\n7,x'


def test_tsv_takes_quotes_as_letters(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\tsay "a\n2\t"b"\n')
    assert [d.text for d in documents_of(path)] == ['say "a', '"b"']


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "header"), (b"id,body\n1,a\n", "no column 'text', but 'id', 'body'.*--text-field"),
     (b"text,text\n", "'text' twice")],
)  # fmt: skip
def test_a_header_that_does_not_fit(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_parquet(tmp_path: Path):
    import datetime

    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({
        "id": [1, 2, 3],
        "body": ["a", None, "c"],
        "when": [datetime.date(2020, 1, 2)] * 3,
        "n": [float("nan"), 1.5, None],
        "blob": [b"\xff", b"ok", None],
        "tags": [["x"], [], None],
    })  # fmt: skip
    parquet.write_table(table, path)
    first, second, _ = documents_of(path, text_field="body")
    assert first == Document(
        "1", "a", fields={"id": 1, "when": "2020-01-02", "n": None, "blob": "/w==", "tags": ["x"]}
    )
    assert (second.text, second.fields["blob"]) == ("", "ok")
    assert count_records([path]) == 3
    with pytest.raises(DataError, match="no column 'text', but 'id', 'body'"):
        read(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="as Parquet"):
        read(path, text_field="body")


def test_parquet_with_text_that_is_not_utf8(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    offsets, letters = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, letters])
    parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert isinstance(good, Document) and isinstance(bad, Refusal)


def test_stdin_and_several_sources(tmp_path: Path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(gzip.compress(b'{"text": "from stdin"}\n'))

    monkeypatch.setattr(sys, "stdin", Stdin)
    path = tmp_path / "a.ndjson"
    path.write_text('{"text": "from file"}\n')
    assert [item.text for item in read_documents([path, "-"])] == ["from file", "from stdin"]
    with pytest.raises(UsageError, match="only once"):
        read_documents(["-", "-"])


def test_sources_are_looked_at_before_the_first_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="no such file"):
        read_documents([path, tmp_path / "missing.jsonl"])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match="--format"):
        read_documents([path, tmp_path / "a.txt"])
    with pytest.raises(DataError, match=r"no corpus\.jsonl"):
        read_documents([tmp_path])


def test_a_json_array_and_utf16_are_recognised(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}]')
    with pytest.raises(DataError, match=r"JSON array.*jq -c"):
        read(path)
    path.write_text('{"text": "a"}', encoding="utf-16")
    with pytest.raises(DataError, match=r"UTF-16.*iconv"):
        read(path)


def test_records_are_counted_where_that_is_cheap(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 3)
    assert count_records([path, path]) == 6
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    assert count_records([path, tmp_path / "b.jsonl.gz"]) is None
    assert count_records(["-"]) is None


def test_hits_are_read_as_they_are_exported(tmp_path: Path):
    path = tmp_path / "dump.jsonl"
    hit = {"_index": "old", "_type": "_doc", "_id": "7", "_score": 1, "_source": {"text": "fox", "n": 1}}
    routed = {**hit, "_routing": "r"}
    other = {**hit, "more": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (hit, routed, other)))
    first, second, third = read(path)
    assert (first.id, first.text, first.fields) == ("7", "fox", {"n": 1})
    assert second.fields == {"n": 1, "_routing": "r"}, "which nobody drops in silence"
    assert isinstance(third, Refusal) and "'more'" in third.reason


def test_an_id_that_is_left_out_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.jsonl"
    path.write_text('{"_id": {"$oid": "x"}, "sku": "1", "text": "a"}\n' * 2)
    assert [item.id for item in read(path, id_field="sku")] == ["1", "1"]
    (line,) = caplog.messages
    assert "'_id', which is left out: ids are in 'sku'" in line


def test_a_large_file_is_not_read_to_count_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for n in range(60_000):  # later records are longer
            file.write('{"text": "' + "x" * (n // 300) + '"}\n')
    assert path.stat().st_size > 6_000_000
    assert count_records([path]) == pytest.approx(60_000, rel=0.2)


def test_large_rows_of_parquet_are_read_a_few_at_a_time(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["fox"] * 60, "page": ["x" * 1_000_000] * 60})
    parquet.write_table(table, path, use_dictionary=False, write_batch_size=4, compression="none")
    before = pyarrow.default_memory_pool().max_memory()
    assert len(read(path)) == 60
    assert pyarrow.default_memory_pool().max_memory() - before < 30_000_000


def test_the_memory_of_what_is_nested_deeper_than_python_calls_is_known():
    deep: list = []
    for _ in range(5_000):
        deep = [deep, {"a": "x" * 100}]
    assert 5_000 * 300 < memory_of(deep) < 5_000 * 500
