"""Files that nobody has cleaned, loaded into a real index: every record is in it or refused with a reason."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opensearchpy import OpenSearch
from tiny_models import TinyModels, tiny

from oskit.cli.main import main
from oskit.cluster.index.mapping import delete_index

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

odd_files = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,  # a run that fails must fail again
    suppress_health_check=[HealthCheck.too_slow],
)

any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates, too
words = st.sampled_from(["quick fox", "building permit", "", " ", "sparse " * 400])
texts = words | any_text
ids = st.sampled_from(["a", "b", "a/b", "ä", "", "x" * 600]) | st.integers(-3, 3) | st.none()
values = st.none() | st.booleans() | st.integers() | st.floats() | any_text
odd_values = values | st.lists(values, max_size=2) | st.dictionaries(any_text, values, max_size=2)


@st.composite
def json_lines(draw: st.DrawFn) -> tuple[bytes, int]:
    """A file, and how many records it has: every line that is not blank."""
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        record = {"_id": draw(ids), "text": draw(texts | odd_values), "n": draw(odd_values)}
        if draw(st.booleans()):
            record["title"] = draw(texts | odd_values)
        line = json.dumps(record).encode()
        if draw(st.integers(0, 3)) == 0:  # broken somewhere, or no document at all
            line = draw(st.sampled_from([line[: len(line) // 2], b"\xc3(" + line, b"[1, 2]", b"null", b"{}"]))
        lines.append(line)
    return b"\n".join(lines) + draw(st.sampled_from([b"", b"\n", b"\n \n"])), len(lines)


plain_text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)


@st.composite
def csv_file(draw: st.DrawFn) -> tuple[bytes, int]:
    """Cells with quotes, commas and line breaks in them, quoted in one of the ways that programs use."""
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerow(["_id", "text", "n"])
    cells = plain_text | st.sampled_from(['a "quoted" word', "one, two", "two\nlines", "=1+1", "NULL"])
    rows = draw(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8))
    writer.writerows(rows)
    return file.getvalue().encode(), len(rows)


_columns = {
    "_id": [pa.string(), pa.int64(), pa.large_string()],
    "text": [pa.string(), pa.large_string(), pa.int32(), pa.list_(pa.string()), pa.binary()],
    "n": [
        pa.float64(),
        pa.timestamp("us"),
        pa.date32(),
        pa.bool_(),
        pa.struct([("a", pa.int8())]),
        pa.null(),
    ],
}


def cells_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return plain_text | words
    if pa.types.is_list(kind):
        return st.lists(plain_text, max_size=2)
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({"a": st.none() | st.integers(-128, 127)})
    if pa.types.is_timestamp(kind):
        return st.datetimes()
    if pa.types.is_date(kind):
        return st.dates()
    return {
        pa.binary(): st.binary(max_size=9),
        pa.bool_(): st.booleans(),
        pa.float64(): st.floats(),
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.int32(): st.integers(-(2**31), 2**31 - 1),
        pa.null(): st.none(),
    }[kind]


@st.composite
def parquet_file(draw: st.DrawFn) -> tuple[bytes, int]:
    """Columns of types that a text or an id may or may not have."""
    rows = draw(st.integers(1, 8))
    columns = {}
    for name, kinds in _columns.items():
        kind = draw(st.sampled_from(kinds))
        cells = draw(st.lists(st.none() | cells_of(kind), min_size=rows, max_size=rows))
        columns[name] = pa.array(cells, kind)
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue(), rows


def load(client: OpenSearch, how: list[str], capsys: pytest.CaptureFixture[str], path: Path) -> int:
    """Load a file by the command, compare its report with the index and the refused; the records it read."""
    index = f"odd-{uuid.uuid4().hex[:10]}"
    letters = path.parent / "refused.jsonl"
    try:
        code = main(["ingest", index, str(path), "--dead-letter", str(letters), "--json", *how])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert code in (0, 10), err
        report: dict[str, Any] = json.loads(out)
        assert report["read"] == report["indexed"] + report["refused"] + report["duplicates"], report
        refused = letters.read_text(encoding="utf-8").splitlines() if letters.exists() else []
        assert (code == 10, len(refused)) == (bool(report["refused"]), report["refused"])
        assert all(json.loads(line)["_oskit"]["reason"] for line in refused)
        client.indices.refresh(index=index)
        assert client.count(index=index)["count"] == report["indexed"]
        return int(report["read"])
    finally:
        delete_index(client, index)


@pytest.mark.parametrize("encode", ["client", "cluster"])
@pytest.mark.parametrize(
    ("name", "files"),
    [("odd.jsonl", json_lines()), ("odd.csv", csv_file()), ("odd.parquet", parquet_file())],
    ids=["jsonl", "csv", "parquet"],
)
def test_every_record_of_an_odd_file_is_indexed_or_refused(
    client: OpenSearch,
    cluster_url: str,
    tiny: TinyModels,
    capsys: pytest.CaptureFixture[str],
    encode: str,
    name: str,
    files: st.SearchStrategy[tuple[bytes, int]],
) -> None:
    how = ["--archive", str(tiny.archive)] if encode == "client" else ["--model", tiny.encoder_id]

    @odd_files
    @given(file=files)
    def tried(file: tuple[bytes, int]) -> None:
        content, records = file
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            assert load(client, [*how, "--url", cluster_url], capsys, path) == records

    tried()
