"""An encoder taken apart: routes, transformer, projection, pooling, query weights, lengths and widths.

The one notion of it, for the loader, the surgery, the streaming head and the exporters, and for a plain
sentence-transformers ``SparseEncoder`` as for ours: ``Transformer (→ Dense) → SpladePooling``, by itself or
behind a router whose queries take the same way or are a table of token weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.sparse_encoder.modules import (
    Dense,
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)
from torch import Tensor, nn

from oskit.archive.batching import padded
from oskit.archive.text_encoder import SERVER_MAX_LENGTH, Architecture
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.head.projection import is_random
from oskit.errors import BrokenEncoderError, EncoderError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

DIRECTIONS_MARK = "oskit_directions"
"""In a transformer's configuration: what :attr:`Anatomy.names_directions` tells."""

_PADDING_COLUMNS = 1024


@dataclass(frozen=True)
class Anatomy:
    """The parts of an encoder, shared with it.

    Attributes:
        transformer: What documents go through first; ``.model`` is the transformers model.
        dense: Modules between its hidden states and the logits; none where it has a masked-language head.
        pooling: What makes one vector of the logits of a text's tokens.
        queries: The table of an inference-free encoder's queries; None for a symmetric one.
        source: Where it is from, for messages.
    """

    transformer: Transformer
    dense: tuple[Dense, ...]
    pooling: SpladePooling
    queries: SparseStaticEmbedding | None
    source: str

    @property
    def logit_modules(self) -> tuple[nn.Module, ...]:
        """The modules from token ids to ``token_embeddings``: logits over the vocabulary."""
        return (self.transformer, *self.dense)

    @property
    def document_modules(self) -> tuple[nn.Module, ...]:
        """The modules that documents go through, the pooling last."""
        return (*self.logit_modules, self.pooling)

    @property
    def architecture(self) -> Architecture:
        """``"symmetric"``, or ``"inference-free"`` when queries are a table of token weights."""
        return "symmetric" if self.queries is None else "inference-free"

    @property
    def model(self) -> Any:
        """The transformers model; its attributes differ from one architecture to another."""
        return self.transformer.model

    @property
    def config(self) -> Any:
        """The configuration of the transformers model."""
        return self.model.config

    @property
    def projection(self) -> Dense | None:
        """The projection to the vocabulary, where it is a module of its own."""
        return self.dense[-1] if self.dense else None

    @property
    def output(self) -> Any:
        """The layer whose rows are tokens: that of the projection, else the masked-language head's last."""
        if self.dense:
            return self.dense[-1].linear
        return getattr(self.model, "get_output_embeddings", lambda: None)()

    @property
    def is_untrained(self) -> bool:
        """Whether the projection is still the random one that the loader made up."""
        return self.projection is not None and is_random(self.projection, self.config)

    @property
    def names_directions(self) -> bool:
        """Whether tokens are names of random directions, behind a layer that pools, and mean nothing."""
        return bool(getattr(self.config, DIRECTIONS_MARK, False))

    @property
    def hidden_size(self) -> int:
        """Width of the transformer's hidden states."""
        return int(self.config.hidden_size)  # also where the configuration calls it `dim`

    @property
    def layers(self) -> int:
        """Number of the transformer's layers."""
        return int(getattr(self.config, "num_hidden_layers", 0))

    @property
    def width(self) -> int:
        """Columns of the logits; more than the tokenizer has ids where the vocabulary is padded."""
        output = self.output
        return int(self.config.vocab_size if output is None else output.weight.shape[0])

    @property
    def positions(self) -> int | None:
        """Tokens that the transformer has positions for; None when it has no such limit."""
        declared = getattr(self.config, "max_position_embeddings", None)
        limits = [declared] if declared is not None and declared > 0 else []
        for name, module in self.model.named_modules():
            table = getattr(module, "weight", None)
            if name.rpartition(".")[2] == "position_embeddings" and table is not None:
                # Where there is a padding index, positions start behind it: rows up to it are none.
                padding = getattr(module, "padding_idx", None)
                limits.append(len(table) - (0 if padding is None else padding + 1))
        return min(limits, default=None)

    @property
    def max_length(self) -> int:
        """Tokens that a text is truncated to on the cluster, special tokens included."""
        lengths = (self.transformer.max_seq_length, self.positions, SERVER_MAX_LENGTH)
        return min(int(length) for length in lengths if length)

    @property
    def vocabulary(self) -> Vocabulary:
        """Token ids and the cluster's keys, as wide as the logits.

        Raises:
            BrokenEncoderError: The tokenizer is no fast tokenizer, or belongs to another encoder.
        """
        from tokenizers import Tokenizer

        width, own = self.width, self.transformer.tokenizer
        backend = getattr(own, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise BrokenEncoderError(
                f"{self.source}: its {type(own).__name__} has no fast version, and so no tokenizer.json, "
                "which OpenSearch needs",
                hint="Convert it with transformers' convert_slow_tokenizer and save it with the encoder.",
            )
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        try:
            vocabulary = Vocabulary(tokenizer, size=width)
        except EncoderError as error:
            raise BrokenEncoderError(f"{self.source}: {error.message}", hint=error.hint) from error
        known = tokenizer.get_vocab_size(with_added_tokens=True)
        # Outputs are padded to a round number; more than that is a tokenizer of another encoder.
        if width - known > max(_PADDING_COLUMNS, width // 10):
            raise BrokenEncoderError(
                f"{self.source}: the tokenizer has only {known} tokens, the encoder's output {width} columns",
                hint="Use the tokenizer that it was trained with.",
            )
        return vocabulary

    def query_weights(self, vocabulary: Vocabulary) -> NDArray[np.float32] | None:
        """The weight of each token in a query, ``[vocabulary.size]``, special tokens 0; None if symmetric.

        Raises:
            BrokenEncoderError: The table is wider than the encoder's output.
        """
        if self.queries is None:
            return None
        weights = self.queries.weight.detach().float().cpu().numpy()
        if len(weights) > vocabulary.size:
            raise BrokenEncoderError(
                f"{self.source}: the table of query weights has {len(weights)} tokens, the encoder's output "
                f"{vocabulary.size} columns",
                hint="Use the table that was made for this encoder's tokenizer.",
            )
        vector = np.zeros(vocabulary.size, dtype=np.float32)
        vector[: len(weights)] = weights
        return vector * vocabulary.weight_mask()

    @property
    def around(self) -> int:
        """How many tokens the tokenizer puts around a text."""
        tokenizer: Any = self.transformer.tokenizer
        return int(tokenizer.num_special_tokens_to_add())

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[Encoding]:
        """Tokens of each text as the cluster reads it, or fewer, with special tokens around them."""
        tokenizer: Any = self.transformer.tokenizer
        if not texts:
            return []
        length = max_length or self.max_length
        tokenizer([""], truncation=True, max_length=length)  # which the backend goes by from now on
        found: list[Encoding] = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))  # no offsets
        return found

    def features(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Token ids as the modules take them: ``input_ids`` and ``attention_mask``, padded at the end."""
        tokenizer: Any = self.transformer.tokenizer
        # The padding is masked, but RoBERTa counts its positions by it.
        arrays = padded(ids, tokenizer.pad_token_id or 0)
        device = next(self.model.parameters()).device
        tensors = [torch.from_numpy(array) for array in arrays]
        if device.type == "cuda":  # from pinned memory the host need not wait for the copy
            tensors = [tensor.pin_memory() for tensor in tensors]
        input_ids, mask = (tensor.to(device, non_blocking=True) for tensor in tensors)
        return {"input_ids": input_ids, "attention_mask": mask}

    def try_out(self) -> Tensor:
        """The logits of three tokens, so that hooks see what the modules do."""
        features = self.features([[0, 1, 2]])
        # Dropout must not draw from the caller's random numbers: a resumed training would not repeat them.
        device = features["input_ids"].device
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            for module in self.logit_modules:
                features = module(features)
        logits: Tensor = features["token_embeddings"]
        return logits


def dissect(encoder: Iterable[nn.Module], source: str = "this encoder") -> Anatomy:
    """Take an encoder apart.

    Args:
        encoder: A ``SparseEncoder``, or its modules.
        source: Where it is from, for messages.

    Raises:
        EncoderError: Documents or queries do not go through it as OpenSearch needs it.
    """
    documents, queries = _routes(list(encoder), source)
    first, dense, last = documents[:1], documents[1:-1], documents[-1:]
    kinds = ((first, Transformer), (dense, Dense), (last, SpladePooling))
    if len(documents) < 2 or not all(isinstance(part, kind) for parts, kind in kinds for part in parts):
        raise EncoderError(
            f"{source} has the modules {_names(documents)}: OpenSearch needs weights of tokens",
            hint="Use an encoder of Transformer (→ Dense) → SpladePooling.",
        )
    return Anatomy(first[0], tuple(dense), last[0], queries, source)


def _routes(modules: list[Any], source: str) -> tuple[list[Any], SparseStaticEmbedding | None]:
    """The modules that documents go through, and the table of queries if they do not do so as well."""
    at = next((i for i, module in enumerate(modules) if isinstance(module, Router)), None)
    if at is None:
        return modules, None
    routes = {
        name: [*modules[:at], *route, *modules[at + 1 :]] for name, route in modules[at].sub_modules.items()
    }
    if not {"query", "document"} <= routes.keys():
        raise EncoderError(
            f"the router of {source} has the routes {', '.join(routes)}, not query and document",
            hint="Build it with Router.for_query_document().",
        )
    query, documents = routes["query"], routes["document"]
    if query == documents:
        return documents, None
    if len(query) == 1 and isinstance(query[0], SparseStaticEmbedding):
        return documents, query[0]
    raise EncoderError(
        f"{source} sends queries through {_names(query)}, documents through another {_names(documents)}",
        hint="Use an encoder whose queries are a table of token weights, or one encoder for both.",
    )


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """A module that does not train, until the block ends."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _names(modules: Sequence[nn.Module]) -> str:
    return " → ".join(type(module).__name__ for module in modules) or "nothing"
