"""Real, tiny ML Commons archives, made of nothing but ``onnx`` and ``tokenizers``.

The graph computes ``log1p(relu(max over tokens of E[token]))`` for a random matrix ``E``: a sparse encoder
without a transformer, that every ONNX Runtime runs and that no compression makes smaller.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SENTENCE = "how long does it take to get a building permit sparse retrieval the quick brown fox jumps over"
WORDS = _SENTENCE.split()


def tokenizer(size: int = 200) -> Tokenizer:
    """A WordPiece tokenizer with ``size`` tokens, truncating at 128."""
    tokens = [*SPECIAL, *dict.fromkeys(WORDS), *"abcdefghijklmnopqrstuvwxyz0123456789.,?"]
    tokens += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    tokens = list(dict.fromkeys(tokens))
    tokens += [f"word{number}" for number in range(size - len(tokens))]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.add_special_tokens(list(SPECIAL))
    made.enable_truncation(128)
    return made


def graph(
    size: int = 200, *, seed: int = 0, inputs: str = "input1.", ir_version: int = 8, scale: float = 1.0
) -> bytes:
    """The encoder as ONNX; ``inputs`` is the prefix of the input names that ML Commons wants."""
    weights = np.random.default_rng(seed).normal(-2, 1, (size, size)).astype(np.float32) * scale
    weights[:, : len(SPECIAL)] = -9
    weights[: len(SPECIAL), :] = -9
    ids, mask = f"{inputs}input_ids", f"{inputs}attention_mask"
    nodes = [
        helper.make_node("Gather", ["E", ids], ["rows"]),
        helper.make_node("Cast", [mask], ["maskf"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["maskf", "axis"], ["mask3"]),
        helper.make_node("Relu", ["rows"], ["positive"]),
        helper.make_node("Mul", ["positive", "mask3"], ["masked"]),
        helper.make_node("ReduceMax", ["masked"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("Add", ["pooled", "one"], ["plus"]),
        helper.make_node("Log", ["plus"], ["output"]),
    ]
    made = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in (ids, mask)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", size])],
        [
            numpy_helper.from_array(weights, "E"),
            numpy_helper.from_array(np.array([2]), "axis"),
            numpy_helper.from_array(np.array([1], dtype=np.float32), "one"),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = ir_version
    onnx.checker.check_model(model, full_check=ir_version <= 10)
    content: bytes = model.SerializeToString()
    return content


def write_zip(path: Path, files: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def add_entry(path: Path, entry: zipfile.ZipInfo, content: bytes = b"x") -> Path:
    """Put an entry into an archive as its headers say."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, content)
    return path


def encoder_archive(path: Path, size: int = 200, *, seed: int = 0, model: bytes | None = None) -> Path:
    """An ONNX encoder archive; about ``4 * size ** 2`` bytes."""
    content = model if model is not None else graph(size, seed=seed)
    return write_zip(path, {"model.onnx": content, "tokenizer.json": tokenizer(size).to_str()})


def tokenizer_archive(path: Path, size: int = 200) -> Path:
    """A tokenizer archive with an IDF of 1.0, 1.5, 2.0, ... in turn."""
    made = tokenizer(size)
    idf = {
        token: 0.0 if token in SPECIAL else 1 + (token_id % 7) / 2
        for token, token_id in sorted(made.get_vocab().items(), key=lambda item: item[1])
    }
    return write_zip(path, {"tokenizer.json": made.to_str(), "idf.json": json.dumps(idf)})


def write_manifest(zip_path: Path, **changes: object) -> Path:
    """A manifest beside an encoder archive, as the exporter writes it, with ``changes``."""
    content = zip_path.read_bytes()
    manifest = {
        "file": zip_path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "name": zip_path.stem,
        "version": "1.0.0",
        "description": "a test",
        "kind": "encoder",
        "model_format": "ONNX",
        "architecture": "symmetric",
        "source": {"model": "test", "head": "pretrained"},
        "activation": "relu",
        "max_length": 128,
        "vocabulary": {"size": 200, "key_format": "token"},
        "parity": {
            "texts": 1,
            "max_difference": 0.0,
            "mean_cosine": 1.0,
            "min_cosine": 1.0,
            "tolerance": 1e-4,
            "runtime": "none",
        },
        **changes,
    }
    path = zip_path.with_name("manifest.json")
    path.write_text(json.dumps(manifest))
    return path
