"""What an export takes from an encoder: modules up to the logits, tokenizer, query weights and provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import (
    Dense,
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)
from tokenizers import Tokenizer

from exporters.graph import Activation, Pooling, exportable
from oskit.archive.manifest import Source
from oskit.archive.text_encoder import SERVER_MAX_LENGTH, Architecture
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.loader.modules import positions
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
        return _example(self.tokenizer)


def take_apart(encoder: SparseEncoder) -> EncoderParts:
    """Find the parts of a sentence-transformers ``SparseEncoder``.

    Raises:
        ExportError: It has a module or a setting that an archive cannot have.
    """
    documents, queries = _routes(encoder)
    modules, pooling = _until_pooling(documents)
    _refuse_prompts(encoder)
    hf_tokenizer = modules[0].tokenizer
    if not isinstance(getattr(hf_tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ExportError(
            f"the encoder's {type(hf_tokenizer).__name__} has no fast version, and so no tokenizer.json",
            hint="Convert it with transformers' convert_slow_tokenizer and save it with the encoder.",
        )
    if hf_tokenizer.padding_side != "right":
        raise ExportError(
            "the encoder's tokenizer pads texts on the left, so that their positions depend on the batch; ML "
            "Commons pads on the right",
            hint='Load it, set tokenizer.padding_side = "right" and save it again.',
        )
    max_length = _max_length(modules[0])
    tokenizer = archive_tokenizer(hf_tokenizer, max_length)
    vocabulary = Vocabulary(tokenizer, size=_width(modules, tokenizer))
    return EncoderParts(
        modules=modules,
        pooling=pooling.pooling_strategy,
        activation=pooling.activation_function,
        hf_tokenizer=hf_tokenizer,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        max_length=max_length,
        idf=None if queries is None else _query_weights(queries, vocabulary),
        trained=_head(encoder) != "random",
        source=_source(encoder, modules[0]),
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


def _routes(encoder: SparseEncoder) -> tuple[list[Any], SparseStaticEmbedding | None]:
    """The modules of the document route, and the query table of an inference-free encoder."""
    modules = list(encoder.children())
    if not modules or not isinstance(modules[0], Router):
        return modules, None
    sub_modules: Any = modules[0].sub_modules
    routes = {name: list(route) for name, route in sub_modules.items()}
    if set(routes) != {"query", "document"}:
        raise ExportError(
            f"the encoder's router has the routes {', '.join(routes)}, not query and document",
            hint="Export an encoder built with Router.for_query_document.",
        )
    query, documents = routes["query"], [*routes["document"], *modules[1:]]
    if query == routes["document"]:
        return documents, None
    if len(query) == 1 and isinstance(query[0], SparseStaticEmbedding):
        return documents, query[0]
    raise ExportError(
        f"the encoder's query route is {' → '.join(type(module).__name__ for module in query)}; an archive "
        "for queries is a tokenizer and a table of weights",
        hint="Export an encoder whose query route is a SparseStaticEmbedding, or one without a router.",
    )


def _until_pooling(modules: Sequence[Any]) -> tuple[tuple[Any, ...], SpladePooling]:
    known = bool(modules) and isinstance(modules[0], Transformer) and isinstance(modules[-1], SpladePooling)
    if not known or not all(isinstance(module, Dense) for module in modules[1:-1]):
        names = " → ".join(type(module).__name__ for module in modules) or "nothing"
        raise ExportError(
            f"an encoder of the modules {names} cannot be exported",
            hint="An encoder of Transformer (→ Dense) → SpladePooling is needed.",
        )
    return tuple(modules[:-1]), modules[-1]


def _refuse_prompts(encoder: SparseEncoder) -> None:
    prompts = {name: text for name, text in (encoder.prompts or {}).items() if text}
    used = [name for name in ("query", "document", encoder.default_prompt_name) if name in prompts]
    if used:
        raise ExportError(
            f"the encoder puts the prompt {prompts[used[0]]!r} before its texts, which ML Commons cannot do",
            hint="Remove the encoder's prompts, or train it without.",
        )


def _max_length(transformer: Transformer) -> int:
    lengths = (transformer.max_seq_length, positions(transformer), SERVER_MAX_LENGTH)
    return min(int(length) for length in lengths if length)


def _example(tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [tokenizer.encode(text).ids for text in _EXAMPLE]
    length = max(map(len, rows))
    # The padding's id does not matter behind the mask, but models that count positions expect their own.
    pad = next(
        (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>") if tokenizer.token_to_id(token)), 0
    )
    input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return input_ids, mask


def _width(modules: Sequence[torch.nn.Module], tokenizer: Tokenizer) -> int:
    input_ids, mask = _example(tokenizer)
    try:
        with exportable(modules) as traced:
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
            for module in traced:
                features = module(features)
        return int(features["token_embeddings"].shape[-1])
    except Exception as error:  # any, of whatever architecture
        raise ExportError(
            f"the encoder does not run: {first_line(error)}",
            hint="Call its encode_document() by itself: the traceback says where it fails.",
        ) from error


def _query_weights(queries: SparseStaticEmbedding, vocabulary: Vocabulary) -> NDArray[np.float32]:
    weights = queries.weight.detach().cpu().float().numpy()
    if len(weights) > vocabulary.size or (weights < 0).any() or not np.isfinite(weights).all():
        raise ExportError(
            f"the encoder's {len(weights)} query weights do not fit its vocabulary of {vocabulary.size} "
            "tokens, or some are negative or not finite",
            hint="Query weights are finite numbers from 0, one a token.",
        )
    padded = np.zeros(vocabulary.size, dtype=np.float32)
    padded[: len(weights)] = weights
    return padded * vocabulary.weight_mask()


def _head(encoder: SparseEncoder) -> Literal["pretrained", "random"] | None:
    report = getattr(encoder, "load_report", None)
    return None if report is None else report.head


def _source(encoder: SparseEncoder, transformer: Any) -> Source:
    """From the loader's report, else from what sentence-transformers and transformers remember."""
    config = transformer.model.config
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
        model=str(config._name_or_path or "unknown"),
        revision=getattr(config, "_commit_hash", None),
        model_type=config.model_type,
    )
