"""The streaming head inside of whole encoders, beside plain sentence-transformers on the same modules."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Dense, Router, SpladePooling, Transformer
from torch import Tensor, nn

from oskit.encoder.head.projection import random_projection
from oskit.encoder.head.streaming import VocabularyProjection, attach
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import EncoderError
from tests import tiny

TEXTS = [
    "a concrete bridge over the water",
    "",
    "road",
    "hello hello world, bro och betong 你好",
    "long " * 40,
]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], NeuralSparseEncoder]:
    """An encoder of each kind, new each time, built by hand."""
    folders: dict[tiny.Kind, Path] = {}

    def folder(kind: tiny.Kind) -> str:
        if kind not in folders:
            folders[kind] = tiny.build(kind, tmp_path_factory.mktemp(kind))
        return str(folders[kind])

    def made(name: str) -> NeuralSparseEncoder:
        pooling = SpladePooling("max", activation_function="log1p_relu" if name == "distilbert" else "relu")
        if name in ("dense", "router"):
            transformer = Transformer(folder("bert-headless"))
            projection = random_projection(32, len(transformer.tokenizer), std=0.3, seed=1)
            modules: list[Any] = [transformer, projection, pooling]
        else:
            modules = [Transformer(folder(name), transformer_task="fill-mask"), pooling]
        if name == "router":
            modules = [Router.for_query_document(query_modules=list(modules), document_modules=modules)]
        return NeuralSparseEncoder(modules=modules, device="cpu", similarity_fn_name="dot").eval()

    return made


NAMES = ["bert", "distilbert", "roberta", "xlmr", "dense", "router"]


def plain(encoder: NeuralSparseEncoder) -> SparseEncoder:
    """sentence-transformers' own class around copies of the modules that were never attached."""
    return SparseEncoder(modules=[deepcopy(module) for module in encoder], device="cpu").train(
        encoder.training
    )


def embed(encoder: SparseEncoder, task: str = "document") -> Tensor:
    features = encoder.preprocess(TEXTS)
    options = {"task": task} if isinstance(encoder[0], Router) else {}
    embeddings: Tensor = encoder(features, **options)["sentence_embedding"]
    return embeddings


def gradients(encoder: SparseEncoder) -> dict[str, Tensor]:
    """Of a loss with a weight of its own for each element, by the parameters' names."""
    encoder.zero_grad()
    for module in encoder.modules():
        if isinstance(module, SpladePooling):
            module.train()  # else it overwrites what its own gradient needs
    embeddings = embed(encoder)
    weights = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(5))
    (embeddings * weights).sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def is_streamed(encoder: NeuralSparseEncoder) -> bool:
    return attach(encoder.anatomy) and "forward" in encoder.anatomy.pooling.__dict__


def logits(encoder: NeuralSparseEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """What the modules compute outside of the streaming head, as the exporter runs them."""
    features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    for module in encoder.anatomy.logit_modules:
        features = module(features)
    found: Tensor = features["token_embeddings"]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_sentence_transformers(
    build: Callable[[str], NeuralSparseEncoder], name: str
) -> None:
    encoder = build(name)
    reference = plain(encoder)
    with torch.no_grad():
        torch.testing.assert_close(embed(encoder), embed(reference), rtol=1e-6, atol=1e-6)
    assert is_streamed(encoder)
    assert not any(isinstance(module, VocabularyProjection) for module in reference.modules())
    ours, theirs = encoder.encode_document(TEXTS), reference.encode_document(TEXTS)
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense(), rtol=1e-6, atol=1e-6)
    queries = encoder.encode_query(TEXTS).to_dense()
    torch.testing.assert_close(queries, reference.encode_query(TEXTS).to_dense(), rtol=1e-6, atol=1e-6)
    # Some gradients are sums that cancel out, and in single precision nothing but rounding.
    found, expected = gradients(encoder.double()), gradients(reference.double())
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-6, msg=key)


def test_dropout_draws_the_same_numbers(build: Callable[[str], NeuralSparseEncoder]) -> None:
    """Trying the head on three tokens leaves no trace: a resumed training repeats an uninterrupted one."""
    encoder = build("bert").train()
    reference = plain(encoder)
    results = []
    for model in (encoder, reference):
        torch.manual_seed(11)
        results.append(embed(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert").train()
    torch.manual_seed(12)
    expected = gradients(encoder)
    encoder.anatomy.transformer.model.activation_checkpointing_enable()
    torch.manual_seed(12)
    found = gradients(encoder)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient)


def test_autocast(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert")
    reference = plain(encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = gradients(encoder), gradients(reference)
        assert is_streamed(encoder)
        torch.testing.assert_close(embed(encoder), embed(reference), rtol=0.02, atol=0.02)
    whole, reference_whole = (torch.cat([g.flatten() for g in grads.values()]) for grads in (ours, theirs))
    assert torch.cosine_similarity(whole, reference_whole, dim=0) > 0.99


@pytest.mark.parametrize("name", ["bert", "dense", "router"])
def test_a_folder_saved_after_training_opens_in_sentence_transformers(
    build: Callable[[str], NeuralSparseEncoder], tmp_path: Path, name: str
) -> None:
    encoder = build(name)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    gradients(encoder)
    optimizer.step()
    expected = encoder.encode_document(TEXTS).to_dense()
    encoder.save_pretrained(str(tmp_path))
    for file in tmp_path.rglob("*.json"):
        if file.name in ("modules.json", "router_config.json", "config.json"):
            assert "oskit" not in file.read_text(), file
    assert json.loads((tmp_path / "modules.json").read_text())
    opened = SparseEncoder(str(tmp_path), device="cpu").encode_document(TEXTS).to_dense()
    torch.testing.assert_close(opened, expected, rtol=1e-6, atol=1e-6)


def test_the_exporter_gets_logits(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert")
    features = encoder.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]
    with torch.no_grad():
        before = logits(encoder, ids, mask)
        embed(encoder)
        assert is_streamed(encoder)
        assert torch.equal(logits(encoder, ids, mask), before)
        assert torch.equal(encoder.anatomy.transformer.model(ids, attention_mask=mask).logits, before)
    assert before.shape == (*ids.shape, encoder.vocabulary.size)


@pytest.mark.parametrize("copied", [deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_a_copy_stands_alone(
    build: Callable[[str], NeuralSparseEncoder], copied: Callable[[Any], Any]
) -> None:
    encoder = build("bert")
    expected = embed(encoder)
    other = copied(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.anatomy.pooling.activation_function = "log1p_relu"
    assert is_streamed(other)
    torch.testing.assert_close(embed(other), expected)


def test_sum_pooling_goes_the_usual_way(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert")
    embed(encoder)
    encoder.anatomy.pooling.pooling_strategy = "sum"
    torch.testing.assert_close(embed(encoder), embed(plain(encoder)))


class Scaled(nn.Linear):
    """What other libraries put in a projection's place."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def _change_logits(encoder: NeuralSparseEncoder, change: Callable[[Tensor], Tensor]) -> None:
    model: Any = encoder.anatomy.transformer.model
    forward = model.forward

    def changed(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = change(output.logits)
        return output

    model.forward = changed


def _scale_after(encoder: NeuralSparseEncoder) -> None:
    _change_logits(encoder, lambda logits: logits / 2)


def _scale_in_place(encoder: NeuralSparseEncoder) -> None:
    _change_logits(encoder, lambda logits: logits.div_(2))


def _other_class(encoder: NeuralSparseEncoder) -> None:
    encoder.anatomy.transformer.model.get_output_embeddings().__class__ = Scaled


def _hook(encoder: NeuralSparseEncoder) -> None:
    projection = encoder.anatomy.transformer.model.get_output_embeddings()
    projection.register_forward_hook(lambda _, __, output: output / 2)


@pytest.mark.parametrize("change", [_scale_after, _scale_in_place, _other_class, _hook])
def test_what_it_does_not_fit_goes_the_usual_way(
    build: Callable[[str], NeuralSparseEncoder], change: Callable[[NeuralSparseEncoder], None]
) -> None:
    encoder = build("bert")
    usual = embed(encoder.eval()).expm1()
    encoder = build("bert")
    change(encoder)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(embed(encoder).expm1(), usual / 2)
    assert not is_streamed(encoder)


def test_a_dense_module_with_an_activation_goes_the_usual_way(
    build: Callable[[str], NeuralSparseEncoder],
) -> None:
    transformer = build("dense").anatomy.transformer
    projection = Dense(32, 50, activation_function=nn.Tanh(), module_input_name="token_embeddings")
    encoder = NeuralSparseEncoder(modules=[transformer, projection, SpladePooling()], device="cpu").eval()
    assert embed(encoder).max() <= torch.tensor(1.0).log1p()
    assert not is_streamed(encoder)


def test_a_module_put_in_later_is_an_error_and_not_another_result(
    build: Callable[[str], NeuralSparseEncoder],
) -> None:
    encoder = build("dense")
    embed(encoder)
    encoder[1].activation_function = nn.Tanh()
    with pytest.raises(EncoderError, match="streaming = False"):
        embed(encoder)
    encoder.streaming = False
    torch.testing.assert_close(embed(encoder), embed(plain(encoder)))


def test_it_can_be_turned_off(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert")
    streamed = embed(encoder)
    encoder.streaming = False
    handed: list[torch.Size] = []
    encoder.anatomy.pooling.register_forward_pre_hook(
        lambda _, arguments: handed.append(arguments[0]["token_embeddings"].shape)
    )
    torch.testing.assert_close(embed(encoder), streamed, rtol=1e-6, atol=1e-6)
    encoder.streaming = True
    embed(encoder)
    assert [shape[-1] for shape in handed] == [encoder.vocabulary.size, 32]


def test_texts_without_padding_between_them(build: Callable[[str], NeuralSparseEncoder]) -> None:
    """As the collator of flash attention makes them; attention over the whole row does not matter here."""
    encoder = build("bert")
    reference = plain(encoder)
    features: dict[str, Any] = {
        "input_ids": torch.randint(5, 100, (1, 30), generator=torch.Generator().manual_seed(1)),
        "position_ids": torch.cat([torch.arange(12), torch.arange(4), torch.arange(14)]).unsqueeze(0),
        "cu_seq_lens_q": torch.tensor([0, 12, 16, 30], dtype=torch.int32),
    }
    with torch.no_grad():
        found, expected = (model(dict(features))["sentence_embedding"] for model in (encoder, reference))
    assert is_streamed(encoder) and found.shape == (3, encoder.vocabulary.size)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_replicas_of_data_parallel_know_the_head(build: Callable[[str], NeuralSparseEncoder]) -> None:
    encoder = build("bert")
    replica = encoder._replicate_for_data_parallel()
    assert isinstance(replica, NeuralSparseEncoder) and is_streamed(encoder)


def test_threads(build: Callable[[str], NeuralSparseEncoder]) -> None:
    """Some encode while others want the logits of the same modules."""
    encoder = build("bert")
    expected, alone = embed(plain(encoder)), deepcopy(encoder)
    features = encoder.preprocess(TEXTS)
    ids, mask = features["input_ids"], features["attention_mask"]

    def work(number: int) -> bool:
        if number % 2:
            return torch.equal(logits(encoder, ids, mask), logits(alone, ids, mask))
        return bool(torch.allclose(embed(encoder), expected, atol=1e-5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(24)))
