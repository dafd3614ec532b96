"""What a batch is made of: drawn afresh in each epoch, and nothing that is known to answer is a negative."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from oskit.encoder.model import NeuralSparseEncoder
from oskit.training import TrainingData
from oskit.training.data.arrow import LABELLED, RowWriter, open_rows
from oskit.training.objective.batches import (
    Draw,
    DrawnBatches,
    DrawnExamples,
    ExampleCollator,
    KnownPairs,
    text_keys,
)
from tests import tiny


def texts_of(data: TrainingData, draw: Draw) -> list[str]:
    return data.texts_of(draw.documents.tolist())


def epoch_of(drawn: DrawnExamples, epoch: int) -> list[Draw]:
    return drawn.draw(np.arange(len(drawn)), epoch)


def hundred(queries: int = 6) -> TrainingData:
    """Queries with two positives and 100 scored candidates beside them; the best scored are the last."""
    return TrainingData.of(
        {
            "query": f"q{n}",
            "positives": [f"p{n}a", f"p{n}b"],
            "negatives": [f"n{n}-{i}" for i in range(100)],
            "scores": [50.0, 40.0, *map(float, range(100))],
        }
        for n in range(queries)
    )


def test_eight_of_a_hundred_the_best_and_the_rest_fresh_in_each_epoch() -> None:
    data = hundred()
    drawn = DrawnExamples(data.examples, data.corpus, negatives=7, top=3, seed=1)
    assert len(drawn) == 12, "every known positive is visited"
    seen: Counter[str] = Counter()
    for epoch in range(40):
        draws = epoch_of(drawn, epoch)
        firsts = Counter(texts_of(data, draw)[0] for draw in draws)
        assert firsts == {f"p{n}{letter}": 1 for n in range(6) for letter in "ab"}
        for draw in draws:
            _, *others = texts_of(data, draw)
            number = data.examples[draw.example]["query"][1:]
            assert draw.positives.tolist() == [True] + [False] * 7
            assert others[:3] == [f"n{number}-{i}" for i in (99, 98, 97)], "the best scored"
            assert len(set(others)) == 7 and all(text.startswith(f"n{number}-") for text in others)
            if draw.example == 0:
                seen.update(others[3:])
    assert len(seen) > 75, "of the other 97 nearly all came in 80 visits of four"
    again = DrawnExamples(data.examples, data.corpus, negatives=7, top=3, seed=1)
    for one, other in zip(epoch_of(drawn, 3), epoch_of(again, 3), strict=True):
        assert one.documents.tolist() == other.documents.tolist(), "the same seed and epoch"
    other_seed = DrawnExamples(data.examples, data.corpus, negatives=7, top=3, seed=2)
    assert [d.documents.tolist() for d in epoch_of(other_seed, 3)] != [
        d.documents.tolist() for d in epoch_of(drawn, 3)
    ]


def test_too_few_candidates_are_filled_up_with_other_documents_and_no_example_is_left_out() -> None:
    data = TrainingData.of(
        [
            {"query": "q", "positives": ["p", "p2"], "negatives": ["n"]},
            {"query": "r", "positives": ["p3"], "negatives": []},
            *({"query": f"s{i}", "positives": [f"other {i}"]} for i in range(50)),
        ]
    )
    drawn = DrawnExamples(data.examples, data.corpus, negatives=4, top=2, seed=0)
    found: set[str] = set()
    for epoch in range(20):
        draws = epoch_of(drawn, epoch)
        assert len(draws) == 53 and all(len(draw.documents) == 5 for draw in draws)
        for draw in draws:
            texts = texts_of(data, draw)
            assert len(set(texts)) == 5, "nothing is repeated"
            assert draw.positives.tolist() == [True, False, False, False, False]
        assert "n" in texts_of(data, draws[0])
        assert not {"p", "p2"} & set(texts_of(data, draws[0])[1:]), "a positive is no negative of its query"
        found |= set(texts_of(data, draws[2]))
    assert len(found) > 30
    tiny_data = TrainingData.of([{"query": "q", "positive": "p"}])
    (only,) = epoch_of(DrawnExamples(tiny_data.examples, tiny_data.corpus, negatives=2, top=1), 0)
    assert only.documents.tolist() == [0, 0, 0], "a corpus that has no other document"


def test_without_a_known_positive_the_best_scored_comes_first() -> None:
    scores = [math.nan, 0.5, 9.0, 1.0, 8.0]
    data = TrainingData.of([{"query": "q", "docs": ["a", "b", "c", "d", "e"], "scores": [None, *scores[1:]]}])
    drawn = DrawnExamples(data.examples, data.corpus, negatives=3, top=2)
    (draw,) = epoch_of(drawn, 0)
    assert not draw.positives.any()
    assert texts_of(data, draw)[:3] == ["c", "e", "d"]


def test_labels_come_with_their_documents(tmp_path: Path) -> None:
    data = hundred(2)
    with RowWriter(tmp_path / "labelled.arrow", LABELLED) as writer:
        for row in data.examples:
            writer.add(*row.values(), [float(candidate) for candidate in row["candidates"]])
    labelled = open_rows(tmp_path / "labelled.arrow")
    for draw in epoch_of(DrawnExamples(labelled, data.corpus, negatives=102, top=2), 0):
        assert draw.labels is not None
        own = set(labelled[draw.example]["candidates"])
        for document, label in zip(draw.documents.tolist(), draw.labels.tolist(), strict=True):
            assert label == document if document in own else math.isnan(label)
        assert sum(map(math.isnan, draw.labels.tolist())) == 2, "100 of 102 negatives are its own"


def test_the_query_itself_is_never_drawn() -> None:
    """Of questions that are paired with each other, each is the best candidate for itself."""
    rows = [{"query": f"question {i}", "positive": f"question {i + 1}"} for i in range(0, 12, 2)]
    data = TrainingData.of([*rows, {"query": "question 1", "positive": "question 0"}])
    drawn = DrawnExamples(data.examples, data.corpus, negatives=4, top=2)
    last = [draw for epoch in range(20) for draw in epoch_of(drawn, epoch) if draw.example == 6]
    assert all("question 1" not in texts_of(data, draw) for draw in last)


def test_every_visit_once_in_an_epoch_in_batches_of_like_length() -> None:
    data = TrainingData.of(
        {"query": f"q{i}", "positive": f"p{i} " + "x" * (i * 37 % 600)} for i in range(530)
    )
    drawn = DrawnExamples(data.examples, data.corpus, negatives=0, top=0)
    sampler = DrawnBatches(drawn, 16, drop_last=False, seed=3)
    batches = list(sampler)
    assert sorted(draw.example for batch in batches for draw in batch) == list(range(530))
    assert len(batches) == len(sampler) == 34
    spread = [np.ptp(drawn.longest(batch)) for batch in batches[:-1]]
    assert np.mean(spread) < 60, "of 600"
    sampler.epoch = 1
    assert [[d.example for d in batch] for batch in sampler] != [[d.example for d in b] for b in batches]
    assert len(list(DrawnBatches(drawn, 16, drop_last=True, seed=3))) == 33
    shares = [list(DrawnBatches(drawn, 16, False, seed=3, rank=rank, processes=2)) for rank in range(2)]
    for one, other, whole in zip(*shares, batches, strict=True):
        both = sorted(draw.example for draw in (*one, *other))
        assert both == sorted(draw.example for draw in whole), "two processes share the same batch"


def test_a_pair_takes_a_few_bytes() -> None:
    """However long the texts are; 8 more for what torch holds, the keys of known pairs."""
    count = 8000
    rows = ({"query": f"question {n}", "positive": f"answer {n} " * 30} for n in range(count))
    data = TrainingData.of(rows)
    gc.collect()
    tracemalloc.start()
    try:
        known = KnownPairs(data.examples, data.corpus)
        drawn = DrawnExamples(data.examples, data.corpus, negatives=3, top=1)
        sampler = iter(DrawnBatches(drawn, 8, drop_last=False))
        next(sampler)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 48
    assert known.contains(torch.from_numpy(text_keys(["question 7"])), torch.tensor([7])).all()


def test_known_pairs() -> None:
    """An answer is one however it is written, and for whoever asks the same."""
    data = TrainingData.of(
        [
            {"query": "How deep?", "positives": ["two metres", "six feet"], "negatives": ["red"]},
            {"query": "what's the colour", "positives": ["red"], "negatives": ["it is RED", "Six Feet!"]},
        ]
    )
    known = KnownPairs(data.examples, data.corpus)
    rows = {text: row for row, text in enumerate(data.passages())}
    queries = torch.from_numpy(text_keys(["how deep", "Whats the colour?", "who"]))
    texts = ("two metres", "six feet", "Six Feet!", "red", "it is RED")
    documents = torch.tensor([rows[text] for text in texts])
    expected = [[True, True, True, False, False], [False, False, False, True, False], [False] * 5]
    assert known.contains(queries[:, None], documents[None]).tolist() == expected


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> NeuralSparseEncoder:
    folder = tiny.build("bert", tmp_path_factory.mktemp("drawing") / "bert")
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu").eval()


class Asked:
    """Remembers which rows were asked for."""

    def collate(self, query_rows: Any, document_rows: Any) -> dict[str, torch.Tensor]:
        return {"teacher_x": torch.from_numpy(np.concatenate([query_rows[:, None], document_rows], axis=1))}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_all_that_the_loss_needs(encoder: NeuralSparseEncoder, workers: int) -> None:
    words = tiny.WORDS
    data = TrainingData.of(
        {"query": words[n], "positive": " ".join(words[n : n + 1 + n % 5]), "negative": f"a {words[n + 9]}"}
        for n in range(12)
    )
    drawn = DrawnExamples(data.examples, data.corpus, negatives=2, top=1)
    loader: Any = DataLoader(
        drawn,  # type: ignore[arg-type]
        batch_sampler=DrawnBatches(drawn, 4, drop_last=False),
        collate_fn=ExampleCollator(preprocess_fn=encoder.preprocess, teachers=Asked()),
        num_workers=workers,
    )
    batches = list(loader)
    assert len(batches) == 3
    for batch in batches:
        queries = [data.examples[row]["query"] for row in batch["query_rows"].tolist()]
        assert batch["query_ids"].tolist() == text_keys(queries).tolist()
        mask = batch["document_attention_mask"]
        assert batch["document_lengths"] == mask.sum(1).tolist()
        assert batch["document_token_rows"].tolist() == mask.flatten().nonzero().flatten().tolist()
        assert batch["query_lengths"] == batch["query_attention_mask"].sum(1).tolist()
        texts = data.texts_of(batch["document_ids"].T.flatten().tolist())
        assert torch.equal(batch["document_input_ids"], encoder.preprocess(texts)["input_ids"])
        assert batch["positives"].tolist() == [[True, False, False]] * 4
        assert torch.equal(batch["teacher_x"][:, 1:], batch["document_ids"])
        assert "labels" not in batch
