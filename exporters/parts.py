"""What an export takes from an encoder: modules up to the logits, tokenizer, query weights and provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from tokenizers import Tokenizer

from oskit.archive.batching import padded
from oskit.archive.manifest import Source
from oskit.archive.text_encoder import Activation, Architecture, Pooling
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.anatomy import Anatomy, dissect
from oskit.errors import ExportError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXAMPLE = ("hello world", "a longer text, so that the other one is padded")


@dataclass(frozen=True)
class EncoderParts:
    """An encoder taken apart.

    Attributes:
        modules: Modules that lead from token ids to logits over the vocabulary.
        pooling: How a text's tokens become one vector.
        activation: See :class:`exporters.graph.BakedEncoder`.
        hf_tokenizer: The encoder's own tokenizer.
        tokenizer: The same as the archive carries it: truncating, not padding.
        vocabulary: Of the logits' width.
        max_length: Tokens of a text at most, special tokens included.
        idf: Query weights ``[vocabulary]`` of an inference-free encoder, else None.
        trained: False for a random projection.
        directions: Whether tokens are names of directions, and mean nothing.
        source: Where it comes from.
    """

    modules: tuple[torch.nn.Module, ...]
    pooling: Pooling
    activation: Activation
    hf_tokenizer: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    max_length: int
    idf: NDArray[np.float32] | None
    trained: bool
    directions: bool
    source: Source

    @property
    def architecture(self) -> Architecture:
        """``"symmetric"`` or ``"inference-free"``."""
        return "symmetric" if self.idf is None else "inference-free"

    @property
    def around(self) -> int:
        """How many tokens the tokenizer puts around a text."""
        return len(self.tokenizer.encode("").ids)

    def example(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask to trace with, int64 ``[2, length]``; the first row is padded."""
        rows = [self.tokenizer.encode(text).ids for text in _EXAMPLE]
        # The padding's id does not matter behind the mask, but models that count positions expect their own.
        input_ids, mask = padded(rows, self.hf_tokenizer.pad_token_id or 0)
        return torch.from_numpy(input_ids), torch.from_numpy(mask)


def take_apart(encoder: SparseEncoder) -> EncoderParts:
    """Find the parts of a sentence-transformers ``SparseEncoder``.

    Raises:
        EncoderError: Its modules or its tokenizer are such that OpenSearch cannot use it.
        ExportError: It has a setting that an archive cannot have.
    """
    anatomy = dissect(encoder, "the encoder")
    _refuse_prompts(encoder)
    vocabulary = anatomy.vocabulary
    _check_runs(anatomy)
    hf_tokenizer: Any = anatomy.transformer.tokenizer
    if hf_tokenizer.padding_side != "right":
        raise ExportError(
            "the encoder's tokenizer pads texts on the left, so that their positions depend on the batch; ML "
            "Commons pads on the right",
            hint='Load it, set tokenizer.padding_side = "right" and save it again.',
        )
    return EncoderParts(
        modules=anatomy.logit_modules,
        pooling=anatomy.pooling.pooling_strategy,
        activation=anatomy.pooling.activation_function,
        hf_tokenizer=hf_tokenizer,
        tokenizer=archive_tokenizer(hf_tokenizer, anatomy.max_length),
        vocabulary=vocabulary,
        max_length=anatomy.max_length,
        idf=_query_weights(anatomy, vocabulary),
        trained=not anatomy.is_untrained,
        directions=anatomy.names_directions,
        source=_source(encoder, anatomy),
    )


def archive_tokenizer(hf_tokenizer: Any, max_length: int) -> Tokenizer:
    """A copy of its ``tokenizers.Tokenizer`` that truncates to ``max_length`` and does not pad.

    ML Commons honours the truncation of ``tokenizer.json``, its side too, and pads by itself. A padding to a
    fixed length, as some Hub repositories have it, would only slow it down.
    """
    content = json.loads(hf_tokenizer.backend_tokenizer.to_str())
    content["truncation"] = {
        # transformers sets the side of its own configuration at every call; what the file says is stale.
        "direction": "Left" if hf_tokenizer.truncation_side == "left" else "Right",
        "max_length": max_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = None
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def _refuse_prompts(encoder: SparseEncoder) -> None:
    prompts = {name: text for name, text in (encoder.prompts or {}).items() if text}
    used = [name for name in ("query", "document", encoder.default_prompt_name) if name in prompts]
    if used:
        raise ExportError(
            f"the encoder puts the prompt {prompts[used[0]]!r} before its texts, which ML Commons cannot do",
            hint="Remove the encoder's prompts, or train it without.",
        )


def _check_runs(anatomy: Anatomy) -> None:
    try:
        width = anatomy.try_out().shape[-1]
    except Exception as error:  # any, of whatever architecture
        raise ExportError(
            f"the encoder does not run: {first_line(error)}",
            hint="Call its encode_document() by itself: the traceback says where it fails.",
        ) from error
    if width != anatomy.width:
        raise ExportError(
            f"the encoder gives {width} logits for {anatomy.width} tokens of its vocabulary",
            hint="Use an encoder with a projection to its vocabulary: a masked-language head, or a Dense.",
        )


def _query_weights(anatomy: Anatomy, vocabulary: Vocabulary) -> NDArray[np.float32] | None:
    weights = anatomy.query_weights(vocabulary)
    if weights is not None and ((weights < 0).any() or not np.isfinite(weights).all()):
        raise ExportError(
            "some of the encoder's query weights are negative or not finite",
            hint="Query weights are finite numbers from 0, one a token.",
        )
    return weights


def _source(encoder: SparseEncoder, anatomy: Anatomy) -> Source:
    """From the loader's report, else from what sentence-transformers and transformers remember."""
    report = getattr(encoder, "load_report", None)
    if report is not None:
        return Source(
            model=report.source,
            revision=report.revision,
            tier=report.tier,
            head=report.head,
            model_type=report.model_type,
        )
    return Source(
        model=str(anatomy.config._name_or_path or "unknown"),
        revision=getattr(anatomy.config, "_commit_hash", None),
        head="random" if anatomy.is_untrained else None,
        model_type=anatomy.config.model_type,
    )
