"""The encoder that is trained: loaded, cut, given its architecture and its head."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from oskit.encoder.idf import idf_vector, read_idf
from oskit.encoder.inference_free import inference_free
from oskit.encoder.lexical import fit_lexical_head
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.modules import config_of
from oskit.encoder.report import UntrainedProjectionWarning
from oskit.errors import TrainingError
from oskit.training.recipe import EncoderPart

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

LEXICAL_TEXTS = 2_000
"""Passages that a lexical head is fitted to."""


def load_student(part: EncoderPart, *, seed: int) -> NeuralSparseEncoder:
    """Load the base and cut it; architecture and head follow in :func:`finish_student`.

    Raises:
        EncoderError: It cannot be found or loaded.
        TrainingError: It has fewer layers than are to be kept.
    """
    with warnings.catch_warnings():
        if part.head == "lexical":  # the random head is replaced before anything uses it
            warnings.simplefilter("ignore", UntrainedProjectionWarning)
        encoder = NeuralSparseEncoder.from_pretrained(
            part.name,
            base=part.base,
            revision=part.revision,
            activation=part.activation,
            max_seq_length=part.max_length,
            seed=seed,
        )
    if part.layers is not None:
        keep_layers(encoder, part.layers)
    if part.dropout is not None:
        set_dropout(encoder, part.dropout)
    return encoder


def finish_student(
    encoder: NeuralSparseEncoder,
    part: EncoderPart,
    *,
    passages: Dataset,
    idf: NDArray[np.float32] | None,
    seed: int,
) -> NeuralSparseEncoder:
    """The encoder as training starts from it.

    Args:
        encoder: What :func:`load_student` gave.
        part: What the recipe says.
        passages: The training corpus, with a column ``text``.
        idf: IDF of the training corpus, where the recipe needs it.
        seed: Of what is drawn.

    Raises:
        EncoderError: ``idf.json`` cannot be read, or a lexical head cannot be fitted.
        DataError: The passages are too few to fit a head to.
    """
    if part.head == "lexical" and encoder.is_untrained:
        rows = np.random.default_rng(seed).permutation(len(passages))[:LEXICAL_TEXTS]
        fit_lexical_head(encoder, passages[np.sort(rows).tolist()]["text"])
    wanted = part.architecture or encoder.architecture
    if wanted == "symmetric":
        if encoder.architecture == "symmetric":
            return encoder
        return encoder.with_modules(encoder.document_modules)
    if part.idf is not None:
        idf = idf_vector(read_idf(part.idf), encoder.vocabulary)
    elif encoder.architecture == "inference-free":
        idf = encoder.query_idf()
    assert idf is not None
    return inference_free(encoder, idf, trainable=part.train_query_weights)


def keep_layers(encoder: NeuralSparseEncoder, number: int) -> None:
    """Keep the first layers of the transformer and forget the others.

    Raises:
        TrainingError: It has fewer, or its layers are no list of modules.
    """
    transformer = encoder.document_transformer
    config: Any = config_of(transformer)
    there = int(config.num_hidden_layers)
    if number > there:
        raise TrainingError(
            f"encoder.layers is {number}, but {config.name_or_path} has {there}", hint="Give fewer, or none."
        )
    lists = [
        module
        for module in transformer.model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == there
    ]
    if not lists:
        raise TrainingError(
            f"the layers of {config.name_or_path} are not found, so it cannot be cut",
            hint="Leave encoder.layers out.",
        )
    for layers in lists:
        del layers[number:]
    config.num_hidden_layers = number
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:number]


def set_dropout(encoder: NeuralSparseEncoder, share: float) -> None:
    """Let training drop this share of activations; the configuration that is saved stays as it is."""
    module: Any
    for module in encoder.document_transformer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT and others
            module.attention_dropout = share


def head_parameters(encoder: NeuralSparseEncoder) -> list[nn.Parameter]:
    """The parameters of the projection to the vocabulary that are not also those of the transformer."""
    model: Any = encoder.document_transformer.model
    body = {id(parameter) for parameter in getattr(model, model.base_model_prefix, model).parameters()}
    return [
        parameter
        for module in encoder.document_modules
        for parameter in module.parameters()
        if id(parameter) not in body
    ]


def clear_negative_weights(encoder: NeuralSparseEncoder) -> None:
    """Query weights that training has pushed below 0 become 0: a token cannot count against a document."""
    table = encoder.query_embedding
    if table is not None:
        with torch.no_grad():
            table.weight.clamp_(min=0)
