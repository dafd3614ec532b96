"""The encoder that is trained: loaded, cut, given head and architecture, averaged with what it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from oskit.archive.idf import idf_vector, read_idf
from oskit.encoder.loader.report import UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.dense_head import fit_dense_head, pooling_layer
from oskit.encoder.surgery.inference_free import inference_free
from oskit.encoder.surgery.layers import check_layers, keep_layers
from oskit.encoder.surgery.lexical_head import fit_lexical_head
from oskit.training.recipe.recipe import EncoderPart

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

FITTED_TEXTS = 2_000
"""Passages that a head is fitted to."""

SHORT = 128
"""Tokens up to which a text is short."""


def load_student(part: EncoderPart, *, seed: int) -> NeuralSparseEncoder:
    """Load the base; layers, head and architecture follow in :func:`finish_student`.

    Raises:
        EncoderError: It cannot be found or loaded, has fewer layers than are to be kept, or cannot get the
            head.
    """
    with warnings.catch_warnings():
        if part.head != "random":  # it is replaced before anything uses it
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
        check_layers(encoder, part.layers)
    if part.head == "dense" and _is_base(encoder):
        pooling_layer(encoder)  # told before the data is prepared, which may take hours
    if part.dropout is not None:  # the configuration that is saved stays as it is
        module: Any
        for module in encoder.anatomy.transformer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = part.dropout
            elif isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT and others
                module.attention_dropout = part.dropout
    return encoder


def finish_student(
    encoder: NeuralSparseEncoder,
    part: EncoderPart,
    *,
    passages: Dataset,
    idf: NDArray[np.float32] | None,
    seed: int,
) -> NeuralSparseEncoder:
    """The encoder as training starts from it, of what :func:`load_student` gave.

    ``passages`` are the training corpus, with a column ``text``, and ``idf`` is its IDF, float32
    ``[vocabulary]``, where the recipe needs it.

    Raises:
        EncoderError: ``idf.json`` cannot be read, or a head cannot be fitted.
        DataError: The passages are too few to fit a head to.
    """
    head = part.head if _is_base(encoder) else "random"
    if head != "random" or part.layers is not None:
        rows = np.random.default_rng(seed).permutation(len(passages))[:FITTED_TEXTS]
        texts = passages[np.sort(rows)]["text"]
        if part.layers is not None:
            keep_layers(encoder, part.layers, texts)
        if head == "lexical":
            fit_lexical_head(encoder, texts)
        if head == "dense":
            fit_dense_head(encoder, texts, seed=seed)
    if (part.architecture or encoder.architecture) == "symmetric":
        if encoder.architecture == "symmetric":
            return encoder
        return encoder.with_modules(encoder.anatomy.document_modules)
    if part.idf is not None:
        idf = idf_vector(read_idf(part.idf), encoder.vocabulary)
    elif encoder.architecture == "inference-free":
        idf = encoder.query_idf()
    assert idf is not None
    made = inference_free(encoder, idf, trainable=part.train_query_weights)
    made.check_saving()
    return made


def kept_share(encoder: NeuralSparseEncoder, part: EncoderPart) -> float:
    """``encoder.keep``; 0 for an encoder that cannot search yet, of which there is nothing to keep."""
    begins = encoder.is_untrained or (part.head != "random" and _is_base(encoder))
    return 0.0 if begins else part.keep


def _is_base(encoder: NeuralSparseEncoder) -> bool:
    """Whether nobody has trained it for retrieval, as far as its files tell; stage 1's encoder is none."""
    return encoder.is_untrained or encoder.load_report.layout == "transformer"


def plain_attention(encoder: NeuralSparseEncoder, length: int) -> None:
    """On a CPU let short texts attend by plain products: torch's fused kernel takes twice as long backwards.

    Not where the texts are long, whose weights of attention take much memory then.
    """
    model: Any = encoder.anatomy.transformer.model
    if encoder.device.type == "cpu" and length <= SHORT:
        model.set_attn_implementation("eager")


def head_parameters(encoder: NeuralSparseEncoder) -> list[nn.Parameter]:
    """The parameters of the projection to the vocabulary that are not also those of the transformer."""
    model: Any = encoder.anatomy.transformer.model
    body = {id(parameter) for parameter in getattr(model, model.base_model_prefix, model).parameters()}
    found = (one for module in encoder.anatomy.document_modules for one in module.parameters())
    return [parameter for parameter in found if id(parameter) not in body]


def clear_negative_weights(encoder: NeuralSparseEncoder) -> None:
    """Query weights that training has pushed below 0 become 0: a token cannot count against a document."""
    if (table := encoder.anatomy.queries) is not None:
        with torch.no_grad():
            table.weight.clamp_(min=0)


class Average:
    """Weights of an encoder as it is now, to be averaged with those that it will have.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): on a straight line between the weights before and after
    fine-tuning an encoder keeps most of both, what it learned and what it could do on other texts.

    A share of 0 changes nothing and keeps no copy.
    """

    def __init__(self, encoder: NeuralSparseEncoder, share: float) -> None:
        self._share = share
        self._start = self._copies(encoder)

    @torch.no_grad()
    def apply(self, encoder: NeuralSparseEncoder) -> None:
        """Change the encoder to the average; weights that are tied count once."""
        for weights, start in zip(encoder.parameters(), self._start, strict=False):
            weights.lerp_(start.to(weights), self._share)

    @contextmanager
    def applied(self, encoder: NeuralSparseEncoder) -> Iterator[None]:
        """The average for as long as the block lasts."""
        own = self._copies(encoder)
        self.apply(encoder)
        try:
            yield
        finally:
            for weights, value in zip(encoder.parameters(), own, strict=False):
                weights.data.copy_(value)

    def _copies(self, encoder: NeuralSparseEncoder) -> list[torch.Tensor]:
        return [weights.detach().clone() for weights in encoder.parameters() if self._share]
