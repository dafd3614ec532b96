"""``--quantize int8``: what it does to the ranking, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from exporters import export_encoder, quantize
from exporters.archive import write_zip
from exporters.graph import BakedEncoder, exportable
from exporters.onnx import write_onnx
from exporters.parts import take_apart
from exporters.ranking import RankingSample, compare_rankings
from oskit.archive.archive import Archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.manifest import Retrieval
from oskit.archive.token_weights import Prune
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import DataError, ParityError, UsageError


@pytest.fixture(scope="module", autouse=True)
def one_text() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporters.export.parity_texts", lambda: ["hello world"])
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty documents of two sentences."""
    texts = [
        f"{first}. {second}." for first, second in zip(tiny.sentences(80), tiny.sentences(80, 1), strict=True)
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> NeuralSparseEncoder:
    """An encoder with channels a hundred times as large as the others, which the next weights undo."""
    path = tiny.build("bert", tmp_path_factory.mktemp("outliers") / "e")
    encoder = NeuralSparseEncoder.from_pretrained(path, device="cpu")
    parameters = dict(encoder.named_parameters())
    with torch.no_grad():
        for layer in (0, 1):
            for first, second in (
                ("attention.self.value", "attention.output.dense"),
                ("intermediate.dense", "output.dense"),
            ):
                name = f"0.model.bert.encoder.layer.{layer}"
                parameters[f"{name}.{first}.weight"][3] *= 100
                parameters[f"{name}.{second}.weight"][:, 3] /= 100
    return encoder


@pytest.fixture(scope="module")
def exported(
    outliers: NeuralSparseEncoder, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Archive:
    (archive,) = export_encoder(
        outliers, tmp_path_factory.mktemp("out"), formats=["onnx"], quantize="int8", calibrate=corpus
    )
    return archive


def test_the_ranking_survives_outliers_that_plain_quantising_does_not(
    outliers: NeuralSparseEncoder, exported: Archive, corpus: Path, tmp_path: Path
) -> None:
    sample = RankingSample.read(corpus)

    def ranked(archive: Path) -> Retrieval:
        opened = ArchiveEncoder.open(archive)
        before, after = (
            (encoder.document_matrix(sample.documents), encoder.document_matrix(sample.queries))
            for encoder in (outliers, opened)
        )
        return compare_rankings(sample, before, after)

    assert exported.manifest is not None
    assert exported.manifest.quantization == "int8"
    told = exported.manifest.parity.retrieval
    assert told is not None
    found = ranked(exported.path)
    assert found.holds
    assert (told.ndcg, told.quantized_ndcg, told.overlap) == pytest.approx(
        (found.ndcg, found.quantized_ndcg, found.overlap), abs=2e-3
    )
    assert (told.documents, told.queries, told.judged) == (80, 80, False)
    # The same encoder, quantised by each tensor's own largest value.
    parts = take_apart(outliers)
    with exportable(parts.modules) as modules:
        mask = torch.from_numpy(parts.vocabulary.weight_mask())
        baked = BakedEncoder(modules, pooling="max", activation="relu", weight_mask=mask, around=2).eval()
        write_onnx(baked, *parts.example(), tmp_path / "model.onnx", fold=True)
    options: Any = {"weight_type": QuantType.QUInt8, "per_channel": True}
    quantize_dynamic(str(tmp_path / "model.onnx"), str(tmp_path / "old.onnx"), **options)
    tokenizer = exported.read("tokenizer.json")
    write_zip(tmp_path / "old.zip", {"tokenizer.json": tokenizer, "model.onnx": tmp_path / "old.onnx"})
    assert not ranked(tmp_path / "old.zip").holds


def test_a_quantised_graph_is_standard_and_does_not_look_at_the_batch(exported: Archive) -> None:
    model = onnx.load_from_string(exported.read("model.onnx"))
    assert model.ir_version <= 9
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("QuantizeLinear") > 5
    # 7 bits, so that CPUs without VNNI do not saturate.
    quanta = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".weight.quanta")]
    assert quanta
    assert max(int(np.abs(onnx.numpy_helper.to_array(tensor)).max()) for tensor in quanta) == 63
    encoder = ArchiveEncoder.open(exported)
    texts = [*tiny.sentences(7, 5), " ".join(tiny.sentences(20, 6))]
    together = encoder.document_matrix(texts).toarray()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.document_matrix([text]).toarray()[0], row, atol=1e-4)


def test_what_cannot_keep_its_ranking_is_refused_with_the_figures(
    outliers: NeuralSparseEncoder, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.quantize.WEIGHT_MAX", 1)  # -1, 0 and 1 are too few for any encoder
    with pytest.raises(ParityError, match=r"nDCG@10 is 0\.\d+ instead of 0\.\d+ .* of the top 10 stay"):
        export_encoder(outliers, tmp_path / "out", formats=["onnx"], quantize="int8", calibrate=corpus)
    assert not (tmp_path / "out").exists()


def test_layers_that_cost_ranking_stay_in_fp32(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.build("bert", tmp_path / "encoder")
    encoder = NeuralSparseEncoder.from_pretrained(path, device="cpu")
    choose = quantize.choose
    damaged = "layer.1/intermediate"

    def worse(site: quantize.Site) -> quantize.Scheme:
        scheme = choose(site)
        return replace(scheme, scale=scheme.scale * 300) if damaged in site.nodes[0] else scheme

    monkeypatch.setattr("exporters.int8.choose", worse)
    told: list[tuple[str, int, int]] = []
    (archive,) = export_encoder(
        encoder,
        tmp_path / "out",
        formats=["onnx"],
        quantize="int8",
        calibrate=corpus,
        progress=lambda *step: told.append(step),
    )
    # Minutes for a large encoder: each attempt is told, and the count is right.
    assert len({text for text, _, _ in told if "attempt" in text}) > 5
    assert [place for _, place, _ in told] == sorted(place for _, place, _ in told)
    assert {place for _, place, _ in told} == {0, 1, 2, 3}
    assert {total for _, _, total in told} == {4}
    assert archive.manifest is not None
    retrieval = archive.manifest.parity.retrieval
    assert retrieval is not None
    assert retrieval.holds
    assert any("stay in fp32" in note for note in archive.manifest.notes)
    model = onnx.load_from_string(archive.read("model.onnx"))
    weights = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    (kept,) = [name for name in weights if damaged in name]
    assert not weights[kept].endswith(".weight")


def test_without_texts_it_says_by_what_it_was_quantised(tmp_path: Path) -> None:
    path = tiny.build("xlmr", tmp_path / "e")
    encoder = NeuralSparseEncoder.from_pretrained(path, device="cpu")
    (archive,) = export_encoder(
        encoder, tmp_path / "out", formats=["onnx"], quantize="int8", prune=Prune.parse("top_k:30")
    )
    assert archive.manifest is not None
    assert archive.manifest.parity.retrieval is not None
    assert archive.manifest.parity.retrieval.source == "generated texts"
    assert any("--calibrate" in note for note in archive.manifest.notes)
    assert any("pruning by top_k:30" in note for note in archive.manifest.notes)


def test_a_judged_collection_is_measured_by_its_judgements(tmp_path: Path) -> None:
    documents = tuple(Document(f"d{i}", text) for i, text in enumerate(tiny.sentences(2000)))
    queries = {f"q{i}": documents[i].text.upper() for i in range(3)}
    qrels = {"q0": {"d0": 2, "d1999": 1, "d7": 0}, "q1": {"elsewhere": 1}, "q2": {"d2": 0}}
    sample = RankingSample.read(Collection(queries, qrels, documents).write(tmp_path / "c"))
    # q1's document is not there, and nothing is relevant to q2.
    assert (sample.judged, sample.queries) == (True, (queries["q0"],))
    relevant = {sample.documents[place]: grade for place, grade in sample.relevant[0].items()}
    assert relevant == {documents[0].text: 2, documents[1999].text: 1, documents[7].text: 0}
    assert 100 <= len(sample.documents) <= 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 different texts"),
        (b'{"text": "the same"}\n' * 50, "1 different texts"),
        (b'{"text": "fine"}\n{"text": \n', "corpus.jsonl:2"),
        (b'{"other": "field"}\n', "corpus.jsonl:1"),
        (b'{"text": "\xff"}\n', "corpus.jsonl:1"),
        (None, "no such file"),
    ],
)
def test_sources_that_cannot_be_calibrated_with(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        RankingSample.read(path)
    assert "\n" not in str(caught.value)


def test_texts_of_another_script_or_of_any_length(outliers: NeuralSparseEncoder, tmp_path: Path) -> None:
    foreign = RankingSample.of_texts(["ж" * (i + 1) for i in range(60)], "russian.jsonl")
    with pytest.raises(DataError, match=r"of 60 texts of russian.jsonl the encoder can tell 0 apart"):
        export_encoder(outliers, tmp_path / "out", formats=["onnx"], quantize="int8", calibrate=foreign)
    assert not (tmp_path / "out").exists()
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text * 1000}) + "\n" for text in tiny.sentences(40)))
    assert max(map(len, RankingSample.read(path).documents)) < 5000


def test_calibrating_what_is_not_quantised_is_refused(outliers: NeuralSparseEncoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no effect"):
        export_encoder(outliers, tmp_path / "out", calibrate=tmp_path / "missing.jsonl")
