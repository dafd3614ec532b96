"""Tables of query weights, read, put over a vocabulary and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from oskit.archive.idf import find_idf, idf_table, idf_vector, read_idf, write_idf
from oskit.archive.vocabulary import Vocabulary
from oskit.errors import BrokenEncoderError
from tests import tiny


def vocabulary(kind: tiny.Kind, size: int | None = None) -> Vocabulary:
    return Vocabulary(tiny.fast_tokenizer(kind).backend_tokenizer, size=size)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlmr"])
def test_written_and_read_again_it_is_the_same(kind: tiny.Kind, tmp_path: Path) -> None:
    words = vocabulary(kind)
    # Ids with one key have one weight, else the cluster could not tell them apart.
    vector = np.array([len(key) / 8 for key in words.keys], dtype=np.float32) * words.weight_mask()
    write_idf(tmp_path / "idf.json", vector, words)
    table = read_idf(tmp_path / "idf.json")
    np.testing.assert_array_equal(idf_vector(table, words), vector)


def test_every_key_of_the_vocabulary_is_written() -> None:
    """The cluster gives a token that is missing the weight 1."""
    words = vocabulary("bert")
    table = idf_table(np.zeros(words.size, dtype=np.float32), words)
    assert {key for key in words.keys if key} <= set(table)
    assert table["[CLS]"] == table["[UNK]"] == 0
    assert len(table) == words.size


def test_special_tokens_weigh_nothing_whatever_the_table_says() -> None:
    words = vocabulary("bert")
    vector = idf_vector({"[CLS]": 2.0, "[UNK]": 3.0, "bridge": 4.0}, words)
    assert vector.sum() == 4.0
    assert vector[words.id_of("bridge") or 0] == 4.0
    assert idf_table(np.ones(words.size, dtype=np.float32), words)["[SEP]"] == 0


def test_what_is_no_token_does_not_end_up_on_the_unknown_token() -> None:
    assert idf_vector({"antidisestablishmentarianism": 7.0}, vocabulary("bert")).sum() == 0


def test_a_key_that_several_ids_share_reaches_all_of_them() -> None:
    words = vocabulary("xlmr")
    key = sorted(words.ambiguous_keys)[0]
    vector = idf_vector({key: 2.5}, words)
    assert [i for i, weight in enumerate(vector) if weight == 2.5] == [
        i for i, other in enumerate(words.keys) if other == key
    ]


def test_a_spelling_is_stronger_than_a_key() -> None:
    words = vocabulary("xlmr")
    vector = idf_vector({"▁road": 1.5, "road": 2.5}, words)
    assert sorted(weight for weight in vector.tolist() if weight) == [1.5, 2.5]


def test_padding_columns_weigh_nothing() -> None:
    words = vocabulary("bert", size=200)
    table = {words.token_of(i): 1.0 for i in range(words.size)}
    assert idf_vector(table, words)[161:].sum() == 0


def test_the_older_form(tmp_path: Path) -> None:
    (tmp_path / "query_token_weights.txt").write_text("a\t1.5\r\n\u2028\t2\n#\t3e-1\n\n", encoding="utf-8")
    path = find_idf(tmp_path)
    assert path is not None
    assert read_idf(path) == {"a": 1.5, "\u2028": 2.0, "#": 0.3}


@pytest.mark.parametrize("line", ["no tab here", "a\tb", "a\tinf", "a\t-1"])
def test_a_broken_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "query_token_weights.txt"
    path.write_text(f"fine\t1\n{line}\n")
    with pytest.raises(BrokenEncoderError, match=r"query_token_weights\.txt"):
        read_idf(path)


def test_json_is_preferred(tmp_path: Path) -> None:
    for name in ("idf.json", "query_token_weights.txt"):
        (tmp_path / name).write_text(json.dumps({"a": 1}))
    path = find_idf(tmp_path)
    assert path is not None and path.name == "idf.json"
