"""From a neural sparse encoder to proven retrieval in OpenSearch.

The names below are the public interface. Each is imported when it is first used, so ``import oskit`` loads
neither torch nor anything else that costs time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oskit.lazy import importer

if TYPE_CHECKING:
    from oskit.archive.archive import Archive as Archive
    from oskit.archive.archive import open_archive as open_archive
    from oskit.archive.encoder import ArchiveEncoder as ArchiveEncoder
    from oskit.archive.text_encoder import TextEncoder as TextEncoder
    from oskit.archive.text_encoder import TokenWeights as TokenWeights
    from oskit.archive.token_weights import Prune as Prune
    from oskit.archive.vocabulary import Vocabulary as Vocabulary
    from oskit.cluster.client.connection import ConnectionSettings as ConnectionSettings
    from oskit.cluster.client.connection import connect as connect
    from oskit.cluster.index.mapping import IndexSettings as IndexSettings
    from oskit.cluster.ingest.load import ingest as ingest
    from oskit.cluster.models.deploy import deploy_archive as deploy_archive
    from oskit.cluster.search.hybrid import Hybrid as Hybrid
    from oskit.cluster.search.search import Searcher as Searcher
    from oskit.cluster.search.search import search as search
    from oskit.data.chunks import Chunking as Chunking
    from oskit.data.collection import Collection as Collection
    from oskit.data.documents import Document as Document
    from oskit.data.files import read_documents as read_documents
    from oskit.encoder.document_frequencies import corpus_idf as corpus_idf
    from oskit.encoder.loader.report import LoadAttempt as LoadAttempt
    from oskit.encoder.loader.report import LoadReport as LoadReport
    from oskit.encoder.loader.report import UntrainedProjectionWarning as UntrainedProjectionWarning
    from oskit.encoder.model import NeuralSparseEncoder as NeuralSparseEncoder
    from oskit.encoder.surgery.dense_head import fit_dense_head as fit_dense_head
    from oskit.encoder.surgery.lexical_head import fit_lexical_head as fit_lexical_head
    from oskit.errors import OskitError as OskitError
    from oskit.evaluation.live.verify import verify as verify
    from oskit.evaluation.offline.evaluate import evaluate as evaluate
    from oskit.localnode import DockerNode as DockerNode
    from oskit.localnode import LocalNode as LocalNode
    from oskit.training.data.training_data import TrainingData as TrainingData
    from oskit.training.data.training_data import load_training_data as load_training_data
    from oskit.training.loop.run import train as train
    from oskit.training.recipe.file import load_recipe as load_recipe
    from oskit.training.recipe.recipe import Recipe as Recipe
    from oskit.training.recipe.sources import DataSource as DataSource

_HOME = {
    "Archive": "oskit.archive.archive",
    "ArchiveEncoder": "oskit.archive.encoder",
    "Chunking": "oskit.data.chunks",
    "Collection": "oskit.data.collection",
    "ConnectionSettings": "oskit.cluster.client.connection",
    "DataSource": "oskit.training.recipe.sources",
    "DockerNode": "oskit.localnode",
    "Document": "oskit.data.documents",
    "Hybrid": "oskit.cluster.search.hybrid",
    "IndexSettings": "oskit.cluster.index.mapping",
    "LoadAttempt": "oskit.encoder.loader.report",
    "LoadReport": "oskit.encoder.loader.report",
    "LocalNode": "oskit.localnode",
    "NeuralSparseEncoder": "oskit.encoder.model",
    "OskitError": "oskit.errors",
    "Prune": "oskit.archive.token_weights",
    "Recipe": "oskit.training.recipe.recipe",
    "Searcher": "oskit.cluster.search.search",
    "TextEncoder": "oskit.archive.text_encoder",
    "TokenWeights": "oskit.archive.text_encoder",
    "TrainingData": "oskit.training.data.training_data",
    "UntrainedProjectionWarning": "oskit.encoder.loader.report",
    "Vocabulary": "oskit.archive.vocabulary",
    "connect": "oskit.cluster.client.connection",
    "corpus_idf": "oskit.encoder.document_frequencies",
    "deploy_archive": "oskit.cluster.models.deploy",
    "evaluate": "oskit.evaluation.offline.evaluate",
    "fit_dense_head": "oskit.encoder.surgery.dense_head",
    "fit_lexical_head": "oskit.encoder.surgery.lexical_head",
    "ingest": "oskit.cluster.ingest.load",
    "load_recipe": "oskit.training.recipe.file",
    "load_training_data": "oskit.training.data.training_data",
    "open_archive": "oskit.archive.archive",
    "read_documents": "oskit.data.files",
    "search": "oskit.cluster.search.search",
    "train": "oskit.training.loop.run",
    "verify": "oskit.evaluation.live.verify",
}

__all__ = sorted(_HOME)
_import = importer(__name__, _HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("oskit")
    return _import(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
