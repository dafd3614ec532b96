"""Which kind of encoder a folder holds, by its files alone; nothing is loaded here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from oskit.archive.idf import find_idf
from oskit.errors import BrokenEncoderError, EncoderError

HEAD_FILE = "neural_sparse_head.pt"

LayoutKind = Literal["sentence-transformers", "transformer", "head file"]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""SentencePiece's model has another name in each architecture: ``spm.model``, ``spiece.model``, ..."""

_TRANSFORMERS = ("Transformer", "MLMTransformer")


@dataclass(frozen=True)
class TransformerPart:
    """A transformers model in a folder of its own, and what it is loaded as."""

    folder: Path
    masked_lm: bool


@dataclass(frozen=True)
class Layout:
    """How a folder is laid out.

    Attributes:
        kind: ``sentence-transformers`` (a ``SparseEncoder``, with or without a router), ``transformer`` (one
            transformers model, with its head or without), or ``head file`` (an encoder beside
            ``neural_sparse_head.pt``).
        folder: The folder as it was given.
        transformers: The transformers models in it; one, except for a router with several.
        head: The file of the projection, for ``head file``.
        idf: The table of query weights that makes it inference-free; None where sentence-transformers'
            own files say it.
        settings: ``sentence_bert_config.json``, where a dense model or an older one has it.
    """

    kind: LayoutKind
    folder: Path
    transformers: tuple[TransformerPart, ...]
    head: Path | None = None
    idf: Path | None = None
    settings: dict[str, Any] | None = None


def detect_layout(folder: Path) -> Layout:
    """Look at a folder.

    Raises:
        BrokenEncoderError: Files are missing or unreadable.
        EncoderError: It is an encoder of a kind that OpenSearch's sparse search cannot use.
    """
    modules = _modules(folder) if (folder / "modules.json").is_file() else []
    head = folder / HEAD_FILE
    # A SparseEncoder that was saved over an older layout counts, not the head that was left behind.
    if head.is_file() and not _is_sparse(modules):
        part = TransformerPart(_encoder_beside(head), masked_lm=False)
        _check_transformer(part.folder)
        return Layout(
            "head file", folder, (part,), head=head, idf=find_idf(folder), settings=_settings(part.folder)
        )
    if (folder / "modules.json").is_file():
        return _sentence_transformers(folder, modules)
    if not (folder / "config.json").is_file():
        raise BrokenEncoderError(f"{folder} holds no encoder: there is no config.json", hint=_hint(folder))
    _check_transformer(folder)
    part = TransformerPart(folder, masked_lm=True)
    return Layout("transformer", folder, (part,), idf=find_idf(folder), settings=_settings(folder))


def _is_sparse(modules: Sequence[tuple[str, Path]]) -> bool:
    return any(kind == "SpladePooling" for kind, _ in modules)


def _sentence_transformers(folder: Path, modules: Sequence[tuple[str, Path]]) -> Layout:
    kinds = [kind for kind, _ in modules]
    sparse = _is_sparse(modules)
    if "SparseAutoEncoder" in kinds or (_model_type(folder) == "SparseEncoder" and not sparse):
        raise EncoderError(
            f"{folder} is a sparse encoder whose dimensions are not tokens ({', '.join(kinds)})",
            hint="OpenSearch needs weights of tokens: use an encoder with SpladePooling.",
        )
    parts = tuple(
        TransformerPart(path, masked_lm=_is_masked_lm(kind, path))
        for kind, path in modules
        if kind in _TRANSFORMERS
    )
    if not parts:
        raise BrokenEncoderError(
            f"{folder / 'modules.json'} names no Transformer module, only {', '.join(kinds) or 'nothing'}",
            hint="Save the encoder again with save_pretrained().",
        )
    for part in parts:
        _check_transformer(part.folder)
    if sparse:
        return Layout("sentence-transformers", folder, parts)
    # A dense model, for instance all-MiniLM-L6-v2: its transformer is an encoder without a head.
    dense = TransformerPart(parts[0].folder, masked_lm=True)
    return Layout("transformer", folder, (dense,), idf=find_idf(folder), settings=_settings(parts[0].folder))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Class name and folder of every module, those inside of a router too."""
    entries = read_json(folder / "modules.json")
    found: list[tuple[str, Path]] = []
    try:
        for entry in entries:
            kind, path = entry["type"].rpartition(".")[2], _inside(folder, entry["path"])
            found.append((kind, path))
            if kind in ("Router", "Asym"):
                router = next((path / name for name in _ROUTER_FILES if (path / name).is_file()), None)
                if router is None:
                    raise BrokenEncoderError(
                        f"{path} has no router_config.json",
                        hint="Copy or download the encoder again.",
                    )
                types = read_json(router)["types"]
                found += [(name.rpartition(".")[2], _inside(path, sub)) for sub, name in types.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise BrokenEncoderError(
            f"{folder / 'modules.json'} or its router_config.json is not what sentence-transformers writes",
            hint="Save the encoder again with save_pretrained().",
        ) from error
    return found


_ROUTER_FILES = ("router_config.json", "config.json")


def _inside(folder: Path, path: str) -> Path:
    inside = folder / path
    if not inside.resolve().is_relative_to(folder.resolve()):
        raise BrokenEncoderError(
            f"{folder} names a module outside of itself: {path!r}", hint="Do not use this folder."
        )
    return inside


def _is_masked_lm(kind: str, folder: Path) -> bool:
    default = "fill-mask" if kind == "MLMTransformer" else "feature-extraction"
    return bool((_settings(folder) or {}).get("transformer_task", default) == "fill-mask")


def _model_type(folder: Path) -> str | None:
    path = folder / "config_sentence_transformers.json"
    return read_json(path).get("model_type") if path.is_file() else None


def earlier_mark(folder: Path) -> str | None:
    """What earlier versions noted of a random projection that they saved."""
    path = folder / "config_sentence_transformers.json"
    noted = read_json(path).get("oskit") if path.is_file() else None
    return noted.get("random_projection") if isinstance(noted, dict) else None


def _settings(folder: Path) -> dict[str, Any] | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    settings = read_json(path)
    length = settings.get("max_seq_length") if isinstance(settings, dict) else ""
    if length is not None and not isinstance(length, int):
        raise BrokenEncoderError(
            f"{path} is not what sentence-transformers writes: max_seq_length is {length!r}",
            hint="Copy or download the encoder again.",
        )
    return dict(settings)


def _encoder_beside(head: Path) -> Path:
    """Where the encoder is: in the head's own folder, else in the one folder beside it that has a config."""
    folder = head.parent
    if (folder / "config.json").is_file():
        return folder
    beside = sorted(path.parent for path in folder.glob("*/config.json"))
    if len(beside) != 1:
        found = f"{len(beside)} folders with one" if beside else "no folder with one either"
        raise BrokenEncoderError(
            f"{folder} has {HEAD_FILE} but no config.json beside it, and {found}",
            hint="Put the encoder's files (config.json, weights, tokenizer) beside the head.",
        )
    return beside[0]


def _check_transformer(folder: Path) -> None:
    read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise BrokenEncoderError(
            f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}",
            hint="Copy or download the encoder again, or convert its weights to safetensors.",
        )
    if not any(path.is_file() for name in TOKENIZER_FILES for path in folder.glob(name)):
        raise BrokenEncoderError(
            f"{folder} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}",
            hint="Save the tokenizer it was trained with there: tokenizer.save_pretrained(folder).",
        )


def _hint(folder: Path) -> str:
    if (folder / "ml-commons_model_config.json").is_file() or any(folder.glob("*/manifest.json")):
        return "It looks like an exported archive: `oskit encode` and `oskit deploy` take it as it is."
    if (folder / "adapter_config.json").is_file():
        return "It is a PEFT adapter: merge it into its base model and save that."
    nested = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    if nested:
        return f"Did you mean one of the folders in it: {', '.join(nested[:5])}?"
    return "Give the folder that save_pretrained() wrote."


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BrokenEncoderError: It is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenEncoderError(
            f"{path} cannot be read: {error}", hint="Copy or download the encoder again."
        ) from error
