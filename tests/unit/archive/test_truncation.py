"""What is too long is counted while it is encoded, as counting by hand with ``tokenizers`` does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny
from archives import graph, tokenizer, write_zip
from tokenizers import Tokenizer

from oskit.archive.archive import open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.truncation import Truncation, truncation_from_now
from oskit.encoder.model import NeuralSparseEncoder


def texts_of(words: list[str], limit: int) -> list[str]:
    """Empty, short, exactly as long as is read, one token longer, far longer; special tokens among them."""
    draw = random.Random(0)
    exact = " ".join(["bridge"] * (limit - 2))
    long = [" ".join(draw.choices(words, k=count)) for count in (3, limit, 5 * limit, 40 * limit)]
    return ["", " ", exact, f"{exact} bridge", *long, f"[SEP] {long[2]} </s> [MASK] <s>"]


def by_hand(cutting: Tokenizer, texts: list[str], limit: int) -> Truncation:
    """Each text tokenized whole, without special tokens, beside the room that two of them leave."""
    whole = Tokenizer.from_str(cutting.to_str())
    whole.no_truncation()
    whole.no_padding()
    lengths = [len(whole.encode(text, add_special_tokens=False).ids) for text in texts]
    beyond = [max(0, length - (limit - 2)) for length in lengths]
    return Truncation(limit, len(texts), sum(map(bool, beyond)), sum(lengths), sum(beyond))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlmr"])
def test_an_encoder_counts_what_it_cuts_off(tmp_path: Path, kind: tiny.Kind, side: str) -> None:
    encoder = NeuralSparseEncoder.from_pretrained(tiny.build(kind, tmp_path / kind), max_seq_length=24)
    own = encoder.anatomy.transformer.tokenizer
    own.truncation_side = side
    texts = texts_of(tiny.WORDS, 24)
    expected = by_hand(own.backend_tokenizer, texts, 24)
    assert expected.cut >= 4
    encoder.document_matrix(texts)
    assert encoder.truncation == expected
    counted = truncation_from_now(encoder)
    encoder.query_matrix(texts[:2])
    assert counted() == by_hand(own.backend_tokenizer, texts[:2], 24)


@pytest.mark.parametrize(("own", "limit"), [(24, 24), (100_000, 512)])
@pytest.mark.parametrize("truncation", [{"stride": 7}, {"direction": "left"}])
def test_an_archive_counts_as_the_server_cuts(
    tmp_path: Path, own: int, limit: int, truncation: dict[str, object]
) -> None:
    """Its own limit, or the 512 tokens of ML Commons, whatever the archive says."""
    cutting = tokenizer()
    cutting.enable_truncation(own, **truncation)
    path = write_zip(tmp_path / "encoder.zip", {"model.onnx": graph(), "tokenizer.json": cutting.to_str()})
    encoder = ArchiveEncoder.open(open_archive(path))
    texts = texts_of(["building", "permit", "quick", "fox", "jumping"], limit)
    encoder.document_matrix(texts)
    expected = by_hand(cutting, texts, limit)
    assert encoder.truncation == expected and expected.cut >= 4
    encoder.tokenize_documents(texts)
    assert encoder.truncation == expected + expected
    assert encoder.truncation.max_length == limit


def test_who_does_not_count_is_not_said_to_cut_nothing() -> None:
    assert truncation_from_now(object())() is None
    assert truncation_from_now(None)() is None


def test_what_is_said_and_written() -> None:
    found = Truncation(512, texts=1001, cut=644, tokens=1_000_000, lost=310_000)
    assert found.told("documents") == (
        "644 of 1,001 documents are longer than 512 tokens: the rest is not encoded (31% of all tokens)"
    )
    assert json.loads(json.dumps(found.to_dict())) == {
        "max_length": 512,
        "texts": 1001,
        "cut": 644,
        "tokens": 1_000_000,
        "lost": 310_000,
        "lost_share": 0.31,
    }
    assert "tokens:384,overlap:64" in found.advice and "tokens:96,overlap:16" in Truncation(128).advice
