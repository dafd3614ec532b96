"""Every layout that a folder may have, and every way in which it may be broken."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder

from oskit.encoder.loader.layouts import HEAD_FILE, detect_layout
from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import (
    BrokenEncoderError,
    EncoderError,
    EncoderNotFoundError,
    MissingDependencyError,
    UntrainedEncoderError,
    UsageError,
)
from tests import tiny
from tests.bomb import Bomb

TEXTS = ["a concrete bridge over the water", "", "road", "hello hello world, bro och betong 你好"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny")

    def build(kind: Any) -> Path:
        folder = root / kind
        return folder if folder.exists() else tiny.build(kind, folder)

    return build


@pytest.fixture
def copy(built: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may break."""

    def copied(kind: str) -> Path:
        folder = tmp_path / kind
        shutil.copytree(built(kind), folder)
        return folder

    return copied


def load(folder: Path | str, **options: Any) -> NeuralSparseEncoder:
    """Load without a fallback; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedProjectionWarning)
        return NeuralSparseEncoder.from_pretrained(folder, device="cpu", fallback=False, **options)


def load_untrained(folder: Path | str, **options: Any) -> NeuralSparseEncoder:
    with pytest.warns(UntrainedProjectionWarning):
        return NeuralSparseEncoder.from_pretrained(folder, device="cpu", **options)


def change(folder: Path, **values: Any) -> None:
    """Change entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a folder."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Layouts


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlmr"])
def test_a_masked_language_model(built: Callable[[str], Path], kind: str) -> None:
    """Against transformers and a formula of our own: log1p(relu(logits)), the largest over the tokens."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = built(kind)
    encoder = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    for text, row in zip(TEXTS, encoder.document_matrix(TEXTS).toarray(), strict=True):
        encoded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(encoded["input_ids"], encoded["attention_mask"]).logits[0]
        expected = torch.log1p(torch.relu(logits)).max(dim=0).values.numpy()
        expected[tokenizer.all_special_ids] = 0
        # The cluster drops a token that decodes to nothing, like SentencePiece's lone ▁.
        expected[[i for i in range(len(tokenizer)) if not tokenizer.decode([i])]] = 0
        np.testing.assert_allclose(row, expected if text else 0 * expected, atol=1e-5)
    report = encoder.load_report
    assert (report.tier, report.layout, report.head, report.architecture, report.activation) == (
        "local", "transformer", "pretrained", "symmetric", "relu",
    )  # fmt: skip
    assert (report.hidden_size, report.layers, report.max_length) == (32, 2, 512)
    assert report.vocabulary_size == model.config.vocab_size
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.bytes == 4 * report.parameters


def test_the_activation_can_be_chosen(built: Callable[[str], Path]) -> None:
    single, double = load(built("bert")), load(built("bert"), activation="log1p_relu")
    np.testing.assert_allclose(
        double.document_matrix(TEXTS).toarray(),
        np.log1p(single.document_matrix(TEXTS).toarray()),
        atol=1e-6,
    )
    assert double.load_report.activation == "log1p_relu"


def test_a_sparse_encoder_saved_by_sentence_transformers(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = SparseEncoder(str(built("bert")), device="cpu")
    plain[1].activation_function = "log1p_relu"
    plain.max_seq_length = 16
    plain.save_pretrained(str(tmp_path / "saved"))
    encoder = load(tmp_path / "saved")
    assert (encoder.load_report.layout, encoder.load_report.activation, encoder.max_length) == (
        "sentence-transformers", "log1p_relu", 16,
    )  # fmt: skip
    torch.testing.assert_close(encoder.encode(TEXTS).to_dense(), plain.encode(TEXTS).to_dense())


def test_a_router_is_inference_free(tmp_path: Path) -> None:
    folder = tiny.build_inference_free(tmp_path / "router")
    encoder = load(folder)
    assert (encoder.architecture, encoder.load_report.activation) == ("inference-free", "log1p_relu")
    idf = encoder.query_idf()
    assert idf is not None and idf.shape == (encoder.vocabulary.size,)
    token = encoder.vocabulary.id_of("bridge")
    assert token is not None
    assert encoder.query_weights(["Bridge bridge, the unknown ☃"])[0]["bridge"] == pytest.approx(
        0.5 + (token % 7) / 4
    )
    assert idf[sorted(encoder.vocabulary.special_ids)].sum() == 0


def opensearch_doc_layout(folder: Path) -> Path:
    """As OpenSearch's doc models are: the encoder in the root, queries in a folder, idf.json beside."""
    saved = tiny.build_inference_free(folder.with_name("whole"))
    shutil.copytree(saved.with_name("whole-base"), folder)
    for name in ("query_0_SparseStaticEmbedding", "document_1_SpladePooling"):
        shutil.copytree(saved / name, folder / name)
    module = "sentence_transformers.sparse_encoder.models"
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}])
    )
    types = {
        "": f"{module}.MLMTransformer",
        "query_0_SparseStaticEmbedding": f"{module}.SparseStaticEmbedding",
        "document_1_SpladePooling": f"{module}.SpladePooling",
    }
    structure = {
        "query": ["query_0_SparseStaticEmbedding"],
        "document": ["", "document_1_SpladePooling"],
    }
    router = {"types": types, "structure": structure, "parameters": {"default_route": "document"}}
    (folder / "router_config.json").write_text(json.dumps(router))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"model_type": "SparseEncoder", "prompts": {}, "similarity_fn_name": "dot"})
    )
    (folder / "idf.json").write_text(json.dumps({"bridge": 9.0}))
    return folder


def test_opensearchs_doc_v3_layout(tmp_path: Path) -> None:
    folder = opensearch_doc_layout(tmp_path / "doc-v3")
    encoder = load(folder)
    assert (encoder.architecture, encoder.load_report.activation) == ("inference-free", "log1p_relu")
    whole = load(tmp_path / "whole")
    assert abs(encoder.document_matrix(TEXTS) - whole.document_matrix(TEXTS)).max() == 0
    assert abs(encoder.query_matrix(TEXTS) - whole.query_matrix(TEXTS)).max() == 0
    plain = SparseEncoder(str(folder), device="cpu")
    torch.testing.assert_close(encoder.encode_query(TEXTS).to_dense(), plain.encode_query(TEXTS).to_dense())


@pytest.mark.parametrize("form", ["idf.json", "query_token_weights.txt"])
def test_a_masked_language_model_with_a_table_is_inference_free(
    copy: Callable[[str], Path], form: str
) -> None:
    """The layout of OpenSearch's doc-v1: the tokens that the table lacks weigh nothing."""
    folder = copy("bert")
    table = {"bridge": 5.5, "##s": 0.25, "[CLS]": 3.0, "no token at all": 7.0}
    lines = "".join(f"{token}\t{weight}\n" for token, weight in table.items())
    (folder / form).write_text(json.dumps(table) if form == "idf.json" else lines)
    encoder = load(folder)
    assert encoder.architecture == "inference-free"
    assert encoder.query_weights(["roads, a bridge; bridge"]) == [{"bridge": 5.5, "##s": 0.25}]
    plain = load(copy_without(folder, form))
    assert abs(encoder.document_matrix(TEXTS) - plain.document_matrix(TEXTS)).max() == 0


def copy_without(folder: Path, name: str) -> Path:
    target = folder.with_name(f"{folder.name}-plain")
    shutil.copytree(folder, target)
    (target / name).unlink()
    return target


SENTENCEPIECE = (
    "spm.model",
    "sentencepiece.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@pytest.mark.parametrize("name", [*SENTENCEPIECE, "vocab.txt", "vocab.json"])
def test_a_tokenizer_is_known_by_any_of_its_files(copy: Callable[[str], Path], name: str) -> None:
    """SentencePiece's model has another name in each architecture; DeBERTa-v2's is ``spm.model``."""
    folder = copy("bert")
    (folder / "tokenizer.json").rename(folder / name)
    assert detect_layout(folder).kind == "transformer"
    (folder / name).rename(folder / "no-tokenizer")
    with pytest.raises(BrokenEncoderError, match="has no tokenizer"):
        detect_layout(folder)


# Heads


def projection_for(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    config = json.loads((folder / "config.json").read_text())
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(config["vocab_size"], config["hidden_size"], generator=generator)
    return weight, torch.randn(config["vocab_size"], generator=generator)


FORMS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "bare": lambda weight, bias: {"weight": weight, "bias": bias},
    "prefixed": lambda weight, bias: {"linear.weight": weight, "linear.bias": bias},
    "data parallel": lambda weight, bias: {"module.head.weight": weight, "module.head.bias": bias},
    "wrapped": lambda weight, bias: {
        "projection": {"weight": weight, "bias": bias},
        "model_name": "some/base",
        "max_length": 32,
        "vocab_size": len(weight),
        "hidden_size": weight.shape[1],
    },
    "half": lambda weight, bias: {"weight": weight.half(), "bias": bias.half()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [".", "encoder"])
def test_a_head_in_a_file_of_its_own(copy: Callable[[str], Path], form: str, place: str) -> None:
    """Against transformers and a formula of our own: logits = hidden states · weightᵀ + bias."""
    from transformers import AutoModel, AutoTokenizer

    encoder_folder = copy("bert-headless")
    weight, bias = projection_for(encoder_folder)
    folder = encoder_folder
    if place == "encoder":
        folder = encoder_folder.parent / "outer"
        folder.mkdir()
        encoder_folder = encoder_folder.rename(folder / "encoder")
    torch.save(FORMS[form](weight, bias), folder / "neural_sparse_head.pt")
    encoder = load(folder)
    report = encoder.load_report
    assert (report.layout, report.head) == ("head file", "pretrained")
    assert report.max_length == (32 if form == "wrapped" else 512)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    model = AutoModel.from_pretrained(encoder_folder).eval()
    encoded = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        hidden = model(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state[0]
    logits = hidden @ weight.T + bias
    expected = torch.log1p(torch.relu(logits)).max(dim=0).values.numpy()
    expected[tokenizer.all_special_ids] = 0
    atol = 1e-2 if form == "half" else 1e-5
    np.testing.assert_allclose(encoder.document_matrix(TEXTS[:1]).toarray()[0], expected, atol=atol)


def test_a_head_without_a_bias(copy: Callable[[str], Path]) -> None:
    folder = copy("bert-headless")
    weight, bias = projection_for(folder)
    torch.save({"weight": weight}, folder / "neural_sparse_head.pt")
    without = load(folder).document_matrix(TEXTS)
    torch.save({"weight": weight, "bias": torch.zeros_like(bias)}, folder / "neural_sparse_head.pt")
    assert abs(without - load(folder).document_matrix(TEXTS)).max() == 0


def test_a_head_that_was_left_behind_does_not_count(copy: Callable[[str], Path]) -> None:
    """The older layout, loaded and saved over itself."""
    folder = copy("bert-headless")
    torch.save(dict(zip(("weight", "bias"), projection_for(folder), strict=True)), folder / HEAD_FILE)
    encoder = load(folder)
    with torch.no_grad():
        encoder.anatomy.projection.linear.weight.mul_(2)
    encoder.save_pretrained(str(folder))
    assert load(folder).load_report.layout == "sentence-transformers"
    assert abs(load(folder).document_matrix(TEXTS) - encoder.document_matrix(TEXTS)).max() == 0


@pytest.mark.parametrize("name", ["neural_sparse_head.pt", "pytorch_model.bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_pickle_does_not_run(
    copy: Callable[[str], Path], tmp_path: Path, name: str, how: str
) -> None:
    folder = copy("bert-headless")
    bomb = {"weight": Bomb(tmp_path / "exploded")}
    if how == "torch":
        torch.save(bomb, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(bomb))
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenEncoderError, match=str(folder)):
        load(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda w, b: {"weight": w[:, :-1], "bias": b}, r"shape \[161, 31\].*\[vocabulary, 32\]"),
        (lambda w, b: {"weight": w.T, "bias": b}, r"shape \[32, 161\]"),
        (lambda w, b: {"weight": w, "bias": b[:-1]}, r"bias has the shape \[160\]"),
        (lambda w, b: {"weight": w[:100], "bias": b[:100]}, "161 tokens, the encoder's output only 100"),
        (lambda w, b: {"strange.weight": w}, "no projection under a known key, only 'strange.weight'"),
        (lambda w, b: [w, b], "holds a list, not a state dict"),
        (lambda w, b: {"weight": w * float("nan"), "bias": b}, "NaN"),
    ],
)
def test_a_head_that_does_not_fit(
    copy: Callable[[str], Path], head: Callable[[Any, Any], Any], message: str
) -> None:
    folder = copy("bert-headless")
    torch.save(head(*projection_for(folder)), folder / "neural_sparse_head.pt")
    with pytest.raises(BrokenEncoderError, match=message):
        load(folder)


# Missing heads


def test_a_headless_encoder_is_noticed_by_its_missing_weights(copy: Callable[[str], Path]) -> None:
    """Its config.json claims a head."""
    folder = copy("bert-headless")
    change(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(UntrainedEncoderError, match=r"lacks the weights of the projection \(cls\."):
        load(folder)
    encoder = load_untrained(folder)
    assert (encoder.load_report.head, encoder.load_report.tier) == ("random", "local")


def test_a_head_is_noticed_by_its_weights(copy: Callable[[str], Path]) -> None:
    """Its config.json says nothing of one."""
    folder = copy("bert")
    change(folder, architectures=None)
    assert load(folder).load_report.head == "pretrained"


def test_a_dense_model_of_sentence_transformers_is_a_headless_encoder(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("bert-headless")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
    encoder = load_untrained(folder)
    assert (encoder.load_report.head, encoder.load_report.max_length) == ("random", 256)


def test_a_random_projection_is_the_same_for_a_seed(built: Callable[[str], Path]) -> None:
    folder = built("bert-headless")
    first, again, other = (load_untrained(folder, seed=seed).document_matrix(TEXTS) for seed in (1, 1, 2))
    assert abs(first - again).max() == 0
    assert abs(first - other).max() > 0.01


def test_loading_leaves_every_global_random_number_generator_as_it_was(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's too, which torch.manual_seed() seeds, at once or when CUDA starts."""
    whole, headless = built("bert"), built("bert-headless")
    seeded: list[str] = []
    for backend in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"):
            monkeypatch.setattr(backend, name, lambda *_, name=name: seeded.append(name), raising=False)
    torch.default_generator.manual_seed(5)
    expected = torch.random.get_rng_state(), random.getstate(), repr(np.random.get_state())
    load(whole, seed=3)
    load_untrained(headless, seed=3)
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    assert (random.getstate(), repr(np.random.get_state())) == expected[1:]
    assert seeded == []


def test_a_default_device_does_not_matter(built: Callable[[str], Path]) -> None:
    """What is made up is drawn on the CPU; a default device has random numbers of its own."""
    expected = load_untrained(built("bert-headless")).document_matrix(TEXTS)
    with torch.device("meta"):
        encoder = load_untrained(built("bert-headless"))
    assert abs(encoder.document_matrix(TEXTS) - expected).max() == 0


def test_the_base_has_its_own_head_ignored(built: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = load_untrained(tmp_path / "missing", base=built("bert"))
    report = encoder.load_report
    assert (report.tier, report.head, report.source) == ("base", "random", str(built("bert")))
    assert encoder.anatomy.projection is not None


def test_the_warning_is_one_box_that_says_what_is_missing(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.warns(UntrainedProjectionWarning) as caught:
        NeuralSparseEncoder.from_pretrained(tmp_path / "missing", base=built("bert"), device="cpu")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    lines = str(caught[0].message).strip().splitlines()
    assert {len(line) for line in lines} == {len(lines[0])}
    assert "RANDOM" in lines[1]
    assert "no such folder" in " ".join(line.strip("! ") for line in lines), (
        "long paths make it wrap anywhere"
    )


# Broken folders


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be loaded"),
        (lambda f: change(f, model_type="nonsense"), "nonsense"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded"),
        (lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda f: os.truncate(f / "tokenizer.json", 300), "cannot be loaded"),
        (lambda f: change(f, vocab_size=200), r"embeddings.*\[161, 32\].*\[200, 32\]"),
        (lambda f: change(f, hidden_size=64), "the shape"),
        (lambda f: change(f, num_hidden_layers=3), "lacks weights of the encoder: .*encoder.layer.2"),
        (lambda f: (f / "modules.json").write_text("{}"), "names no Transformer module"),
        (lambda f: (f / "modules.json").write_text('[{"type": 3}]'), "not what sentence-transformers writes"),
        (
            lambda f: (f / "modules.json").write_text('[{"type": "x.Transformer", "path": "../.."}]'),
            "outside of itself",
        ),
        (lambda f: (f / "idf.json").write_text('{"a": "b"}'), "the weight 'b'"),
        (lambda f: (f / "idf.json").write_text('{"a": NaN}'), "the weight nan"),
        (lambda f: (f / "idf.json").write_text('{"a": -1}'), "the weight -1"),
        (lambda f: (f / "idf.json").write_text('{"a": 1'), r"idf\.json cannot be read"),
        (lambda f: (f / "idf.json").write_text("[]"), "is not a table of token weights"),
    ],
)
def test_a_broken_folder_is_one_clear_error(
    copy: Callable[[str], Path], broken: Callable[[Path], object], message: str
) -> None:
    folder = copy("bert")
    broken(folder)
    with pytest.raises(BrokenEncoderError, match=message) as raised:
        # Even with a base at hand: what is broken is never replaced.
        NeuralSparseEncoder.from_pretrained(folder, base=folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert str(folder) in str(raised.value)
    assert raised.value.hint


def test_weights_that_are_not_numbers(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    name = "cls.predictions.transform.dense.weight"
    rewrite(folder, lambda weights: weights[name][3, 3].fill_(float("nan")))
    with pytest.raises(BrokenEncoderError, match=rf"{re.escape(name)} holds NaN"):
        load(folder)


def test_half_a_head_is_broken(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    rewrite(folder, lambda weights: weights.pop("cls.predictions.transform.dense.weight"))
    with pytest.raises(BrokenEncoderError, match="only a part of its head"):
        load(folder)


def test_old_names_of_weights_are_understood(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    expected = load(folder).document_matrix(TEXTS)

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            weights[old.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)

    rewrite(folder, rename)
    assert any("gamma" in name for name in load_file(folder / "model.safetensors"))
    assert abs(load(folder).document_matrix(TEXTS) - expected).max() == 0


def test_a_saved_sparse_encoder_without_its_heads_weights_is_broken(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    SparseEncoder(str(built("bert")), device="cpu").save_pretrained(str(tmp_path / "saved"))

    def behead(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith("cls.")]:
            weights.pop(name)

    rewrite(tmp_path / "saved", behead)
    with pytest.raises(BrokenEncoderError, match="lacks weights of its head"):
        load_any(tmp_path / "saved")


def load_any(folder: Path) -> NeuralSparseEncoder:
    return NeuralSparseEncoder.from_pretrained(folder, base=folder, device="cpu")


def test_a_tokenizer_of_another_encoder_is_refused(
    copy: Callable[[str], Path], built: Callable[[str], Path]
) -> None:
    folder = copy("bert")
    shutil.copy(built("xlmr") / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(BrokenEncoderError, match=r"tokenizer has \d+ tokens, the encoder's output only 161"):
        load(folder)


def test_custom_code_does_not_run_unless_asked_for(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("bert")
    (folder / "custom.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    auto_map = {"AutoConfig": "custom.Config", "AutoModelForMaskedLM": "custom.Model"}
    change(folder, model_type="custom", auto_map=auto_map)
    with pytest.raises(EncoderError, match=r"needs its own Python code.*trust_remote_code=True"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_custom_code_runs_when_asked_for(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    expected = load(folder).document_matrix(TEXTS)
    (folder / "custom.py").write_text(
        "from transformers import BertConfig, BertForMaskedLM\n"
        "class Config(BertConfig):\n    model_type = 'custom'\n"
        "class Model(BertForMaskedLM):\n    config_class = Config\n"
    )
    auto_map = {"AutoConfig": "custom.Config", "AutoModelForMaskedLM": "custom.Model"}
    change(folder, model_type="custom", auto_map=auto_map)
    encoder = load(folder, trust_remote_code=True)
    assert encoder.load_report.model_type == "custom"
    assert abs(encoder.document_matrix(TEXTS) - expected).max() == 0


def test_a_sparse_autoencoder_has_no_tokens(built: Callable[[str], Path], tmp_path: Path) -> None:
    SparseEncoder(str(built("bert-headless")), device="cpu").save_pretrained(str(tmp_path / "csr"))
    with pytest.raises(EncoderError, match="dimensions are not tokens"):
        load_any(tmp_path / "csr")


def test_an_adapter_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BrokenEncoderError, match="PEFT adapter"):
        load_any(tmp_path)


def test_a_folder_of_folders_names_them(built: Callable[[str], Path]) -> None:
    with pytest.raises(BrokenEncoderError, match=r"Did you mean .*bert"):
        load_any(built("bert").parent)


# Causes that are not in the files


GPU = "CUDA out of memory. GPU 0 has a total capacity of 8 GiB of which 12 MiB is free."
CAUSES: dict[str, tuple[Exception, type[EncoderError | MissingDependencyError], str]] = {
    "gpu": (
        torch.OutOfMemoryError(GPU),
        EncoderError,
        r"no memory left.*GPU 0.*12 MiB is free.*device='cpu'.*half",
    ),
    "driver": (RuntimeError("CUDA error: out of memory"), EncoderError, r"no memory left.*device='cpu'"),
    "memory": (MemoryError(), EncoderError, r"no memory left.*smaller encoder"),
    "processor": (
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        EncoderError,
        r"no memory left.*tried to allocate 9 bytes.*smaller encoder",
    ),
    "package": (
        ImportError("XTokenizer requires the SentencePiece library but it was not found in your environment"),
        MissingDependencyError,
        "needs the package 'sentencepiece'.*pip install sentencepiece$",
    ),
    "its code's package": (
        ModuleNotFoundError("No module named 'no_such'", name="no_such.part"),
        MissingDependencyError,
        r"pip install no_such$",
    ),
    "its code's version": (
        ImportError("cannot import name 'gone' from 'transformers.utils'", name="transformers.utils"),
        EncoderError,
        "needs other packages than those installed: cannot import name 'gone'",
    ),
    "permission": (
        PermissionError(errno.EACCES, "Permission denied", "model.safetensors"),
        EncoderError,
        r"model\.safetensors cannot be read: Permission denied",
    ),
    "disk": (
        OSError(errno.EIO, "Input/output error"),
        EncoderError,
        r"bert cannot be read: Input/output error",
    ),
}


@pytest.mark.parametrize("where", ["weights", "device", "check"])
@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_has_its_own_words_wherever_it_is_met(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, cause: str, where: str
) -> None:
    """Out of memory is no broken copy, a missing package no missing tokenizer."""
    error, kind, words = CAUSES[cause]

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    place = {
        "weights": "oskit.encoder.loader.modules.Transformer",
        "device": "torch.nn.Module.to",
        "check": "oskit.encoder.loader.load.check_finite",
    }[where]
    folder = built("bert")
    monkeypatch.setattr(place, fail)
    with pytest.raises(kind, match=words) as raised:
        NeuralSparseEncoder.from_pretrained(folder, device="cpu")
    assert not isinstance(raised.value, BrokenEncoderError)
    assert "again" not in str(raised.value)


def test_a_device_without_memory_is_no_unknown_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError(GPU)

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(EncoderError, match=r"no memory left to load anything onto cuda: .*12 MiB is free"):
        NeuralSparseEncoder.from_pretrained(tmp_path, device="cuda")


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
@pytest.mark.parametrize("saved", [False, True], ids=["plain", "saved"])
def test_a_sentencepiece_tokenizer_asks_for_sentencepiece(
    built: Callable[[str], Path], tmp_path: Path, saved: bool
) -> None:
    """transformers itself takes the file for one of tiktoken's and asks for that, or says nothing of it."""
    folder = tmp_path / "encoder"
    if saved:
        SparseEncoder(str(built("xlmr")), device="cpu").save_pretrained(str(folder))
    else:
        shutil.copytree(built("xlmr"), folder)
    (folder / "tokenizer.json").rename(folder / "spm.model")
    with pytest.raises(MissingDependencyError, match=f"{folder} needs.*pip install sentencepiece"):
        load(folder)


def test_a_tokenizer_that_does_not_open_is_named_as_such(copy: Callable[[str], Path]) -> None:
    """transformers' AutoProcessor, which sentence-transformers asks, keeps the reason to itself."""
    folder = copy("bert")
    os.truncate(folder / "tokenizer.json", 300)
    with pytest.raises(BrokenEncoderError) as raised:
        load(folder)
    assert "processing class" not in str(raised.value) and "config.json" not in str(raised.value)


def test_a_folder_that_may_not_be_looked_at_is_not_taken_for_missing(
    built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built("bert")

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(EncoderError, match="cannot be looked at: Permission denied"):
        NeuralSparseEncoder.from_pretrained(folder, base=folder)


# Arguments


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"is a file.*archive"):
        load(tmp_path / "model.zip")


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_an_empty_name(name: str) -> None:
    with pytest.raises(UsageError):
        load(name)


def test_arguments_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown activation 'gelu'"):
        load(tmp_path / "missing", activation="gelu")
    with pytest.raises(UsageError, match="no room"):
        load(tmp_path / "missing", max_seq_length=2)
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UsageError, match=f"torch cannot use the device '{device}'"):
            NeuralSparseEncoder.from_pretrained(tmp_path / "missing", device=device)


@pytest.mark.parametrize("name", ["x" * 5000, "~nosuchuser/model"])
def test_a_name_that_no_path_can_have(name: str) -> None:
    with pytest.raises(EncoderNotFoundError, match="no folder"):
        load(name)


def test_a_folder_has_no_revision(built: Callable[[str], Path]) -> None:
    assert "no revision" in load(built("bert"), revision="v1").load_report.attempts[-1].reason


def test_max_seq_length(built: Callable[[str], Path]) -> None:
    assert load(built("bert"), max_seq_length=8).max_length == 8
    with pytest.raises(UsageError, match="more than the 512 positions"):
        load(built("roberta"), max_seq_length=513)


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(EncoderNotFoundError, match=r"no such folder.*not in the cache"):
        NeuralSparseEncoder.from_pretrained("team/missing", base="team/nothing")
