"""What ``import oskit`` offers, and what it must not load."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest

import oskit

PUBLIC = [
    "Archive",
    "ArchiveEncoder",
    "Chunking",
    "Collection",
    "ConnectionSettings",
    "DataSource",
    "DockerNode",
    "Document",
    "Hybrid",
    "IndexSettings",
    "LoadAttempt",
    "LoadReport",
    "LocalNode",
    "NeuralSparseEncoder",
    "OskitError",
    "Prune",
    "Recipe",
    "Searcher",
    "TextEncoder",
    "TokenWeights",
    "TrainingData",
    "UntrainedProjectionWarning",
    "Vocabulary",
    "connect",
    "corpus_idf",
    "deploy_archive",
    "evaluate",
    "fit_dense_head",
    "fit_lexical_head",
    "ingest",
    "load_recipe",
    "load_training_data",
    "open_archive",
    "read_documents",
    "search",
    "train",
    "verify",
]


def output_of(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_pinned() -> None:
    assert oskit.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(oskit))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(oskit, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        oskit.nonsense  # noqa: B018
    assert oskit.__version__


def test_importing_it_loads_nothing_heavy() -> None:
    script = "import sys, oskit; print(sorted(m for m in sys.modules if '.' not in m))"
    loaded = output_of(script)
    for heavy in ("torch", "transformers", "numpy", "pydantic", "rich", "opensearchpy"):
        assert f"'{heavy}'" not in loaded


def test_the_light_names_load_no_torch() -> None:
    script = (
        "import sys, oskit\n"
        "heavy = {'NeuralSparseEncoder', 'fit_dense_head', 'fit_lexical_head', 'train'}\n"
        "for name in set(oskit.__all__) - heavy: getattr(oskit, name)\n"
        "print('torch' in sys.modules)"
    )
    loaded = output_of(script)
    assert loaded.strip() == "False"


def test_without_torch_the_encoder_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import oskit\n"
        "try: oskit.NeuralSparseEncoder\n"
        "except oskit.OskitError as error: print(error)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" in printed and "pip install 'oskit[export]'" in printed


def test_it_is_typed() -> None:
    assert files("oskit").joinpath("py.typed").is_file()
