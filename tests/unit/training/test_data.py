"""Training data of every kind: what is read is what was written, and nothing is lost in silence."""

from __future__ import annotations

import gc
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oskit.errors import DataError, UsageError
from oskit.training import DataSource, TrainingData, load_training_data

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(*sources: Any, **options: Any) -> TrainingData:
    return load_training_data(list(sources), **options)


def examples(data: TrainingData) -> list[tuple[str, list[str], list[str]]]:
    """Query, positives, other candidates."""
    found = []
    for row in data.examples:
        texts = data.texts_of(row["candidates"])
        found.append((row["query"], texts[: row["positives"]], texts[row["positives"] :]))
    return found


def scores(data: TrainingData) -> list[dict[str, float]]:
    """The scores of each example's candidates; empty where it has none."""
    return [dict(zip(data.texts_of(row["candidates"]), row["scores"], strict=False)) for row in data.examples]


def corpus(data: TrainingData) -> list[str]:
    return list(data.corpus["text"])


PAIR_ROWS = [
    {"query": "how deep", "positive": "two metres"},
    {"anchor": "how deep", "positive": "two metres"},
    {"question": "how deep", "answer": "two metres"},
    {"query": " how deep ", "pos": ["two metres"]},
    {"query": "how deep", "positive_passages": [{"docid": "7", "title": "", "text": "two metres"}]},
    {"query": "how deep", "text": "two metres", "id": 3},
]


@pytest.mark.parametrize("row", PAIR_ROWS)
def test_names_of_pairs(row: dict[str, Any], tmp_path: Path) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [row]))
    assert examples(data) == [("how deep", ["two metres"], [])]
    assert data.sources[0].kind == "pairs"
    assert corpus(data) == ["two metres"]


TRIPLE_ROWS = [
    {"query": "q", "positive": "p", "negatives": ["n1", "n2"]},
    {"anchor": "q", "positive": "p", "negative": "n1", "negative_2": "n2"},
    {"anchor": "q", "positive": "p", "negative_10": "", "negative_2": "n2", "negative_1": "n1"},
    {"query": "q", "pos": ["p"], "neg": ["n1", "n2", "n1"]},
    {"query": "q", "positive": "p", "hard_negatives": ["n1", {"title": "", "text": "n2"}]},
]


@pytest.mark.parametrize("row", TRIPLE_ROWS)
def test_names_of_triples(row: dict[str, Any], tmp_path: Path) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [row]))
    assert examples(data) == [("q", ["p"], ["n1", "n2"])]
    assert data.sources[0].kind == "triples"
    assert corpus(data) == ["p", "n1", "n2"]


def test_several_positives_are_one_example(tmp_path: Path) -> None:
    data = load(jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": ["a", "b", "a"], "neg": ["b", "c"]}]))
    assert examples(data) == [("q", ["a", "b"], ["c"])]
    assert (data.sources[0].positives, data.sources[0].dropped_negatives) == (2, 1)


def test_records_of_one_file_need_not_be_alike(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p"}, {"query": "r", "positive": "s", "negative": "n"}]
    assert examples(load(jsonl(tmp_path / "a.jsonl", rows))) == [("q", ["p"], []), ("r", ["s"], ["n"])]


def test_as_pairs_negatives_are_ignored(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p", "negative": "n"}])
    assert examples(load(DataSource(path=str(path), kind="pairs"))) == [("q", ["p"], [])]


def test_odd_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "Frage;Antwort;Falsch 1;Falsch 2\nwie tief?;zwei Meter;rot;\nwo?;hier;blau;grün\n", "utf-8"
    )
    columns = {"query": "Frage", "positive": "Antwort", "negatives": ["Falsch 1", "Falsch 2"]}
    data = load(DataSource.model_validate({"path": str(path), "columns": columns}))
    assert examples(data) == [
        ("wie tief?", ["zwei Meter"], ["rot"]),
        ("wo?", ["hier"], ["blau", "grün"]),
    ]


@pytest.mark.parametrize(
    "suffix", ["jsonl", "jsonl.gz", "jsonl.xz", "csv", "tsv", "parquet", "saved", "splits"]
)
def test_every_format_gives_the_same(suffix: str, tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "positive": f'p "{i}", ü', "negative": f"n{i}"} for i in range(5)]
    path = tmp_path / f"data.{suffix}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif suffix == "splits":
        import datasets

        splits = {"train": rows, "test": rows[:1]}
        datasets.DatasetDict(
            {name: datasets.Dataset.from_list(part) for name, part in splits.items()}
        ).save_to_disk(path)
    elif suffix == "csv":
        quoted = "".join(f'"{r["query"]}","p ""{i}"", ü",{r["negative"]}\n' for i, r in enumerate(rows))
        path.write_text("query,positive,negative\n" + quoted, encoding="utf-8")
    elif suffix == "tsv":
        path.write_text("query\tpositive\tnegative\n" + "".join("\t".join(r.values()) + "\n" for r in rows))
    else:
        compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.xz": lzma.compress}[suffix]
        path.write_bytes(compress(lines))
    data = load(path)
    assert examples(data) == [(row["query"], [row["positive"]], [row["negative"]]) for row in rows]
    assert (data.sources[0].read, data.sources[0].kept) == (5, 5)


BROKEN: list[tuple[str, str]] = [
    ("oops", "not JSON"),
    ('{"query": "q"}', "no field 'positive'"),
    ('{"query": " ", "positive": "p"}', "'query' is empty"),
    ('{"query": "q", "positive": "\\n"}', "'positive' is empty"),
    ('{"query": "q", "positive": null}', "'positive' is empty"),
    ('{"query": "q", "positive": []}', "'positive' is empty"),
    ('{"query": "q", "positive": ["p", ""]}', r"'positive\[1\]' is empty"),
    ('{"query": ["q"], "positive": "p"}', "'query' holds a list"),
    ('{"query": "q", "positive": "p", "negatives": ["n", null]}', r"'negatives\[1\]' is empty"),
    (
        '{"query": "q", "positive": "p", "negatives": ["n"], "scores": [1, 2, 3]}',
        "3 scores in 'scores' for 2",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_record_is_an_error_that_names_its_line(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "positive": "b"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:3: .*{reason}.*broken: skip"):
        load(path, folder=tmp_path / "out")
    assert not list(tmp_path.rglob("*.arrow*"))


def test_or_it_is_left_out_counted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "positive": "b"}\n' + "".join(f"{line}\n" for line, _ in BROKEN))
    data = load(DataSource(path=str(path), broken="skip"), folder=tmp_path / "out")
    (facts,) = data.sources
    assert (facts.read, facts.kept, facts.refused, facts.examples) == (11, 1, 10, 1)
    assert facts.refusals[0].startswith(f"{path}:2: not JSON")
    assert sum(facts.reasons.values()) == 10
    assert facts.refusals_file is not None
    listed = [json.loads(line) for line in facts.refusals_file.read_text().splitlines()]
    assert [entry["raw"] for entry in listed] == [line for line, _ in BROKEN]
    assert "10 records refused" in str(facts)
    json.dumps(facts.to_dict())


def test_records_of_one_query_are_one_example(tmp_path: Path) -> None:
    rows: Rows = [
        {"query": "q", "positive": "p"},
        {"query": "q", "positive": "p"},
        {"query": "r", "positive": "p"},
        {"query": "q", "positive": "p", "negatives": ["m", "n"]},
        {"query": "q", "positive": "p", "negatives": ["n", "other"]},
        {"query": "q", "positive": "other"},
    ]
    data = load(jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", [rows[0], rows[5]]))
    assert examples(data) == [("q", ["p", "other"], ["m", "n"]), ("r", ["p"], [])]
    assert [facts.duplicates for facts in data.sources] == [1, 2]
    assert [facts.kept for facts in data.sources] == [6, 2]
    assert [(facts.examples, facts.positives) for facts in data.sources] == [(2, 3), (0, 0)]
    assert data.sources[0].dropped_negatives == 1, "what is a negative here and a positive there"
    assert corpus(data) == ["p", "m", "n", "other"]


def test_the_corpus_names_texts_by_their_content(tmp_path: Path) -> None:
    one = load(
        jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "a"}, {"query": "r", "positive": "b"}])
    )
    two = load(jsonl(tmp_path / "b.jsonl", [{"query": "s", "positive": "b"}]))
    assert one.corpus is not None and two.corpus is not None
    assert one.corpus["id"][1] == two.corpus["id"][0] != one.corpus["id"][0]


def test_a_limit_counts_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" + "".join(f'{{"query": "q{i}", "positive": "p"}}\n' for i in range(9)))
    data = load(DataSource(path=str(path), broken="skip", limit=3))
    assert [row[0] for row in examples(data)] == ["q0", "q1", "q2"]
    assert (data.sources[0].read, data.sources[0].refused) == (4, 1)


def test_a_share_of_the_queries_is_drawn_from_all_of_a_source(tmp_path: Path) -> None:
    rows = [{"query": f"q{i // 2}", "positive": f"p{i}"} for i in range(400)]
    path = str(jsonl(tmp_path / "a.jsonl", rows))
    data = load(DataSource(path=path, share=0.25))
    drawn = [int(query[1:]) for query, positives, *_ in examples(data) if len(positives) == 2]
    assert len(drawn) == len(data) == 200 - data.sources[0].undrawn
    assert 35 < len(drawn) < 65 and min(drawn) < 40 and max(drawn) > 160
    assert len(data.corpus) == 400 and "queries not drawn" in str(data.sources[0])
    assert examples(load(DataSource(path=path, share=0.25))) == examples(data)


def beir(folder: Path, split: str = "train") -> Path:
    (folder / "qrels").mkdir(parents=True)
    jsonl(
        folder / "corpus.jsonl",
        [
            {"_id": "d1", "title": "Depth", "text": "two metres"},
            {"_id": "d2", "title": "", "text": "the colour"},
            {"_id": "d3", "title": "", "text": "never judged"},
            {"_id": "d4", "title": "", "text": ""},
        ],
    )
    jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "how deep"}, {"_id": "q2", "text": "what colour"}])
    lines = ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0", "q1\td4\t0", "q2\td1\t0"]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_judgements_are_pairs_and_negatives(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set")
    data = load(folder)
    assert examples(data) == [("how deep", ["Depth two metres"], ["the colour"])]
    assert corpus(data) == ["Depth two metres", "the colour", "never judged"]
    (facts,) = data.sources
    assert (facts.kind, facts.read, facts.kept, facts.without_examples) == ("beir", 6, 6, 5)
    assert facts.dropped_negatives == 1, "the empty document"
    assert examples(load(DataSource(path=str(folder), limit=1))) == examples(data), "so many queries"
    plain = load(DataSource(path=str(folder), judged_negatives=False))
    assert examples(plain) == [("how deep", ["Depth two metres"], [])]
    with pytest.raises(DataError, match="no training examples"):
        load(DataSource(path=str(folder), min_relevance=3))


def test_judgements_of_what_is_not_there(tmp_path: Path) -> None:
    folder = beir(tmp_path / "set", "dev")
    with pytest.raises(DataError, match=r"split 'train'.*It has: dev"):
        load(folder)
    (folder / "qrels" / "dev.tsv").write_text("q1\td9\t1\nq2\td2\t1\n")
    with pytest.raises(DataError, match="query 'q1': its document 'd9' is not in the corpus"):
        load(DataSource(path=str(folder), split="dev"))
    data = load(DataSource(path=str(folder), split="dev", broken="skip"))
    assert examples(data) == [("what colour", ["the colour"], [])]
    assert data.sources[0].refused == 1


def test_documents_alone(tmp_path: Path) -> None:
    rows = [
        {"title": f"The bridge number {i}", "text": f"It was built in {1900 + i}. It spans river {i}. " * 3}
        for i in range(6)
    ]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"title": "", "text": "short"}])
    data = load(path)
    (facts,) = data.sources
    assert facts.kind == "documents"
    assert (facts.read, facts.kept, facts.without_examples) == (7, 7, 1)
    titles = [row for row in examples(data) if row[0].startswith("The bridge")]
    assert len(titles) == 6
    # What a query is to find is in the corpus, letter for letter, and no other form of that document is.
    assert all(len(row[1]) == 1 for row in examples(data))
    assert len(corpus(data)) == 7
    assert examples(load(path)) == examples(data)
    assert examples(load(path, seed=1)) != examples(data)


def test_a_query_of_too_many_documents_is_dropped(tmp_path: Path) -> None:
    rows = [
        {"title": "Introduction", "text": f"Here is text number {i}, which is long enough."} for i in range(4)
    ]
    rows += [{"title": "Rare title", "text": "And here is another one, which is long enough as well."}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    source = {"path": str(path), "queries": {"kinds": ["title"]}}
    data = load(DataSource.model_validate(source))
    assert [row[0] for row in examples(data)] == ["Rare title"]
    assert (data.sources[0].examples, data.sources[0].generic) == (1, 4)


def test_a_folder_keeps_the_tables(tmp_path: Path) -> None:
    import datasets

    path = jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    load(path, folder=tmp_path / "run" / "data")
    again = datasets.Dataset.from_file(str(tmp_path / "run" / "data" / "examples.arrow"))
    assert again[0] == {"query": "q", "candidates": [0], "positives": 1, "scores": [], "itself": -1}


def test_a_temporary_folder_goes_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    data = load(source)
    assert len(list(tmp_path.rglob("*.arrow"))) == 2
    del data
    gc.collect()
    assert list(tmp_path.iterdir()) == [source]


def test_many_rows_in_the_order_of_the_sources(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", [{"query": f"a{i}", "positive": "p"} for i in range(2500)])
    second = jsonl(tmp_path / "b.jsonl", [{"query": f"b{i}", "positive": "p"} for i in range(10)])
    counted = []
    data = load(first, second, progress=counted.append)
    assert [row[0] for row in examples(data)] == [f"a{i}" for i in range(2500)] + [f"b{i}" for i in range(10)]
    assert sum(counted) == 2510


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"frage": "q", "antwort": "a"}], "no column for the text of training data, but 'frage', 'antwort'"),
        ([{"query": "q", "reply": "a"}], "no column for the positive"),
        ([], "no training examples"),
    ],
)
def test_what_has_no_known_columns(rows: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(("name", "by"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_table_whose_first_line_is_a_record_is_told_so(name: str, by: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"what is water{by}wet and blue\nwhat is fire{by}hot and red\n")
    with pytest.raises(DataError, match="if the first line is a record, put one with the columns' names"):
        load(path)


def test_a_negative_that_says_what_a_positive_says_is_none() -> None:
    """However either is written, and whichever record says so."""
    rows = [
        {"query": "q", "positive": "An e-mail server.", "negatives": ["an E-MAIL server", "a mail box"]},
        {"query": "q", "positive": "it holds mail", "negatives": ["It holds mail!", "a mail box"]},
    ]
    data = TrainingData.of(rows)
    texts = data.corpus["text"][:]
    (candidates,) = data.examples["candidates"][:]
    assert [texts[row] for row in candidates] == ["An e-mail server.", "it holds mail", "a mail box"]
    assert data.sources[0].dropped_negatives == 2


def test_triples_that_were_asked_for_must_have_negatives(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    with pytest.raises(DataError, match="no column for the negatives of triples"):
        load(DataSource(path=str(path), kind="triples"))


def test_what_cannot_be_a_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no training data"):
        load()
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"has no corpus\.jsonl"):
        load(tmp_path)
    (tmp_path / "a.jsonl").write_text('[{"query": "q", "positive": "p"}]')
    with pytest.raises(DataError, match="begins a JSON array"):
        load(tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="the kind beir needs a folder"):
        load(DataSource(path=str(tmp_path / "a.jsonl"), kind="beir"))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"path": "a", "hub": "b"},
        {"path": "a", "subset": "en"},
        {"hub": "a", "kind": "beir"},
        {"paht": "a"},
    ],
)
def test_a_source_is_one_place(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        DataSource.model_validate(given)


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        DataError, match=r"team/pairs/en\[train\] cannot be loaded from the Hugging Face Hub"
    ) as e:
        load(DataSource(hub="team/pairs", subset="en"))
    assert "\n" not in str(e.value)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"anchor": ["q", ""], "positive": ["p", "x"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(DataSource(hub="team/pairs", subset="en", split="dev", revision="v1", broken="skip"))
    assert examples(data) == [("q", ["p"], [])]
    assert asked == [(("team/pairs", "en"), {"split": "dev", "revision": "v1"})]
    assert data.sources[0].refusals == ("team/pairs/en[dev]:2: 'anchor' is empty",)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "query": st.one_of(st.text(max_size=3), st.none(), st.lists(st.text(max_size=2), max_size=2)),
                "positive": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=2), max_size=3)),
                "negative": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=2), max_size=3)),
            },
        ),
        max_size=6,
    )
)
def test_every_record_is_kept_or_refused(rows: Rows) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        whole: Rows = [{"query": "first", "positive": "p0", "negative": "n0"}, *rows]
        path = jsonl(Path(folder) / "a.jsonl", whole)
        data = load(DataSource(path=str(path), broken="skip"))
        (facts,) = data.sources
        assert facts.read == len(whole) == facts.kept + facts.refused
        assert facts.examples == len(data.examples) >= 1
        known = set(corpus(data))
        for query, positives, negatives in examples(data):
            assert query.strip() == query != ""
            assert positives and {*positives, *negatives} <= known
            assert not set(positives) & set(negatives)
