"""Token weights from matrices and back, and pruning by the rules of neural-search."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from oskit.archive.token_weights import Prune, matrix_to_weights, prune, prune_matrix
from oskit.archive.vocabulary import Vocabulary
from oskit.errors import UsageError

WEIGHTS = {"a": 2.0, "b": 1.0, "c": 0.5, "d": 0.2, "e": 0.1}


@pytest.fixture(scope="module")
def bert() -> Vocabulary:
    return Vocabulary(tiny.fast_tokenizer("bert").backend_tokenizer)


@pytest.fixture(scope="module")
def xlmr() -> Vocabulary:
    return Vocabulary(tiny.fast_tokenizer("xlmr").backend_tokenizer)


def matrix(vocabulary: Vocabulary, *rows: dict[int, float]) -> csr_matrix:
    dense = np.zeros((len(rows), vocabulary.size), dtype=np.float32)
    for i, row in enumerate(rows):
        for column, weight in row.items():
            dense[i, column] = weight
    return csr_matrix(dense)


def test_weights_come_heaviest_first_by_either_key(bert: Vocabulary) -> None:
    hello, world = bert.id_of("hello"), bert.id_of("world")
    assert hello is not None
    assert world is not None
    found = matrix(bert, {hello: 0.5, world: 1.5}, {})
    assert [list(row.items()) for row in matrix_to_weights(found, bert)] == [
        [("world", 1.5), ("hello", 0.5)],
        [],
    ]
    assert matrix_to_weights(found, bert, key="id")[0] == {str(world): 1.5, str(hello): 0.5}


def test_special_tokens_and_weights_of_zero_and_below_are_left_out(bert: Vocabulary) -> None:
    found = matrix(bert, {0: 1.0, 2: 2.0, 50: -1.0, 51: 1.0})
    found.data[found.indices == 51] = 0.0
    assert matrix_to_weights(found, bert) == [{}]


def test_of_tokens_with_one_text_the_highest_id_wins_as_on_the_cluster(xlmr: Vocabulary) -> None:
    ids = [i for i, key in enumerate(xlmr.keys) if key == "hello"]
    assert len(ids) == 2
    found = matrix(xlmr, {ids[0]: 3.0, ids[1]: 1.0})
    assert matrix_to_weights(found, xlmr) == [{"hello": 1.0}]
    assert matrix_to_weights(found, xlmr, key="id") == [{str(ids[0]): 3.0, str(ids[1]): 1.0}]


@given(st.dictionaries(st.integers(5, 160), st.floats(0.0625, 10, width=32), max_size=30))
def test_every_weight_has_its_tokens_key_and_its_id(row: dict[int, float]) -> None:
    vocabulary = Vocabulary(tiny.fast_tokenizer("bert").backend_tokenizer)
    found = matrix(vocabulary, row, {})
    assert matrix_to_weights(found, vocabulary, key="id") == [{str(i): row[i] for i in row}, {}]
    assert matrix_to_weights(found, vocabulary) == [{vocabulary.token_of(i): row[i] for i in row}, {}]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("max_ratio:0", "abcde"),
        ("max_ratio:0.1", "abcd"),
        ("max_ratio:0.25", "abc"),  # 0.5 is exactly a quarter of 2.0, and stays
        ("max_ratio:0.99", "a"),
        ("top_k:1", "a"),
        ("top_k:3", "abc"),
        ("top_k:99", "abcde"),
        ("abs_value:0.5", "abc"),
        ("abs_value:3", ""),
        ("alpha_mass:0", ""),
        ("alpha_mass:0.5", ""),  # the first alone is 2.0 of 3.8, more than a half
        ("alpha_mass:0.8", "ab"),
        ("alpha_mass:0.95", "abc"),
    ],
)
def test_prune(rule: str, kept: str) -> None:
    assert prune(WEIGHTS, Prune.parse(rule)) == {name: WEIGHTS[name] for name in kept}
    shuffled = dict(sorted(WEIGHTS.items(), reverse=True))
    assert list(prune(shuffled, Prune.parse(rule))) == sorted(kept, reverse=True)
    assert prune({}, Prune.parse(rule)) == {}


def test_of_equal_weights_top_k_keeps_exactly_k() -> None:
    assert len(prune(dict.fromkeys("abcdef", 1.0), Prune("top_k", 4))) == 4


@pytest.mark.parametrize(
    "text",
    [
        *("", "max_ratio", "max_ratio:", "max_ratio:x", "max_ratio:1", "max_ratio:-0.1", "max_ratio:nan"),
        *("top_k:0", "top_k:2.5", "top_k:-1", "alpha_mass:1", "abs_value:-1", "abs_value:inf", "none:0"),
    ],
)
def test_rules_that_cannot_be_right_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Prune.parse(text)
    assert caught.value.hint


def test_a_rule_reads_as_it_prints() -> None:
    for text in ("max_ratio:0.1", "top_k:200", "alpha_mass:0.5", "abs_value:0.05"):
        assert str(Prune.parse(text)) == text


@given(
    rows=st.lists(
        st.dictionaries(st.integers(0, 99), st.sampled_from([-1.0, 0.0, 0.1, 0.5, 0.5, 1.0, 3.0])), max_size=5
    ),
    rule=st.sampled_from(["max_ratio:0.2", "top_k:2", "alpha_mass:0.7", "abs_value:0.3"]),
)
def test_a_matrix_is_pruned_as_its_rows_are(
    bert: Vocabulary, rows: list[dict[int, float]], rule: str
) -> None:
    whole = matrix(bert, *rows) if rows else csr_matrix((0, bert.size), dtype=np.float32)
    pruned = prune_matrix(whole, Prune.parse(rule))
    assert pruned.shape == whole.shape
    assert matrix_to_weights(pruned, bert, key="id") == [
        prune(row, Prune.parse(rule)) for row in matrix_to_weights(whole, bert, key="id")
    ]
