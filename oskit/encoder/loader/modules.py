"""From a folder to sentence-transformers modules, with every way in which that can go wrong named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from torch import nn

from oskit.archive.idf import idf_vector, read_idf
from oskit.archive.text_encoder import Activation
from oskit.encoder.anatomy import Anatomy
from oskit.encoder.head.projection import mark_random, projection_module, random_projection, read_projection
from oskit.encoder.loader.failures import named_errors
from oskit.encoder.loader.layouts import Layout, TransformerPart
from oskit.encoder.surgery.inference_free import router_of
from oskit.errors import BrokenEncoderError


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


def build_modules(
    layout: Layout,
    *,
    activation: Activation,
    seed: int,
    trust: Trust,
    untrained: bool = False,
) -> tuple[list[nn.Module], str | None]:
    """Modules of a folder that sentence-transformers' own files do not describe.

    Args:
        layout: A layout of the kind ``transformer`` or ``head file``.
        activation: Of the pooling.
        seed: Of a random projection.
        trust: Whether the folder's own code may run.
        untrained: Ignore the head that the folder may have and make a random projection.

    Returns:
        Modules for a ``SparseEncoder``, and what their head lacked, if it had to be made up.

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
    config: Any = transformer.model.config
    dense = []
    if layout.head is not None and not untrained:
        projection = read_projection(layout.head, hidden_size=config.hidden_size)
        dense.append(projection_module(projection.weight, projection.bias))
        if projection.max_length:
            own = transformer.max_seq_length or projection.max_length
            transformer.max_seq_length = min(projection.max_length, own)
    elif missing is not None:
        std = getattr(config, "initializer_range", None) or 0.02
        dense.append(random_projection(config.hidden_size, config.vocab_size, std=std, seed=seed))
        mark_random(dense[0], config)
    pooling = SpladePooling("max", activation_function=activation)
    anatomy = Anatomy(transformer, tuple(dense), pooling, None, str(part.folder))
    pooling.embedding_dimension = anatomy.width
    vocabulary = anatomy.vocabulary  # refuses a tokenizer of another encoder
    if layout.idf is None or untrained:
        return list(anatomy.document_modules), missing
    return [router_of(anatomy, idf_vector(read_idf(layout.idf), vocabulary))], missing


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
    if settings.get("max_seq_length"):
        transformer.max_seq_length = settings["max_seq_length"]
    return transformer


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
    """Load a checkpoint once to see what it lacks or has too much; transformers itself only logs that.

    The weights are mapped into memory, so this costs a tenth of the load that follows, or less.

    Raises:
        BrokenEncoderError: Weights of the encoder are missing or have another shape, or there are some that
            the model which ``config.json`` describes has no place for.
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
    surplus = sorted(name for name in info["unexpected_keys"] if _is_lost(name, model))
    if surplus:
        raise BrokenEncoderError(
            f"{part.folder} has weights that config.json has no place for: {_some(surplus)}",
            hint="config.json and the weights belong to two models: copy them, or save the model, again.",
        )
    # A projection tied to the embeddings is one parameter with them, so it is not among these names.
    return Lacking(sorted((missing & names) - encoder), sorted(names - encoder - missing))


def _of_encoder(name: str, model: Any) -> bool:
    base = model.base_model
    return base is model or name.startswith(f"{model.base_model_prefix}.")


_BUFFERS = ("position_ids", "token_type_ids", "inv_freq", "_weight")
"""What older versions of transformers saved and newer ones compute; ``_weight`` is what DeBERTa-v3's training
kept beside the embeddings' ``weight``, which is complete without it."""


def _is_lost(name: str, model: Any) -> bool:
    """Whether a weight that found no place belongs to a part which the model has: its encoder, or a layer.

    Other heads (next sentence, classes) and the pooler, which only those read, are rightly left out.
    """
    path = name.removeprefix(f"{model.base_model_prefix}.").split(".")
    if "pooler" in path or path[-1] in _BUFFERS:
        return False
    layer = name.rpartition(".")[0]
    return hasattr(model.base_model, path[0]) or layer in dict(model.named_modules())


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


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
