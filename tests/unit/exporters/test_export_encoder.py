"""Exports of every kind of vocabulary: complete, reproducible, proved, and like sentence-transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
import tiny
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Dense, SpladePooling, Transformer

from exporters import export_encoder
from exporters.texts import parity_texts
from exporters.torchscript import UNKNOWN_OPERATORS, operators
from oskit.archive.archive import Archive, open_archive
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.manifest import short_name
from oskit.archive.token_weights import Prune, prune
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import EncoderError, ExportError, ParityError, UntrainedEncoderError, UsageError

KINDS: tuple[tiny.Kind, ...] = ("bert", "distilbert", "roberta", "xlmr")
TEXTS = ["hello world", "the concrete bridges of the old road, 你好 över vatten", "a", "🙂"]


FEWER_TEXTS = [text for text in parity_texts()[::4] if len(text) < 1000]


@pytest.fixture(scope="module", autouse=True)
def fewer_texts() -> Iterator[None]:
    """Some of the texts that an export is proved with; one test takes them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporters.export.parity_texts", lambda: FEWER_TEXTS)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


def encoder_of(kind: tiny.Kind, folder: Path) -> NeuralSparseEncoder:
    path = folder / kind
    return NeuralSparseEncoder.from_pretrained(
        path if path.exists() else tiny.build(kind, path), device="cpu"
    )


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, folder: Path) -> tuple[tiny.Kind, list[Archive]]:
    kind: tiny.Kind = request.param
    return kind, export_encoder(encoder_of(kind, folder), folder / f"out-{kind}")


def test_both_formats_compute_what_sentence_transformers_computes(
    exported: tuple[tiny.Kind, list[Archive]], folder: Path
) -> None:
    kind, archives = exported
    assert [archive.model_format for archive in archives] == ["TORCH_SCRIPT", "ONNX"]
    expected = SparseEncoder(str(folder / kind), device="cpu").encode_document(TEXTS).to_dense().numpy()
    for archive in archives:
        encoder = ArchiveEncoder.open(archive)
        expected[:, sorted(encoder.vocabulary.special_ids)] = 0
        np.testing.assert_allclose(encoder.document_matrix(TEXTS).toarray(), expected, atol=1e-4)


def test_what_is_written(exported: tuple[tiny.Kind, list[Archive]], folder: Path) -> None:
    kind, archives = exported
    for archive in archives:
        assert {path.name for path in archive.path.parent.iterdir()} == {
            *(archive.path.name, "manifest.json", "ml-commons_model_config.json")
        }
        model = "model.pt" if archive.model_format == "TORCH_SCRIPT" else "model.onnx"
        assert set(ZipFile(archive.path).namelist()) == {model, "tokenizer.json"}
        body = json.loads(archive.path.with_name("ml-commons_model_config.json").read_text())
        assert body == archive.register_body()
        assert "model_config" not in body
        manifest = archive.manifest
        assert manifest is not None
        assert manifest.source.model == str(folder / kind)
        assert (manifest.activation, manifest.max_length) == ("relu", 512)
        assert manifest.key_format == ("id" if kind in ("roberta", "xlmr") else "token")
        assert manifest.parity.texts == len(FEWER_TEXTS)
        assert manifest.parity.max_difference <= manifest.parity.tolerance == 1e-4
        encoder = ArchiveEncoder.open(archive)
        for probe in manifest.probes:
            found = encoder.document_weights([probe.text], key=manifest.key_format)[0]
            heaviest = dict(list(found.items())[: len(probe.weights)])
            assert probe.weights == pytest.approx(heaviest, abs=1e-5)


def test_tokenizer_json_truncates_and_does_not_pad(exported: tuple[tiny.Kind, list[Archive]]) -> None:
    content = json.loads(exported[1][0].read("tokenizer.json"))
    assert content["truncation"]["max_length"] == 512
    assert content["padding"] is None


def test_texts_are_cut_on_the_side_that_the_encoder_cuts(folder: Path, tmp_path: Path) -> None:
    path = tiny.build("bert", tmp_path / "left")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    # What a tokenizer.json says of truncation and padding is what it was last used with.
    stale = json.loads((path / "tokenizer.json").read_text())
    stale["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 2}
    stale["padding"] = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None}
    stale["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (path / "tokenizer.json").write_text(json.dumps(stale))
    encoder = NeuralSparseEncoder.from_pretrained(path, device="cpu", max_seq_length=16)
    texts = ["bridge " * 20 + "water stone road", "water stone road " + "bridge " * 20]
    (archive,) = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    assert json.loads(archive.read("tokenizer.json"))["truncation"]["direction"] == "Left"
    found = ArchiveEncoder.open(archive).document_matrix(texts).toarray()
    np.testing.assert_allclose(found, encoder.document_matrix(texts).toarray(), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_torchscript_is_of_operators_that_old_libtorch_knows(
    exported: tuple[tiny.Kind, list[Archive]], tmp_path: Path
) -> None:
    archive = exported[1][0]
    model = tmp_path / "model.pt"
    model.write_bytes(archive.read("model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        module = torch.jit.load(model)
    found = operators(module)
    assert "aten::softmax" in found  # attention, and written out
    assert not found & UNKNOWN_OPERATORS
    assert not any("scaled_dot_product" in name for name in found)
    output = module({"input_ids": torch.tensor([[2, 5, 3]]), "attention_mask": torch.ones(1, 3).long()})
    assert list(output) == ["output"]
    assert output["output"].dtype == torch.float32
    # Nothing of the machine it was made on.
    assert b"site-packages" not in model.read_bytes()


def test_onnx_is_within_the_limits_of_onnxruntime_1_16(exported: tuple[tiny.Kind, list[Archive]]) -> None:
    model = onnx.load_from_string(exported[1][1].read("model.onnx"))
    assert model.ir_version <= 9
    assert max(entry.version for entry in model.opset_import) <= 19
    assert [tensor.name for tensor in model.graph.input] == ["input1.input_ids", "input1.attention_mask"]
    assert [tensor.name for tensor in model.graph.output] == ["output"]
    dimensions = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", "length"]
    # Tied embeddings are there once: no second matrix of the vocabulary's size.
    shapes = [tuple(sorted(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) == 2]
    vocabulary = json.loads(exported[1][1].read("tokenizer.json"))["model"]["vocab"]
    assert (
        sum(shape[1] >= len(vocabulary) and shape != (32, 512) and shape != (32, 514) for shape in shapes)
        == 1
    )


@pytest.mark.parametrize("exported", ["bert", "roberta"], indirect=True)
def test_the_same_encoder_is_the_same_bytes_by_any_name(
    exported: tuple[tiny.Kind, list[Archive]], folder: Path, tmp_path: Path
) -> None:
    kind, archives = exported
    again = export_encoder(encoder_of(kind, folder), tmp_path, name="another name", version="7")
    assert [archive.sha256 for archive in again] == [archive.sha256 for archive in archives]
    assert [archive.name for archive in again] == ["another name"] * 2
    assert again[0].path.name == "another-name-7-torchscript.zip"


def test_the_proof_takes_every_kind_of_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = parity_texts()
    assert texts == parity_texts()
    assert len(set(texts)) >= 200
    monkeypatch.setattr("exporters.export.parity_texts", parity_texts)
    encoder = encoder_of("distilbert", folder)
    lengths = [len(ids) for ids in encoder.tokenizer(texts)["input_ids"]]
    assert {2, 3} <= set(lengths)  # nothing, and one token
    assert sum(length > 512 for length in lengths) >= 3
    for sample in ("🙂", "混凝", "väg", "\x1b"):
        assert any(sample in text for text in texts)
    (archive,) = export_encoder(encoder, tmp_path, formats=["onnx"])
    assert archive.manifest is not None
    assert archive.manifest.parity.texts == len(texts)


def test_the_encoder_is_as_it_was(folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of("bert", folder)
    encoder.train()
    before = (encoder.max_seq_length, encoder[0].model.config._attn_implementation)
    export_encoder(encoder, tmp_path, formats=["torchscript"])
    assert encoder.training
    assert all(module.training for module in encoder.modules())
    assert (encoder.max_seq_length, encoder[0].model.config._attn_implementation) == before


@pytest.mark.parametrize("rule", ["max_ratio:0.3", "top_k:20", "abs_value:0.5"])
def test_pruning_is_baked_and_like_the_pipelines(rule: str, folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of("bert", folder)
    formats: list[Any] = ["torchscript", "onnx"] if rule.startswith("top_k") else ["onnx"]
    archives = export_encoder(encoder, tmp_path, formats=formats, prune=Prune.parse(rule))
    expected = [prune(row, Prune.parse(rule)) for row in encoder.document_weights(TEXTS)]
    for archive in archives:
        assert archive.manifest is not None
        assert archive.manifest.prune == rule
        found = ArchiveEncoder.open(archive).document_weights(TEXTS)
        assert [set(row) for row in found] == [set(row) for row in expected]
        for row, wanted in zip(found, expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("kind", "activation"), [("bert", "log1p_relu"), ("xlmr", "relu")])
def test_inference_free(kind: tiny.Kind, activation: str, tmp_path: Path) -> None:
    path = tiny.build_inference_free(tmp_path / "e", kind=kind, activation=activation)  # type: ignore[arg-type]
    archives = export_encoder(SparseEncoder(str(path), device="cpu"), tmp_path / "out", formats=["onnx"])
    assert [archive.kind for archive in archives] == ["encoder", "tokenizer"]
    document, query = archives
    assert document.manifest is not None
    assert document.manifest.activation == activation
    assert document.query_archive() == query.path.resolve()
    assert query.name == f"{document.name}-tokenizer"
    encoder = ArchiveEncoder.open(document)
    idf = json.loads(query.read("idf.json"))
    vocabulary = encoder.vocabulary
    assert {key for key in vocabulary.keys if key} <= set(idf)
    assert {idf[vocabulary.token_of(i)] for i in vocabulary.special_ids} == {0.0}
    reference = SparseEncoder(str(path), device="cpu")
    mask = vocabulary.weight_mask()
    texts = ["hello world hello", "the bridges over the road"]
    expected = reference.encode_query(texts).to_dense().numpy() * mask
    np.testing.assert_allclose(encoder.query_matrix(texts).toarray(), expected, atol=1e-6)
    expected = reference.encode_document(texts).to_dense().numpy() * mask
    np.testing.assert_allclose(encoder.document_matrix(texts).toarray(), expected, atol=1e-4)


def test_a_query_token_that_weighs_nothing_does_not_break_the_query(tmp_path: Path) -> None:
    encoder = SparseEncoder(str(tiny.build_inference_free(tmp_path / "e")), device="cpu")
    table = encoder[0].sub_modules["query"][0].weight
    hello = encoder.tokenizer.convert_tokens_to_ids("hello")
    table.data[hello] = 0.0
    *_, query = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    # OpenSearch refuses a query in which a token weighs 0.
    assert 0 < json.loads(query.read("idf.json"))["hello"] <= 1e-6
    table.data[hello] = 65.0
    with pytest.raises(ExportError, match="'hello' is 65, OpenSearch takes 64 at most"):
        export_encoder(encoder, tmp_path / "out", formats=["onnx"])


def test_tokens_with_one_text_share_the_largest_query_weight(tmp_path: Path) -> None:
    encoder = SparseEncoder(str(tiny.build_inference_free(tmp_path / "e", kind="xlmr")), device="cpu")
    inner, word = encoder.tokenizer.convert_tokens_to_ids(["hello", "▁hello"])
    table = encoder[0].sub_modules["query"][0].weight
    table.data[inner], table.data[word] = 3.0, 1.0
    *_, query = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    assert query.manifest is not None
    assert any("1 tokens have another query weight" in note for note in query.manifest.notes)
    found = ArchiveEncoder.open(query).query_weights(["hello"], key="id")
    assert found == [{str(word): 3.0}]


def test_an_untrained_projection_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = tiny.build("bert-headless", tmp_path / "headless")
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = NeuralSparseEncoder.from_pretrained(path, base=str(path), device="cpu")
    with pytest.raises(UntrainedEncoderError, match="is random"):
        export_encoder(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    archives = export_encoder(encoder, tmp_path / "out", formats=["torchscript"], allow_untrained=True)
    assert all(archive.manifest and archive.manifest.source.head == "random" for archive in archives)


def test_what_fails_its_proof_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of("bert", folder)
    (good,) = export_encoder(encoder, tmp_path, formats=["onnx"])
    content = good.path.read_bytes()
    # An encoder that gives other weights whenever it is asked is exported wrong, whatever is written.
    right = SparseEncoder.encode_document
    monkeypatch.setattr(
        SparseEncoder, "encode_document", lambda *args, **options: right(*args, **options) * 1.01
    )
    with pytest.raises(ParityError, match=r"the token '.+' weighs .* instead of"):
        export_encoder(encoder, tmp_path, formats=["onnx"])
    assert good.path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_the_reference_is_sentence_transformers_own_pooling_of_all_logits_in_bounded_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, seen = encoder_of("bert", folder), list[torch.Size]()
    encoder.document_matrix(TEXTS)  # the streaming head is in place
    bound = 2 * 512 * encoder.vocabulary.size * 4
    monkeypatch.setattr("exporters.parity.LOGITS_BYTES", bound)
    pool = SpladePooling.forward

    def forward(self: SpladePooling, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(features["token_embeddings"].shape)
        return pool(self, features)

    monkeypatch.setattr(SpladePooling, "forward", forward)
    export_encoder(encoder, tmp_path, formats=["onnx"])
    assert sum(shape[0] for shape in seen) == len(FEWER_TEXTS)
    assert {shape[2] for shape in seen} == {encoder.vocabulary.size}
    assert max(shape.numel() * 4 for shape in seen) <= bound


def test_all_archives_are_put_in_place_or_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.export.parity_texts", lambda: TEXTS)
    encoder = encoder_of("bert", folder)
    export_encoder(encoder, tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def meanwhile(step: str, done: int, total: int) -> None:
        (tmp_path / "torchscript" / "mine.txt").write_text("put there during the export")

    with pytest.raises(UsageError, match=r"mine\.txt.*nothing was changed"):
        export_encoder(encoder, tmp_path, version="2", progress=meanwhile)
    (tmp_path / "torchscript" / "mine.txt").unlink()
    assert sorted(tmp_path.rglob("*")) == before
    assert open_archive(tmp_path).version == "1.0.0"


def test_what_torch_raises_is_one_line_with_a_hint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(encoder: SparseEncoder, reason: str) -> None:
        with pytest.raises(ExportError, match=reason) as caught:
            export_encoder(encoder, tmp_path / "out", formats=["torchscript"])
        assert caught.value.hint
        assert not (tmp_path / "out").exists()

    def save(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed\nat frame #0")

    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "save", save)
        refused(encoder_of("bert", folder), r"cannot write the TorchScript model: [^\n]*file write failed\.")
    transformer = Transformer(str(folder / "bert"))
    misfit = Dense(in_features=16, out_features=161, module_input_name="token_embeddings")
    refused(SparseEncoder(modules=[transformer, misfit, SpladePooling()], device="cpu"), "does not run")
    transformer = Transformer(str(folder / "bert"), transformer_task="fill-mask")
    transformer.tokenizer.pad_token = None
    refused(SparseEncoder(modules=[transformer, SpladePooling()], device="cpu"), "no padding token")


def test_a_tokenizer_that_needs_python_code_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of("bert", folder)
    own = type(encoder.tokenizer).__call__

    class Shouting(type(encoder.tokenizer)):  # type: ignore[misc]
        def __call__(self, text: list[str], **options: object) -> object:
            return own(self, [part + " !" for part in text], **options)

    encoder.tokenizer.__class__ = Shouting
    with pytest.raises(ParityError, match=r"tokenizer\.json alone gives"):
        export_encoder(encoder, tmp_path, formats=["onnx"])


def test_encoders_and_arguments_that_cannot_be_exported(folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of("bert", folder)
    for wrong in (
        {"formats": []},
        {"formats": ["onnx", "onnx"]},
        {"formats": ["pickle"]},
        {"quantize": "int8"},
        {"formats": ["onnx"], "quantize": "int4"},
        {"prune": Prune("alpha_mass", 0.5)},
        {"name": "über <b>"},
        {"name": " "},
        {"version": ""},
    ):
        with pytest.raises(UsageError) as caught:
            export_encoder(encoder, tmp_path, **wrong)  # type: ignore[arg-type]
        assert caught.value.hint
    encoder.prompts = {"query": "query: ", "document": ""}
    with pytest.raises(ExportError, match="puts the prompt 'query: '"):
        export_encoder(encoder, tmp_path)
    transformer = Transformer(str(folder / "bert"), transformer_task="fill-mask")
    transformer.tokenizer.padding_side = "left"
    encoder = SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu")
    with pytest.raises(ExportError, match="pads texts on the left"):
        export_encoder(encoder, tmp_path)
    modules = [transformer, SpladePooling("max"), SpladePooling("max")]
    with pytest.raises(EncoderError, match="has the modules Transformer → SpladePooling → SpladePooling"):
        export_encoder(SparseEncoder(modules=modules, device="cpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sum_pooling_and_another_precision(folder: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(folder / "bert"), transformer_task="fill-mask")
    encoder = SparseEncoder(modules=[transformer, SpladePooling("sum")], device="cpu")
    encoder.max_seq_length = 64
    encoder = encoder.bfloat16()
    for archive in export_encoder(encoder, tmp_path, name="sum", formats=["onnx"]):
        assert archive.manifest is not None
        assert (archive.manifest.pooling, archive.manifest.max_length) == ("sum", 64)
    assert next(encoder.parameters()).dtype == torch.bfloat16


def test_a_folder_with_another_encoders_archives_is_left_alone(folder: Path, tmp_path: Path) -> None:
    export_encoder(encoder_of("bert", folder), tmp_path, formats=["onnx"])
    with pytest.raises(UsageError, match="holds an archive of another encoder"):
        export_encoder(encoder_of("roberta", folder), tmp_path, formats=["torchscript"])
    with pytest.raises(ExportError, match="cannot write to"):
        export_encoder(encoder_of("bert", folder), folder / "bert" / "config.json" / "out")


@pytest.mark.parametrize("manifest", ['{"manifest_version": 0}', '{"file": "a.zip", "pari', "[]"])
def test_an_older_export_is_replaced_whatever_its_manifest_says(
    manifest: str, folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "onnx"
    old.mkdir()
    for name in ("old-1.0.0-onnx.zip", "ml-commons_model_config.json"):
        (old / name).write_text("old")
    (old / "manifest.json").write_text(manifest)
    (archive,) = export_encoder(encoder_of("bert", folder), tmp_path, formats=["onnx"])
    assert sorted(path.suffix for path in old.iterdir()) == [".json", ".json", ".zip"]
    assert archive.path.exists() and archive.path.parent == old


@pytest.mark.parametrize("name", ["model.onnx", "mine.zip", "manifest.json/x"])
def test_a_folder_that_no_export_wrote_is_never_replaced(name: str, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "onnx" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="in the way and was not written by an export"):
        export_encoder(encoder_of("bert", folder), tmp_path, formats=["onnx"])
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_the_default_name_is_the_runs_or_the_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.export.parity_texts", lambda: TEXTS)
    shutil.copytree(folder / "bert", tmp_path / "runs" / "quick" / "best")
    encoder = NeuralSparseEncoder.from_pretrained(tmp_path / "runs" / "quick" / "best", device="cpu")
    (archive,) = export_encoder(encoder, tmp_path / "out", formats=["onnx"])
    assert (archive.name, archive.path.name) == ("quick", "quick-1.0.0-onnx.zip")
    (archive,) = export_encoder(encoder, tmp_path / "out", formats=["onnx"], name="best")
    assert archive.name == "best"
    monkeypatch.chdir(tmp_path / "runs" / "quick")
    for place, name in (("best", "quick"), ("my-encoder/model", "my-encoder"), ("bestiary", "bestiary")):
        Path(place).mkdir(parents=True, exist_ok=True)
        assert short_name(place) == name
    assert short_name("organisation/best") == "organisation/best"  # a repository


def test_an_archive_opens_by_its_folder(exported: tuple[tiny.Kind, list[Archive]]) -> None:
    torchscript, onnx_archive = exported[1]
    assert open_archive(torchscript.path.parent.parent) == onnx_archive
    assert open_archive(torchscript.path.parent) == torchscript
