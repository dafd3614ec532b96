"""From a folder to sentence-transformers modules, with every way in which that can go wrong named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sparse_encoder.modules import (
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)
from torch import nn

from oskit.archive.idf import idf_vector, read_idf
from oskit.archive.vocabulary import Vocabulary
from oskit.encoder.head.projection import projection_module, random_projection, read_projection
from oskit.encoder.loader.failures import named_errors
from oskit.encoder.loader.layouts import Layout, TransformerPart
from oskit.encoder.loader.report import Activation
from oskit.errors import BrokenEncoderError, EncoderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Trust:
    """Whether an encoder's own code may run, and whether the network may be used to get it.

    Code may be in another repository than the weights, so with ``code`` the network is needed.
    """

    code: bool = False
    offline: bool = True

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``from_pretrained``."""
        return {"trust_remote_code": self.code, "local_files_only": self.offline or not self.code}


@dataclass(frozen=True)
class Built:
    """Modules for a ``SparseEncoder``, and what their head lacked, if it had to be made up."""

    modules: list[nn.Module]
    missing: str | None = None


def build_modules(
    layout: Layout,
    *,
    activation: Activation,
    seed: int,
    trust: Trust,
    untrained: bool = False,
) -> Built:
    """Modules of a folder that sentence-transformers' own files do not describe.

    Args:
        layout: A layout of the kind ``transformer`` or ``head file``.
        activation: Of the pooling.
        seed: Of a random projection.
        trust: Whether the folder's own code may run.
        untrained: Ignore the head that the folder may have and make a random projection.

    Raises:
        EncoderError: The folder is broken, or needs its own code to run.
    """
    part = layout.transformers[0]
    missing: str | None = None
    if untrained:
        missing = "a trained projection (this is only the base encoder)"
    elif layout.kind == "transformer":
        missing = missing_head(part, trust)
    masked_lm = layout.kind == "transformer" and missing is None
    if not masked_lm:
        check_weights(TransformerPart(part.folder, masked_lm=False), trust)
    transformer = _transformer(layout, trust, masked_lm=masked_lm)
    modules: list[nn.Module] = [transformer]
    if layout.head is not None and not untrained:
        projection = read_projection(layout.head, hidden_size=hidden_size(transformer))
        modules.append(projection_module(projection.weight, projection.bias))
        if projection.max_length:
            own = transformer.max_seq_length or projection.max_length
            transformer.max_seq_length = min(projection.max_length, own)
    elif missing is not None:
        config = config_of(transformer)
        std = getattr(config, "initializer_range", None) or 0.02
        modules.append(random_projection(hidden_size(transformer), config.vocab_size, std=std, seed=seed))
    width = logits_width(modules)
    vocabulary = vocabulary_of(transformer, width, part.folder)
    modules.append(SpladePooling("max", activation_function=activation, embedding_dimension=width))
    if layout.idf is not None and not untrained:
        modules = [_router(layout.idf, transformer, modules, vocabulary)]
    return Built(modules, missing)


def _transformer(layout: Layout, trust: Trust, *, masked_lm: bool) -> Transformer:
    settings = layout.settings or {}
    folder = layout.transformers[0].folder
    with named_errors(folder):
        transformer: Transformer = Transformer(
            str(folder),
            transformer_task="fill-mask" if masked_lm else "feature-extraction",
            model_kwargs={**trust.options(), "dtype": torch.float32},
            processor_kwargs=trust.options(),
            config_kwargs=trust.options(),
            do_lower_case=bool(settings.get("do_lower_case", False)),
        )
    length = settings.get("max_seq_length") or transformer.max_seq_length
    limit = positions(transformer)
    if length is not None or limit is not None:
        transformer.max_seq_length = min(value for value in (length, limit) if value is not None)
    return transformer


def _router(idf: Path, transformer: Transformer, documents: list[Any], vocabulary: Vocabulary) -> Router:
    """Queries by a table, documents by the encoder."""
    queries = query_table(transformer.tokenizer, idf_vector(read_idf(idf), vocabulary))
    return Router.for_query_document(query_modules=[queries], document_modules=documents)


def query_table(
    tokenizer: Any, weights: NDArray[np.float32], *, frozen: bool = True
) -> SparseStaticEmbedding:
    """The query side of an inference-free encoder: ``weights [vocabulary]`` of its tokens.

    It is as wide as sentence-transformers makes it when it loads it again, one weight a token. That is too
    few where the token ids have holes: a table with weights beyond is wider, and cannot be saved.
    """
    width = len(tokenizer.get_vocab())
    if weights[width:].any():
        width = len(weights)
    return SparseStaticEmbedding(tokenizer, torch.from_numpy(weights[:width]), frozen=frozen)


def missing_head(part: TransformerPart, trust: Trust) -> str | None:
    """What a checkpoint lacks to be a masked language model; None when it has its head.

    Judged by the weights that transformers could not find in the checkpoint, after its renaming of old
    names (``LayerNorm.gamma``) and after tying the projection to the embeddings.

    Raises:
        BrokenEncoderError: Weights of the encoder itself are missing, or only a part of the head is.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    with named_errors(part.folder):
        config = AutoConfig.from_pretrained(part.folder, **trust.options())
    remote = "AutoModelForMaskedLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING and not (remote and trust.code):
        return f"a projection to the vocabulary (transformers has none for {config.model_type!r})"
    lacking = check_weights(part, trust)
    if not lacking.head:
        return None
    if lacking.head_present:
        raise BrokenEncoderError(
            f"{part.folder} has only a part of its head: {_some(lacking.head)} missing from its weights",
            hint="Copy or download the encoder again; to train a new head, remove the rest of the old one.",
        )
    return f"the weights of the projection ({_some(lacking.head)})"


@dataclass(frozen=True)
class Lacking:
    """Names of the head's weights that a checkpoint lacks, and that it has."""

    head: list[str]
    head_present: list[str]


def check_weights(part: TransformerPart, trust: Trust) -> Lacking:
    """Load a checkpoint once to see what it lacks; transformers itself only logs that.

    The weights are mapped into memory, so this costs a tenth of the load that follows, or less.

    Raises:
        BrokenEncoderError: Weights of the encoder are missing or have another shape.
        EncoderError: It needs its own code to run.
    """
    from transformers import AutoModel, AutoModelForMaskedLM

    factory = AutoModelForMaskedLM if part.masked_lm else AutoModel
    with named_errors(part.folder):
        model, info = factory.from_pretrained(
            part.folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **trust.options(),
        )
    names = {name for name, _ in model.named_parameters()}
    encoder = {name for name in names if _of_encoder(name, model)}
    missing = set(info["missing_keys"])
    lost = sorted(name for name in missing & encoder if "pooler." not in name)
    if lost:
        raise BrokenEncoderError(
            f"{part.folder} lacks weights of the encoder: {_some(lost)} of {len(encoder)} missing",
            hint="The weights belong to another model or were cut: copy or download them again.",
        )
    if info["mismatched_keys"]:
        name, found, needed = sorted(info["mismatched_keys"])[0]
        raise BrokenEncoderError(
            f"{part.folder}: the weight {name} has the shape {list(found)}, config.json says {list(needed)}",
            hint="config.json and the weights belong to two models: copy or download them again.",
        )
    # A projection tied to the embeddings is one parameter with them, so it is not among these names.
    return Lacking(sorted((missing & names) - encoder), sorted(names - encoder - missing))


def _of_encoder(name: str, model: Any) -> bool:
    base = model.base_model
    return base is model or name.startswith(f"{model.base_model_prefix}.")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def config_of(transformer: Transformer) -> Any:
    """The configuration of the transformers model; its attributes differ from one architecture to another."""
    return transformer.model.config


def hidden_size(transformer: Transformer) -> int:
    """Width of the transformer's hidden states."""
    return int(config_of(transformer).hidden_size)  # also where the configuration calls it `dim`


def layers(transformer: Transformer) -> int:
    """Number of the transformer's layers."""
    return int(getattr(config_of(transformer), "num_hidden_layers", 0))


def logits_width(modules: list[nn.Module]) -> int:
    """Width of the logits that these modules lead to."""
    last = modules[-1]
    if isinstance(last, Transformer):
        output = last.model.get_output_embeddings()
        return int(output.weight.shape[0] if output is not None else last.model.config.vocab_size)
    return int(last.get_embedding_dimension())  # type: ignore[operator]


# Their positions start behind the padding token's, so that many of the table's rows are no positions.
_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "xlm-roberta-xl",
    "data2vec-text",
    "mpnet",
    "longformer",
)


def positions(transformer: Transformer) -> int | None:
    """Tokens that the transformer has positions for; None when it has no such limit."""
    config = config_of(transformer)
    rows = getattr(config, "max_position_embeddings", None)
    if rows is None or rows < 1:
        return None
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(rows - offset)


_PADDING_COLUMNS = 1024


def vocabulary_of(transformer: Transformer, width: int, source: Path | str) -> Vocabulary:
    """The vocabulary behind ``width`` columns of logits.

    Raises:
        BrokenEncoderError: The tokenizer is no fast tokenizer, or belongs to another encoder.
    """
    from tokenizers import Tokenizer

    backend = getattr(transformer.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BrokenEncoderError(
            f"the tokenizer in {source} cannot be written as tokenizer.json, which OpenSearch needs",
            hint="Convert it to a fast tokenizer (class tokenizers.Tokenizer) and save it there.",
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        vocabulary = Vocabulary(tokenizer, size=width)
    except EncoderError as error:
        raise BrokenEncoderError(f"{source}: {error.message}", hint=error.hint) from error
    known = tokenizer.get_vocab_size(with_added_tokens=True)
    # Outputs are padded to a round number; more than that is a tokenizer of another encoder.
    if width - known > max(_PADDING_COLUMNS, width // 10):
        raise BrokenEncoderError(
            f"{source}: the tokenizer has only {known} tokens, the encoder's output {width} columns",
            hint="Use the tokenizer that it was trained with.",
        )
    return vocabulary


def check_finite(module: nn.Module, source: Path | str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        BrokenEncoderError: Names the first parameter that holds NaN or infinity.
    """
    for name, parameter in module.named_parameters():
        # A sum is finite unless a term is not (or it overflows): one quick pass where nothing is wrong.
        if parameter.is_floating_point() and not (
            bool(torch.isfinite(parameter.sum())) or bool(torch.isfinite(parameter).all())
        ):
            raise BrokenEncoderError(
                f"{source}: the weight {name} holds NaN or infinity",
                hint="Its training diverged or the file is damaged: use an earlier checkpoint.",
            )
