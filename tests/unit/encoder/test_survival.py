"""What is changed on an encoder survives saving and loading, or is refused; of every architecture.

The reference is plain sentence-transformers: its ``SparseEncoder`` opens the folder that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Dense, SpladePooling, Transformer
from torch import nn

from oskit.archive.text_encoder import Activation
from oskit.encoder.head.streaming import attach
from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.dense_head import fit_dense_head
from oskit.encoder.surgery.inference_free import inference_free
from oskit.encoder.surgery.layers import keep_layers
from oskit.encoder.surgery.lexical_head import fit_lexical_head
from oskit.errors import BrokenEncoderError, EncoderError, UntrainedEncoderError
from tests import tiny

TEXTS = ["a concrete bridge over the water", "road", "hello hello world, bro och betong", "long " * 40]

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The folder of a tiny encoder, made once."""
    made: dict[str, Path] = {}

    def folder(kind: tiny.Kind, **options: Any) -> Path:
        key = f"{kind} {options}"
        if key not in made:
            made[key] = tiny.build(kind, tmp_path_factory.mktemp(kind), **options)
        return made[key]

    return folder


def load(folder: Path) -> NeuralSparseEncoder:
    return NeuralSparseEncoder.from_pretrained(folder, device="cpu", fallback=False)


def with_dense(folder: Path, *, bias: bool = True) -> NeuralSparseEncoder:
    """An encoder with a (trained) projection of its own behind the transformer, made by hand."""
    transformer = Transformer(str(folder), model_kwargs={"dtype": torch.float32})
    config: Any = transformer.model.config
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dense = Dense(
            config.hidden_size,
            config.vocab_size,
            bias=bias,
            activation_function=nn.Identity(),
            module_input_name="token_embeddings",
        )
    modules: list[Any] = [transformer, dense, SpladePooling("max")]
    return NeuralSparseEncoder(modules=modules, device="cpu", similarity_fn_name="dot").eval()


def assert_survives(encoder: NeuralSparseEncoder, folder: Path) -> None:
    """Ours again and plain sentence-transformers compute what it computes."""
    encoder.save_pretrained(str(folder))
    plain = SparseEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = encoder.encode_document(TEXTS).to_dense().float()
    assert_same(plain.encode_document(TEXTS).to_dense(), expected, encoder.dtype)
    ours, again = (
        torch.from_numpy(made.document_matrix(TEXTS).toarray()) for made in (encoder, load(folder))
    )
    assert_same(again, ours, encoder.dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Up to rounding; half precision rounds a lot in models at random."""
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.cosine_similarity(found.float(), expected.float()).min() > 0.995


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_cut_layers_survive_or_are_refused(kind: tiny.Kind, build: Build, tmp_path: Path) -> None:
    encoder = load(build(kind))
    whole = encoder.document_matrix(TEXTS)
    if kind == "albert":
        with pytest.raises(EncoderError, match="cannot be cut"):
            keep_layers(encoder, 1, tiny.sentences(100))
        assert abs(encoder.document_matrix(TEXTS) - whole).max() == 0
        return
    encoder.train()
    keep_layers(encoder, 1, tiny.sentences(100))
    assert abs(encoder.document_matrix(TEXTS) - whole).max() > 0.01
    assert_survives(encoder.eval(), tmp_path / "saved")
    assert load(tmp_path / "saved").load_report.layers == 1


def test_a_head_that_is_nothing_but_the_embeddings_cannot_be_fitted_to_another_layer(tmp_path: Path) -> None:
    encoder = load(tiny.build("eurobert", tmp_path / "tied", tie_word_embeddings=True))
    with pytest.raises(EncoderError, match="only one to read the last hidden states"):
        keep_layers(encoder, 1, tiny.sentences(100))
    assert encoder.anatomy.layers == 2


@pytest.mark.parametrize(
    ("kind", "bias"),
    [(kind, bool(i % 2)) for i, kind in enumerate(tiny.ARCHITECTURES) if kind != "albert"],
)
def test_a_projection_behind_a_transformer_is_fitted_to_the_layer_that_is_kept(
    kind: tiny.Kind, bias: bool, build: Build, tmp_path: Path
) -> None:
    errors = []
    for fitted in (True, False):
        encoder = with_dense(build(kind), bias=bias)
        expected = encoder.encode_document(TEXTS).to_dense()
        projection: Any = encoder.anatomy.projection
        before = {name: tensor.clone() for name, tensor in projection.state_dict().items()}
        keep_layers(encoder, 1, tiny.sentences(200))
        assert (projection.linear.bias is not None) == bias
        if not fitted:
            projection.load_state_dict(before)
        errors.append(float((encoder.encode_document(TEXTS).to_dense() - expected).square().mean()))
        if fitted:
            assert_survives(encoder, tmp_path / "saved")
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_a_fitted_masked_language_head_survives_or_is_refused(
    kind: tiny.Kind, build: Build, tmp_path: Path
) -> None:
    encoder = load(build(kind, padding=7))
    before = encoder.document_matrix(TEXTS)
    if kind == "eurobert":
        with pytest.raises(EncoderError, match="no biases to fit"):
            fit_lexical_head(encoder, tiny.sentences(100))
        return
    fit_lexical_head(encoder, tiny.sentences(100))
    assert abs(encoder.document_matrix(TEXTS) - before).max() > 0.01
    assert_survives(encoder, tmp_path / "saved")


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_a_fitted_projection_without_a_bias_survives(kind: tiny.Kind, build: Build, tmp_path: Path) -> None:
    encoder = with_dense(build(kind, padding=7), bias=False)
    fit_lexical_head(encoder, tiny.sentences(100))
    projection: Any = encoder.anatomy.projection
    assert projection.linear.bias.abs().sum() > 0
    assert_survives(encoder, tmp_path / "saved")
    padded = encoder.encode_document(TEXTS).to_dense()[:, -7:]
    assert not padded.any()


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_a_dense_head_survives_or_is_refused(kind: tiny.Kind, build: Build, tmp_path: Path) -> None:
    encoder = with_dense(build(kind, padding=7), bias=False)
    before = encoder.document_matrix(TEXTS)
    try:
        fit_dense_head(encoder, tiny.sentences(100), active=30)
    except EncoderError as error:
        assert "not built like BERT's" in str(error) and kind not in ("bert", "roberta", "electra")
        assert (encoder.document_matrix(TEXTS) != before).nnz == 0
        return
    assert_survives(encoder, tmp_path / "saved")
    assert not encoder.encode_document(TEXTS).to_dense()[:, -7:].any()


HALVES = [
    ("bert", "float16"),
    ("modernbert", "float16"),
    ("deberta-v2", "bfloat16"),
    ("eurobert", "bfloat16"),
]


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in tiny.ARCHITECTURES), *HALVES])
def test_every_architecture_streams_as_sentence_transformers_pools(
    kind: tiny.Kind, dtype: str, build: Build, tmp_path: Path
) -> None:
    folder = build(kind, padding=7, dtype=dtype)
    encoder, plain = (
        made.to(getattr(torch, dtype))
        for made in (
            load(folder),
            SparseEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}),
        )
    )
    found, expected = (made.encode_document(TEXTS).to_dense() for made in (encoder, plain))
    assert attach(encoder.anatomy) and found.dtype == getattr(torch, dtype)
    assert found.shape[1] == encoder.vocabulary.size == encoder.anatomy.width
    assert_same(found, expected, encoder.dtype)
    assert_survives(encoder, tmp_path / "saved")


def _add_bias(encoder: NeuralSparseEncoder) -> None:
    decoder = encoder.anatomy.model.head.dense
    decoder.bias = nn.Parameter(torch.ones(len(decoder.weight)))


def _drop_bias(encoder: NeuralSparseEncoder) -> None:
    encoder.anatomy.output.bias = None


def _drop_a_layer(encoder: NeuralSparseEncoder) -> None:
    del encoder.anatomy.model.model.layers[1:]


def _widen(encoder: NeuralSparseEncoder) -> None:
    decoder = encoder.anatomy.output
    decoder.weight = nn.Parameter(torch.cat([decoder.weight, decoder.weight[:3]]))


@pytest.mark.parametrize("change", [_add_bias, _drop_bias, _drop_a_layer, _widen])
def test_a_change_that_would_not_survive_is_refused_before_anything_is_written(
    change: Callable[[NeuralSparseEncoder], None], build: Build, tmp_path: Path
) -> None:
    encoder = load(build("modernbert"))
    change(encoder)
    with pytest.raises(EncoderError, match="would not survive saving"):
        encoder.save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_wrapped_model_is_refused_in_one_line(build: Build, tmp_path: Path) -> None:
    encoder = load(build("bert"))
    encoder.anatomy.transformer.model = torch.compile(encoder.anatomy.model)
    with pytest.raises(EncoderError, match=r"no OptimizedModule can be made of its configuration"):
        encoder.save_pretrained(str(tmp_path / "saved"))


def test_a_projection_whose_configuration_says_otherwise_is_refused(build: Build, tmp_path: Path) -> None:
    encoder = with_dense(build("bert"), bias=False)
    projection: Any = encoder.anatomy.projection
    projection.linear.bias = nn.Parameter(torch.ones(len(projection.linear.weight)))
    with pytest.raises(EncoderError, match=r"1 weights .* linear\.bias first"):
        encoder.save_pretrained(str(tmp_path / "saved"))


def test_weights_of_its_own_instead_of_the_embeddings_survive(build: Build, tmp_path: Path) -> None:
    encoder = load(build("bert"))
    decoder = encoder.anatomy.output
    decoder.weight = nn.Parameter(1.5 * decoder.weight.detach())
    assert_survives(encoder, tmp_path / "saved")


def test_checking_draws_no_random_numbers(build: Build, tmp_path: Path) -> None:
    """Checkpoints in the middle of a training leave no trace in what it draws afterwards."""
    encoder = load(build("modernbert"))
    state = torch.get_rng_state()
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert torch.equal(torch.get_rng_state(), state)


# Weights that have no place


@contextmanager
def weights_of(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    path = folder / "model.safetensors"
    weights = load_file(path)
    yield weights
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["bert", "modernbert", "eurobert", "xlmr"])
@pytest.mark.parametrize("saved", [True, False])
def test_weights_without_a_place_are_as_loud_as_missing_ones(
    kind: tiny.Kind, saved: bool, tmp_path: Path
) -> None:
    folder = tiny.build(kind, tmp_path / "plain")
    if saved:
        load(folder).save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    path = folder / "config.json"
    config = json.loads(path.read_text())
    fewer = {
        "num_hidden_layers": 1,
        **({"layer_types": ["full_attention"]} if "layer_types" in config else {}),
    }
    path.write_text(json.dumps({**config, **fewer}))
    with pytest.raises(BrokenEncoderError, match=r"no place for: .*layers?\.1\."):
        load(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("modernbert", "head.dense.bias"),
        ("eurobert", "lm_head.bias"),
        ("bert", "bert.encoder.layer.0.attention.self.query.lora_A.weight"),
        ("bert-headless", "encoder.layer.7.output.dense.bias"),
    ],
)
def test_a_single_weight_without_a_place_is_named(kind: tiny.Kind, name: str, tmp_path: Path) -> None:
    folder = tiny.build(kind, tmp_path / "plain")
    with weights_of(folder) as weights:
        weights[name] = torch.ones(32)
    with pytest.raises(BrokenEncoderError, match=f"no place for: {name}"):
        NeuralSparseEncoder.from_pretrained(folder, device="cpu")


def test_other_heads_of_a_checkpoint_are_left_out(tmp_path: Path) -> None:
    """As those of bert-base-uncased: the pooler, the next sentence, and positions that are no weights."""
    folder = tiny.build("bert", tmp_path / "plain")
    expected = load(folder).document_matrix(TEXTS)
    with weights_of(folder) as weights:
        weights["bert.pooler.dense.weight"] = torch.ones(32, 32)
        weights["bert.embeddings.position_ids"] = torch.arange(512)[None]
        weights["cls.seq_relationship.weight"] = torch.ones(2, 32)
        weights["classifier.weight"] = torch.ones(2, 32)
    assert abs(load(folder).document_matrix(TEXTS) - expected).max() == 0


def test_what_deberta_v3_keeps_beside_its_embeddings_is_left_out(tmp_path: Path) -> None:
    folder = tiny.build("deberta-v2", tmp_path / "plain")
    expected = load(folder).document_matrix(TEXTS)
    with weights_of(folder) as weights:
        embeddings = "deberta.embeddings.word_embeddings."
        weights[f"{embeddings}_weight"] = weights[f"{embeddings}weight"].clone()
    assert abs(load(folder).document_matrix(TEXTS) - expected).max() == 0


@pytest.mark.parametrize("number", [0, -1])
def test_some_layers_are_kept(number: int, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="layers"):
        keep_layers(load(tiny.build("bert", tmp_path / "plain")), number, tiny.sentences(10))


def test_what_earlier_versions_noted_of_an_untrained_projection_is_known(tmp_path: Path) -> None:
    """sha256 over weights and biases, in sentence-transformers' settings; none in config.json."""
    encoder = untrained(tiny.build("bert-headless", tmp_path / "plain"))
    encoder.save_pretrained(str(tmp_path / "saved"))
    linear = encoder[1].linear
    digest = sha256(linear.weight.detach().numpy().tobytes() + linear.bias.detach().numpy().tobytes())
    for name, change in {
        "config.json": lambda config: config.pop("oskit_random_projection"),
        "config_sentence_transformers.json": lambda config: config.update(
            oskit={"random_projection": digest.hexdigest()}
        ),
    }.items():
        path = tmp_path / "saved" / name
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
    with pytest.raises(UntrainedEncoderError):
        load(tmp_path / "saved")


def test_an_untrained_projection_in_a_head_file_is_known(tmp_path: Path) -> None:
    folder = tiny.build("bert-headless", tmp_path / "plain")
    encoder = untrained(folder)
    encoder.save_pretrained(str(tmp_path / "saved"))
    (tmp_path / "saved" / "modules.json").unlink()
    torch.save(encoder[1].linear.state_dict(), tmp_path / "saved" / "neural_sparse_head.pt")
    with pytest.raises(UntrainedEncoderError):
        load(tmp_path / "saved")


def test_more_than_a_projection_in_a_head_file_is_refused(tmp_path: Path) -> None:
    folder = tiny.build("bert-headless", tmp_path / "plain")
    weight = torch.randn(json.loads((folder / "config.json").read_text())["vocab_size"], 32)
    torch.save({"weight": weight, "transform.weight": torch.eye(32)}, folder / "neural_sparse_head.pt")
    with pytest.raises(BrokenEncoderError, match=r"holds more than a projection .*'transform\.weight'"):
        load(folder)


# An untrained projection


def untrained(folder: Path) -> NeuralSparseEncoder:
    with pytest.warns(UntrainedProjectionWarning):
        return NeuralSparseEncoder.from_pretrained(folder, base=folder, device="cpu")


def by_oskit(encoder: NeuralSparseEncoder, folder: Path) -> None:
    encoder.save_pretrained(str(folder))


def by_plain(encoder: NeuralSparseEncoder, folder: Path) -> None:
    SparseEncoder(modules=list(encoder), device="cpu").save_pretrained(str(folder))


def by_plain_twice(encoder: NeuralSparseEncoder, folder: Path) -> None:
    by_plain(encoder, folder.with_name("first"))
    SparseEncoder(str(folder.with_name("first")), device="cpu").save_pretrained(str(folder))


@pytest.mark.parametrize("save", [by_oskit, by_plain, by_plain_twice])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bert-headless", "modernbert"])
def test_an_untrained_projection_is_known_whatever_its_type_and_whoever_saved_it(
    kind: tiny.Kind,
    dtype: torch.dtype,
    save: Callable[[NeuralSparseEncoder, Path], None],
    build: Build,
    tmp_path: Path,
) -> None:
    from exporters import export_encoder

    # A base: its own head, if it has one, does not count.
    with pytest.warns(UntrainedProjectionWarning):
        encoder = NeuralSparseEncoder.from_pretrained(tmp_path / "no", base=build(kind), device="cpu")
    if dtype != torch.float32:
        encoder.half().to(dtype)
    assert encoder.is_untrained and encoder.load_report.head == "random"
    save(encoder, tmp_path / "saved")
    assert untrained(tmp_path / "saved").is_untrained
    with pytest.raises(UntrainedEncoderError, match="saved with a random one"):
        load(tmp_path / "saved")
    for opened in (encoder, SparseEncoder(str(tmp_path / "saved"), device="cpu")):
        with pytest.raises(UntrainedEncoderError, match="is random"):
            export_encoder(opened, tmp_path / "out")
    keep_layers(encoder.float(), 1, tiny.sentences(20))
    idf = np.ones(encoder.vocabulary.size, dtype=np.float32)
    assert inference_free(encoder, idf).is_untrained


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("oskits", [True, False])
def test_one_step_of_any_training_makes_a_projection_a_trained_one(
    dtype: torch.dtype, oskits: bool, build: Build, tmp_path: Path
) -> None:
    """Also of one that plain sentence-transformers opened, trained and saved; and its mark goes."""
    encoder: SparseEncoder = untrained(build("bert-headless"))
    if not oskits:
        encoder.save_pretrained(str(tmp_path / "first"))
        encoder = SparseEncoder(str(tmp_path / "first"), device="cpu")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-5)
    encoder.train()
    features = {**encoder.preprocess(TEXTS)}
    encoder(features)["sentence_embedding"].sum().backward()
    optimizer.step()
    encoder.to(dtype).save_pretrained(str(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert again.load_report.head == "pretrained"
    again.save_pretrained(str(tmp_path / "again"))
    assert "random" not in (tmp_path / "again" / "config.json").read_text()


def test_a_fitted_projection_is_a_trained_one(build: Build, tmp_path: Path) -> None:
    encoder = untrained(build("bert-headless"))
    assert fit_lexical_head(encoder, tiny.sentences(200)) is encoder
    assert (encoder.is_untrained, encoder.load_report.head) == (False, "pretrained")
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert load(tmp_path / "saved").load_report.head == "pretrained"


def test_activations_have_one_definition() -> None:
    from typing import get_args

    assert list(get_args(Activation)) == SpladePooling.SPLADE_ACTIVATION
