"""An archive as an encoder: like sentence-transformers, like the server, and in bounded memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer

from exporters import export_encoder
from oskit.archive.archive import open_archive
from oskit.archive.backends import Runtime, open_backend
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.text_encoder import TextEncoder
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import ArchiveError, EncoderError, UsageError

TEXTS = ["hello world", "the concrete bridge is long and strong", "", "hej", "vatten och sten " * 200, " \n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of a symmetric (byte BPE) and of an inference-free (WordPiece) encoder."""
    folder = tmp_path_factory.mktemp("archives")
    with pytest.MonkeyPatch.context() as patch:
        # What an export is proved with is tested with the exporters.
        patch.setattr("exporters.export.parity_texts", lambda: ["hello world"])
        _export(folder)
    return folder


def _export(folder: Path) -> None:
    roberta = NeuralSparseEncoder.from_pretrained(tiny.build("roberta", folder / "roberta"), device="cpu")
    export_encoder(roberta, folder / "symmetric")
    free = tiny.build_inference_free(folder / "free")
    export_encoder(
        NeuralSparseEncoder.from_pretrained(free, device="cpu"), folder / "inference-free", formats=["onnx"]
    )


@pytest.fixture(scope="module")
def symmetric(folder: Path) -> ArchiveEncoder:
    return ArchiveEncoder.open(folder / "symmetric")


@pytest.fixture(scope="module")
def inference_free(folder: Path) -> ArchiveEncoder:
    return ArchiveEncoder.open(folder / "inference-free")


def test_it_is_a_text_encoder(symmetric: ArchiveEncoder, inference_free: ArchiveEncoder) -> None:
    assert isinstance(symmetric, TextEncoder)
    assert (symmetric.architecture, inference_free.architecture) == ("symmetric", "inference-free")
    assert (symmetric.runtime or "").startswith("onnxruntime")
    assert symmetric.max_length == 512


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("auto", "onnxruntime "),
        ("onnxruntime", "onnxruntime "),
        ("openvino", "openvino "),
        ("torch", "torch "),
    ],
)
def test_documents_weigh_what_sentence_transformers_says(folder: Path, backend: Any, name: str) -> None:
    from sentence_transformers import SparseEncoder

    if backend == "openvino":
        pytest.importorskip("openvino")
    symmetric = ArchiveEncoder.open(folder / "symmetric", runtime=Runtime(backend, "fp32"))
    assert (symmetric.runtime or "").startswith(name)
    matrix = symmetric.document_matrix(TEXTS)
    assert matrix.shape == (len(TEXTS), symmetric.vocabulary.size)
    assert matrix.dtype == np.float32
    encoder = SparseEncoder(str(folder / "roberta"), device="cpu")
    expected = encoder.encode_document(TEXTS).to_dense().numpy()
    expected[:, sorted(symmetric.vocabulary.special_ids)] = 0
    expected[[2]] = 0  # an empty text has no weights; a blank one has tokens in this vocabulary
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-4)


def test_an_empty_text_is_an_empty_vector_on_every_path(folder: Path) -> None:
    from sentence_transformers import SparseEncoder

    plain = SparseEncoder(str(folder / "roberta"), device="cpu").encode_document([""]).to_dense()
    assert plain.max() > 0  # not there: it weighs the special tokens around nothing
    exports = ("symmetric/onnx", "symmetric/torchscript", "inference-free/onnx")
    archives = [ArchiveEncoder.open(folder / export) for export in exports]
    encoders = [
        NeuralSparseEncoder.from_pretrained(folder / name, device="cpu") for name in ("roberta", "free")
    ]
    for encoder in (*archives, *encoders):
        matrices = encoder.document_matrix(["", "hello"]), encoder.query_matrix(["", "hello"])
        assert [(matrix[0].nnz, matrix[1].nnz > 0) for matrix in matrices] == [(0, True)] * 2
    tokenizer = ArchiveEncoder.open(folder / "inference-free" / "tokenizer")
    assert tokenizer.query_weights(["", "hello"])[0] == {}
    for encoder in archives:  # the graph alone, as the server runs it: special tokens and nothing between
        ids = [Tokenizer.from_buffer(encoder.archive.read("tokenizer.json")).encode("").ids]
        assert not open_backend(encoder.archive).run(ids, None).nnz


def test_batches_change_nothing_but_the_speed(symmetric: ArchiveEncoder) -> None:
    alone = np.concatenate([symmetric.document_matrix([text]).toarray() for text in TEXTS])
    together = symmetric.document_matrix(TEXTS).toarray()
    np.testing.assert_allclose(alone, together, atol=1e-5)
    backwards = symmetric.document_matrix(TEXTS[::-1]).toarray()
    np.testing.assert_allclose(backwards[::-1], alone, atol=1e-5)


def test_no_texts(symmetric: ArchiveEncoder, inference_free: ArchiveEncoder) -> None:
    assert symmetric.document_matrix([]).shape == (0, symmetric.vocabulary.size)
    assert inference_free.query_matrix([]).shape == (0, inference_free.vocabulary.size)
    assert symmetric.document_weights([]) == []


def test_symmetric_queries_are_documents(symmetric: ArchiveEncoder) -> None:
    assert symmetric.query_weights(TEXTS) == symmetric.document_weights(TEXTS)


def test_inference_free_queries_are_unique_tokens_with_their_weight(inference_free: ArchiveEncoder) -> None:
    vocabulary = inference_free.vocabulary
    expected = {word: 0.5 + ((vocabulary.id_of(word) or 0) % 7) / 4 for word in ("hello", "world")}
    assert inference_free.query_weights(["hello world hello"]) == [pytest.approx(expected)]
    by_id = {str(vocabulary.id_of(word)): weight for word, weight in expected.items()}
    assert inference_free.query_weights(["hello world"], key="id") == [pytest.approx(by_id)]
    # Neither special tokens nor an unknown one (the emoji) weigh anything.
    assert inference_free.query_weights(["", "🙂", "[CLS]"]) == [{}, {}, {}]


def test_a_query_token_without_idf_weighs_one_as_on_the_server(folder: Path, tmp_path: Path) -> None:
    source = open_archive(folder / "inference-free" / "tokenizer")
    path = tmp_path / "t.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("tokenizer.json", source.read("tokenizer.json"))
        archive.writestr("idf.json", json.dumps({"hello": 2.5}))
    encoder = ArchiveEncoder.open(folder / "inference-free" / "onnx", query=path)
    assert encoder.query_weights(["hello world"]) == [{"hello": 2.5, "world": 1.0}]


def test_a_tokenizer_archive_alone_encodes_queries_only(folder: Path) -> None:
    encoder = ArchiveEncoder.open(folder / "inference-free" / "tokenizer")
    assert encoder.architecture == "inference-free"
    assert set(encoder.query_weights(["hello world"])[0]) == {"hello", "world"}
    with pytest.raises(EncoderError, match="encodes queries only"):
        encoder.document_matrix(["hello"])


def test_the_wrong_or_a_missing_query_archive(folder: Path, tmp_path: Path) -> None:
    onnx = folder / "inference-free" / "onnx"
    with pytest.raises(ArchiveError, match="is an encoder; inference-free queries need"):
        ArchiveEncoder.open(onnx, query=onnx)
    shutil.copytree(onnx, tmp_path / "onnx")
    alone = ArchiveEncoder.open(tmp_path / "onnx")
    assert alone.document_weights(["hello"])[0]
    with pytest.raises(ArchiveError, match="needs its tokenizer archive for queries"):
        alone.query_matrix(["hello"])


@pytest.mark.parametrize(("max_length", "read"), [(8, 8), (4000, 512), (None, 512)])
def test_truncation_as_on_the_server(folder: Path, tmp_path: Path, max_length: int | None, read: int) -> None:
    source = open_archive(folder / "inference-free" / "onnx")
    content = json.loads(source.read("tokenizer.json"))
    content["truncation"]["max_length"] = max_length
    if max_length is None:
        content["truncation"] = None
    path = tmp_path / "t.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("tokenizer.json", json.dumps(content))
        archive.writestr("model.onnx", source.read("model.onnx"))
    encoder = ArchiveEncoder.open(path)
    assert encoder.max_length == read
    long = "hello " * (read - 2)
    cut, whole, longer = encoder.document_matrix(
        ["hello " * (read - 3), long, long + "world " * 50]
    ).toarray()
    np.testing.assert_allclose(longer, whole, atol=1e-6)
    assert not np.allclose(cut, whole, atol=1e-6)


def test_input_that_is_no_text(symmetric: ArchiveEncoder) -> None:
    with pytest.raises(UsageError, match="a list of texts"):
        symmetric.document_matrix("hello")
    with pytest.raises(UsageError, match="not NoneType"):
        symmetric.document_matrix(["hello", None])  # type: ignore[list-item]


def test_lone_surrogates_are_encoded_like_the_replacement_character(symmetric: ArchiveEncoder) -> None:
    broken, replaced = symmetric.document_matrix(["a \ud800 b", "a \ufffd b"]).toarray()
    np.testing.assert_array_equal(broken, replaced)


def test_a_model_that_is_none(folder: Path, tmp_path: Path) -> None:
    tokenizer = open_archive(folder / "symmetric").read("tokenizer.json")
    for name, reason in (("model.onnx", "ONNX Runtime cannot load"), ("model.pt", "torch cannot load")):
        path = tmp_path / f"{name}.zip"
        with ZipFile(path, "w") as archive:
            archive.writestr("tokenizer.json", tokenizer)
            archive.writestr(name, b"no model")
        with pytest.raises(ArchiveError, match=reason):
            ArchiveEncoder.open(path)


def test_an_onnx_model_with_other_inputs(folder: Path, tmp_path: Path) -> None:
    import onnx

    source = open_archive(folder / "symmetric")
    model = onnx.load_from_string(source.read("model.onnx"))
    for node in model.graph.node:
        node.input[:] = ["input_ids" if name == "input1.input_ids" else name for name in node.input]
    model.graph.input[0].name = "input_ids"
    path = tmp_path / "a.zip"
    with ZipFile(path, "w") as archive:
        archive.writestr("tokenizer.json", source.read("tokenizer.json"))
        archive.writestr("model.onnx", model.SerializeToString())
    with pytest.raises(ArchiveError, match=r"ML Commons gives input1\.input_ids"):
        ArchiveEncoder.open(path)


def test_torch_stays_out_of_an_onnx_archive_and_is_asked_for_by_torchscript(folder: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from oskit.archive.encoder import ArchiveEncoder
from oskit.errors import MissingDependencyError
for path in sys.argv[1:3]:
    print(len(ArchiveEncoder.open(path).query_weights(["hello world"])[0]) > 0)
try:
    ArchiveEncoder.open(sys.argv[3])
except MissingDependencyError as error:
    print(error)
print([name for name in ("transformers", "sentence_transformers", "onnx") if name in sys.modules])
"""
    paths = [folder / "symmetric", folder / "inference-free", folder / "symmetric" / "torchscript"]
    command = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["True", "True"]
    assert "needs torch, which is not installed. Use the ONNX archive" in lines[2]
    assert lines[3] == "[]"
