"""Sparsity figures worked out by hand."""

from __future__ import annotations

import pytest

from oskit.evaluation.offline.sparsity import ActivationCounter, sparsity


def _count(encoder, texts):
    counter = ActivationCounter(encoder.vocabulary.size)
    for text in texts:
        counter.update(encoder.document_matrix([text]))
    return counter


def test_flops_is_the_mean_number_of_products_over_all_pairs(encoder):
    queries, documents = ["cat dog", "cat"], ["cat dog cow", "dog", "", "cat"]
    result = sparsity(_count(encoder, queries), _count(encoder, documents))
    products = [len(set(q.split()) & set(d.split())) for q in queries for d in documents]
    assert result.flops == pytest.approx(sum(products) / len(products))
    assert result.query_active == 1.5
    assert result.document_active == 1.25
    assert (result.postings, result.postings_terms, result.postings_bytes) == (5, 3, 40)
