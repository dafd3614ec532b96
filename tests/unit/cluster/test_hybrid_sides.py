"""What a hybrid search is, as it is written."""

from __future__ import annotations

import pytest

from oskit.cluster.search.hybrid import Hybrid, given_vector
from oskit.errors import DataError, UsageError


def test_weights_of_another_sum_are_divided_by_it_and_told() -> None:
    found = Hybrid.parse(" bm25=3, bm25:title=1, sparse=4", fusion="rrf:10", depth=50)
    assert found.to_dict() == {
        "weights": {"bm25": 0.375, "bm25:title": 0.125, "sparse": 0.5},
        "fusion": "rrf:10",
        "pagination_depth": 50,
    }
    assert "sum, 8" in str(found.told)
    assert Hybrid.parse("bm25=0.3,sparse=0.7").told is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bm25=1", "2 to 5 sides"),
        ("bm25=1,bm25:a=1,bm25:b=1,bm25:c=1,bm25:d=1,sparse=1", "2 to 5 sides"),
        ("bm25=1,bm25=2", "twice"),
        ("bm25=1,sparse=0", "above 0.*Leave a side out"),
        ("bm25=1,sparse=-1", "above 0"),
        ("bm25=1,sparse=nan", "above 0"),
        ("bm25=1,sparse", "no side"),
        ("bm25=1,sparse:field=1", "no side"),
        ("bm25=1,splade=1", "no side"),
        ("bm25=1,dense=1", "--dense-model"),
        ("", "2 to 5 sides"),
    ],
)
def test_what_is_no_hybrid_search_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Hybrid.parse(text)


def test_what_makes_dense_vectors_needs_a_side_for_them() -> None:
    with pytest.raises(UsageError, match="dense side"):
        Hybrid.parse("bm25=1,sparse=1", dense_model="e5")
    with pytest.raises(UsageError, match="dense field"):
        Hybrid.parse("bm25=1,sparse=1", dense_field="vec")
    found = Hybrid.parse("bm25=1,dense=1", dense_model="e5", dense_field="vec")
    assert [side.name for side in found.sides] == ["bm25", "dense:vec"]


def test_a_given_vector_is_that_of_one_query(tmp_path) -> None:
    path = tmp_path / "vector.json"
    path.write_text("[1, -0.5]")
    for given in ("[1, -0.5]", str(path)):
        assert given_vector(given)(["query"]) == [[1.0, -0.5]]
    with pytest.raises(UsageError, match="one query"):
        given_vector("[1]")(["a", "b"])
    for wrong in ("[]", "[1, null]", '["a"]', "[1", "[NaN]", str(tmp_path / "none.json")):
        with pytest.raises(DataError):
            given_vector(wrong)
