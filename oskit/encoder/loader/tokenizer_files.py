"""The vocabulary of an encoder without the encoder: no weights are loaded, torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path

from oskit.archive.archive import is_archive, open_archive
from oskit.archive.text_encoder import SERVER_MAX_LENGTH
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.loader.hub import HubOptions, local_or_fetched
from oskit.errors import EncoderError, OskitError

TOKENIZER_FILE = "tokenizer.json"


def open_vocabulary(name: str | Path) -> Vocabulary:
    """The vocabulary of an encoder, an archive or a tokenizer.

    Args:
        name: A ``tokenizer.json``; a folder that has one, itself or in a module's folder (as
            sentence-transformers saves it); an archive, its folder or the folder of an export; or a
            repository on the Hugging Face Hub.

    Raises:
        EncoderNotFoundError: There is nothing of that name.
        EncoderError: It has no tokenizer, or one that cannot be read.
        ArchiveError: It is an archive, and a broken one.
        MissingDependencyError: It is on the Hub and huggingface_hub is not installed.
    """
    path = Path(name).expanduser()
    if is_archive(path):
        archive = open_archive(path)
        size = archive.manifest.vocabulary.size if archive.manifest else None
        return Vocabulary(archive.tokenizer(), size=size)
    if path.is_file():
        return Vocabulary.from_file(path)
    if not path.is_dir():
        path = local_or_fetched(name)
    return Vocabulary.from_file(_find(path, str(name)))


def open_here(name: str | Path) -> tuple[Vocabulary, int] | None:
    """The vocabulary of an encoder, and how many tokens it reads of a text, if it is on this machine.

    The length is what its files say, and at most what the cluster reads. None where there is no such folder
    or copy in the Hub's cache, or nothing in it that can be read: whoever loads it says why.
    """
    try:
        folder = local_or_fetched(name, HubOptions(local_files_only=True))
        return Vocabulary.from_file(_find(folder, str(name))), _max_length(folder)
    except (OskitError, OSError, ValueError):
        return None


_LENGTHS = {
    "sentence_bert_config.json": "max_seq_length",
    "tokenizer_config.json": "model_max_length",
    "config.json": "max_position_embeddings",
}


def _max_length(folder: Path) -> int:
    found = [SERVER_MAX_LENGTH]
    for name, key in _LENGTHS.items():
        for path in (folder / name, *folder.glob(f"*/{name}")):
            value = json.loads(path.read_bytes()).get(key) if path.is_file() else None
            if isinstance(value, int | float) and value > 0:
                found.append(int(value))
    return min(found)


def _find(folder: Path, name: str) -> Path:
    """The folder's tokenizer; of several in modules' folders, which must be one tokenizer, the first."""
    if (folder / TOKENIZER_FILE).is_file():
        return folder / TOKENIZER_FILE
    found = sorted(folder.glob(f"*/{TOKENIZER_FILE}"))
    if not found:
        raise EncoderError(
            f"{name} has no {TOKENIZER_FILE}",
            hint="Save its fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )
    vocabularies = {path: Vocabulary.from_file(path).keys for path in found}
    if len(set(vocabularies.values())) > 1:
        raise EncoderError(
            f"{name} holds different tokenizers: {', '.join(str(path.parent.name) for path in found)}",
            hint="Name the tokenizer.json of its documents",
        )
    return found[0]
