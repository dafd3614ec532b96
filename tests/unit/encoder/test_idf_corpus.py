"""IDF of a corpus: against values computed by hand, and against counting one text at a time."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import oskit
from oskit.archive.idf import MIN_QUERY_WEIGHT, idf_vector, merged_idf, read_idf, write_idf
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.document_frequencies import BLOCK, corpus_idf, count_documents
from oskit.encoder.loader.tokenizer_files import open_vocabulary
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.errors import DataError, EncoderError, EncoderNotFoundError, UsageError
from tests import tiny

KINDS = ("bert", "roberta", "xlmr")


def vocabulary(kind: tiny.Kind, size: int | None = None) -> Vocabulary:
    return Vocabulary(tiny.fast_tokenizer(kind).backend_tokenizer, size=size)


def sentences(count: int) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(tiny.WORDS, k=rng.randint(0, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("idf")
    return {kind: tiny.build(kind, root / kind) for kind in KINDS}


def test_by_hand() -> None:
    known = vocabulary("bert")
    idf = corpus_idf(["the bridge", "the road the road", "the house"], known)

    def weight(token: str) -> float:
        token_id = known.id_of(token)
        assert token_id is not None
        return float(idf[token_id])

    assert weight("the") == pytest.approx(math.log(1 + 0.5 / 3.5))
    assert weight("road") == pytest.approx(math.log(1 + 2.5 / 1.5))
    assert weight("water") == pytest.approx(math.log(1 + 3.5 / 0.5)) == pytest.approx(math.log(2 * 3 + 2))
    assert {float(idf[i]) for i in known.special_ids} == {0.0}
    assert idf.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_in_parallel_count_what_one_text_at_a_time_counts(kind: tiny.Kind) -> None:
    known = vocabulary(kind)
    tokenizer = tiny.fast_tokenizer(kind)
    texts = sentences(2 * BLOCK + 37)
    counted = count_documents(iter(texts), known)
    expected: Counter[str] = Counter()
    for text in texts:
        expected.update({known.key_of(i) for i in tokenizer(text)["input_ids"]})
    assert counted.documents == len(texts)
    for token_id in set(range(known.size)) - known.special_ids:
        assert counted.frequencies[token_id] == expected[known.key_of(token_id)]


def test_bm25s_has_the_same_weights() -> None:
    """Lucene's BM25 without term frequencies (k1 = 0) scores a document by the IDF of the query's token."""
    bm25s = pytest.importorskip("bm25s")
    known, tokenizer, texts = vocabulary("bert"), tiny.fast_tokenizer("bert"), sentences(50)
    idf = corpus_idf(texts, known)
    index = bm25s.BM25(method="lucene", k1=0, b=0)
    index.index([tokenizer.tokenize(text) for text in texts], show_progress=False)
    for token in ("the", "road", "bridge", "hej"):
        scores = index.get_scores([token])
        assert scores.max() == pytest.approx(idf[known.id_of(token)], rel=1e-6)
        assert (scores > 0).sum() == count_documents(texts, known).frequencies[known.id_of(token)]


def test_ids_with_one_key_are_one_token() -> None:
    """Else a common word would get the weight of a rare piece: the cluster takes the largest."""
    known = vocabulary("xlmr")
    idf = corpus_idf(["the road", "the water", "road"] * 3, known)
    groups: dict[str, set[float]] = {}
    for token_id in set(range(known.size)) - known.special_ids:
        groups.setdefault(known.key_of(token_id), set()).add(float(idf[token_id]))
    assert known.is_ambiguous
    assert {len(weights) for weights in groups.values()} == {1}
    assert groups["road"].pop() == pytest.approx(math.log(1 + 3.5 / 6.5))
    np.testing.assert_array_equal(merged_idf(idf, known), idf)


def test_what_the_encoder_does_not_read_does_not_count() -> None:
    known = vocabulary("bert")
    text = "road " * 20 + "water"
    water = known.id_of("water")
    assert count_documents([text], known, max_length=10).frequencies[water] == 0
    assert count_documents([text], known, max_length=None).frequencies[water] == 1
    with pytest.raises(UsageError, match="leaves no room"):
        count_documents([text], known, max_length=2)


def test_texts_with_lone_surrogates_count_as_they_are_encoded_and_other_things_are_refused() -> None:
    known = vocabulary("bert")
    broken, replaced = (corpus_idf([f"the {character} road"], known) for character in ("\ud800", "\ufffd"))
    np.testing.assert_array_equal(broken, replaced)
    with pytest.raises(UsageError, match="not NoneType"):
        corpus_idf(["the road", None], known)  # type: ignore[list-item]


def test_no_weight_is_zero_however_large_the_corpus() -> None:
    """OpenSearch refuses a whole query if one of its tokens weighs 0."""
    known = vocabulary("bert")
    counted = count_documents(["the"], known)
    many = type(counted)(10**12, counted.frequencies * 10**12)
    idf = many.idf(known)
    assert idf[known.id_of("the")] == np.float32(MIN_QUERY_WEIGHT)
    assert idf[sorted(set(range(known.size)) - known.special_ids)].min() > 0
    assert 28 < idf.max() < 64


def test_padding_columns_and_progress() -> None:
    known = vocabulary("bert", size=300)
    counts: list[int] = []
    idf = corpus_idf(sentences(BLOCK + 1), known, progress=counts.append)
    assert idf.shape == (300,)
    assert counts == [BLOCK, 1]


def test_it_reads_no_more_than_a_few_blocks_ahead() -> None:
    read, counted = 0, 0
    ahead = []

    def texts() -> Iterator[str]:
        nonlocal read
        for text in sentences(10 * BLOCK):
            read += 1
            yield text

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        ahead.append(read - counted)

    corpus_idf(texts(), vocabulary("bert"), progress=count)
    assert max(ahead) <= 2 * BLOCK


def test_a_corpus_without_texts() -> None:
    with pytest.raises(DataError, match="no texts"):
        corpus_idf([], vocabulary("bert"))
    assert corpus_idf([""], vocabulary("bert")).max() == pytest.approx(math.log(4))


@pytest.mark.parametrize("kind", KINDS)
def test_of_an_encoder_its_vocabulary_or_a_tokenizer(folders: dict[str, Path], kind: tiny.Kind) -> None:
    texts = sentences(20)
    encoder = NeuralSparseEncoder.from_pretrained(folders[kind], device="cpu")
    expected = corpus_idf(texts, encoder.vocabulary)
    tokenizer = tiny.fast_tokenizer(kind).backend_tokenizer
    for given in (encoder, tokenizer, open_vocabulary(folders[kind])):
        np.testing.assert_array_equal(oskit.corpus_idf(texts, given), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(kind: tiny.Kind, tmp_path: Path) -> None:
    known = vocabulary(kind)
    idf = corpus_idf(sentences(30), known)
    write_idf(tmp_path / "deep" / "idf.json", idf, known)
    np.testing.assert_array_equal(idf_vector(read_idf(tmp_path / "deep" / "idf.json"), known), idf)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["idf.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_idf(tmp_path / "file" / "idf.json", idf, known)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inference_free_encoder(folders: dict[str, Path], kind: tiny.Kind, tmp_path: Path) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(folders[kind], device="cpu")
    idf = corpus_idf(sentences(30), encoder)
    free = inference_free(encoder, idf)
    texts = ["the road to the water", "hello bridge", ""]
    assert (encoder.architecture, free.architecture) == ("symmetric", "inference-free")
    difference = free.document_matrix(texts) - encoder.document_matrix(texts)
    assert abs(difference).max() == 0
    presence = np.zeros((3, encoder.vocabulary.size))
    for row, text in zip(presence, texts, strict=True):
        row[encoder.tokenizer(text)["input_ids"]] = 1
    np.testing.assert_allclose(free.query_matrix(texts).toarray(), presence * idf, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in free.anatomy.queries.parameters())  # type: ignore[union-attr]
    free.save_pretrained(str(tmp_path / "free"))
    again = NeuralSparseEncoder.from_pretrained(tmp_path / "free", device="cpu")
    assert abs(again.query_matrix(texts) - free.query_matrix(texts)).max() == 0


def test_a_trainable_table(folders: dict[str, Path]) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(folders["bert"], device="cpu")
    free = inference_free(encoder, corpus_idf(sentences(5), encoder), trainable=True)
    table = free.anatomy.queries
    assert table is not None and table.weight.requires_grad
    features = free.preprocess(["the road"], task="query")
    free(features, task="query")["sentence_embedding"].sum().backward()
    assert table.weight.grad is not None
    assert set(torch.nonzero(table.weight.grad).flatten().tolist()) == set(
        encoder.tokenizer("the road", add_special_tokens=False)["input_ids"]
    )


def test_queries_weigh_what_the_cluster_takes_where_ids_share_a_key(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from exporters import export_encoder
    from oskit.archive.encoder import ArchiveEncoder

    encoder = NeuralSparseEncoder.from_pretrained(folders["xlmr"], device="cpu")
    free = inference_free(encoder, corpus_idf(sentences(5), encoder), trainable=True)
    inner, word = encoder.tokenizer.convert_tokens_to_ids(["hello", "▁hello"])
    table = free.anatomy.queries
    assert table is not None
    table.weight.data[inner], table.weight.data[word] = 3.0, 1.0  # as training may leave them
    *_, archive = export_encoder(free, tmp_path / "out", formats=["onnx"])
    expected = ArchiveEncoder.open(archive).query_matrix(["hello road"])
    assert expected[0, word] == 3.0
    np.testing.assert_allclose(free.query_matrix(["hello road"]).toarray(), expected.toarray(), atol=1e-6)


def test_a_table_that_does_not_fit(folders: dict[str, Path]) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(folders["bert"], device="cpu")
    idf = corpus_idf(["the road"], encoder)
    with pytest.raises(EncoderError, match=r"has the shape \[3\], the encoder 161 tokens"):
        inference_free(encoder, idf[:3])
    with pytest.raises(EncoderError, match="negative or no finite"):
        inference_free(encoder, -idf)


def test_vocabularies_without_their_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    expected = vocabulary("bert").keys
    saved = tmp_path / "saved"
    NeuralSparseEncoder.from_pretrained(tiny.build_inference_free(tmp_path / "free"), device="cpu").save(
        str(saved)
    )
    for place in (folders["bert"], folders["bert"] / "tokenizer.json", saved):
        assert open_vocabulary(place).keys == expected
    part = next(saved.glob("*/tokenizer.json"))
    tiny.fast_tokenizer("xlmr").save_pretrained(saved / part.parent.name)
    with pytest.raises(EncoderError, match="different tokenizers"):
        open_vocabulary(saved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"has no tokenizer\.json"):
        open_vocabulary(tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be read as a tokenizer"):
        open_vocabulary(tmp_path / "empty")


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "team/missing"])
def test_a_name_that_is_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderNotFoundError, match=f"no file or folder {name}"):
        open_vocabulary(name)


def test_of_an_archive(folders: dict[str, Path], tmp_path: Path) -> None:
    from exporters import export_encoder

    encoder = NeuralSparseEncoder.from_pretrained(folders["roberta"], device="cpu")
    (archive,) = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    for place in (tmp_path / "out", archive.path.parent, archive.path):
        assert open_vocabulary(place).keys == encoder.vocabulary.keys
    assert json.loads(archive.read("tokenizer.json"))
