"""The older way: a ``CONFIG`` dictionary of the notebooks that trained neural sparse encoders.

::

    CONFIG = {
        "model": {"base_model": "bert-base-uncased", "max_doc_length": 256},
        "finetuning": {"num_steps": 50_000, "batch_size": 40, "learning_rate": 2e-5, "lambda_flops": 0.02},
        "knowledge_distillation": {
            "dense_teacher": "sentence-transformers/all-MiniLM-L6-v2",
            "sparse_teacher": None,
            "teacher_weights": {"dense": 1.0, "sparse": 0.0},
        },
        "data": "pairs.jsonl",
    }
    train(CONFIG).load().save_pretrained("outputs/sparse_teacher_v1")

``data`` is new: those notebooks made lists of texts in a cell. It takes what ``data`` of a recipe takes, or
its ``train`` alone; ``evaluation`` and ``seed`` are those of a recipe too.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oskit.errors import UsageError
from oskit.training.recipe.teachers import DEFAULT_DENSE_TEACHER

_PHASE = (
    "enabled num_steps batch_size gradient_accumulation_steps num_hard_negatives learning_rate lambda_flops "
    "warmup_steps max_grad_norm scale_constant_S"
)
SECTIONS = {
    "model": "base_model max_doc_length use_relu max_query_length*",
    "pretraining": _PHASE,
    "finetuning": _PHASE,
    "idf_penalty": "enabled idf_source* default_idf*",
    "knowledge_distillation": "enabled dense_teacher sparse_teacher cross_encoder teacher_weights "
    "score_scale temperature use_normalization",
    "hardware": "mixed_precision precision compile_model* num_workers* pin_memory* persistent_workers*",
    "logging": "output_dir eval_steps save_total_limit logging_steps* save_steps*",
    "data_filtering": "enabled* top_k_filter*",
}
"""The keys that are understood, by section. Those with a star change nothing here: IDF is that of the
training data, and mining drops what is likely wrong."""

_RECIPE_KEYS = ("data", "evaluation", "seed", "name")
_OWN = {"model", "pretraining", "finetuning", "knowledge_distillation", "idf_penalty"}
_PRECISIONS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}


class LegacyConfigWarning(UserWarning):
    """Something in a ``CONFIG`` dictionary has no effect."""


def is_legacy(config: Mapping[str, Any]) -> bool:
    """Whether a dictionary is a ``CONFIG`` of old rather than the values of a recipe."""
    return bool(_OWN & set(config)) and "encoder" not in config


def legacy_output(config: Mapping[str, Any]) -> Path | None:
    """The folder that a ``CONFIG`` wants its run in."""
    output = _section(config, "logging").get("output_dir")
    return None if output is None else Path(output)


def values_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the recipe that a ``CONFIG`` dictionary means; those of a recipe as they are.

    Of the two phases, ``finetuning`` is taken if it is there and enabled, else ``pretraining``.

    Raises:
        UsageError: A key is unknown, or something is missing that has no default.
    """
    if not is_legacy(config):
        return config
    _check_keys(config)
    model, logging = _section(config, "model"), _section(config, "logging")
    phase = _enabled(config, "finetuning") or _enabled(config, "pretraining")
    if "base_model" not in model:
        raise UsageError("CONFIG['model']['base_model'] is missing", hint="It names the encoder to train.")
    if "data" not in config:
        raise UsageError("CONFIG['data'] is missing", hint="For example CONFIG['data'] = 'pairs.jsonl'.")
    if not model.get("use_relu", True):
        raise UsageError("CONFIG['model']['use_relu'] is False", hint="Weights of tokens cannot be negative.")
    learning = _learning(config, phase)
    data = config["data"]
    data = dict(data) if isinstance(data, Mapping) and "train" in data else {"train": data}
    if "num_hard_negatives" in phase and "negatives" not in data:
        count, dense = phase["num_hard_negatives"], "'dense'" in str(learning.get("teachers"))
        data["negatives"] = {"ranker": "dense" if dense else "bm25", "per_query": count}
        data.setdefault("sampling", {"negatives": count})
    kind = "idf_flops" if _enabled(config, "idf_penalty") else "flops"
    penalises = "lambda_flops" in phase or kind == "idf_flops"
    penalty = {"weight": phase.get("lambda_flops", 3e-3), "kind": kind} if penalises else None
    output = str(logging.get("output_dir") or "")
    return _given(
        name=config.get("name")
        or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(output).name).strip("-._")
        or "encoder",
        encoder=_given(name=str(model["base_model"]), max_length=model.get("max_doc_length")),
        data=data,
        sparsity=_given(documents=penalty, queries=penalty),
        schedule=_given(
            steps=phase.get("num_steps"),
            learning_rate=phase.get("learning_rate"),
            max_grad_norm=phase.get("max_grad_norm"),
            evaluate_every=logging.get("eval_steps"),
            keep_checkpoints=logging.get("save_total_limit"),
            **_steps(phase, _section(config, "hardware")),
        ),
        evaluation=config.get("evaluation"),
        seed=config.get("seed"),
        **learning,
    )


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _check_keys(config: Mapping[str, Any]) -> None:
    _refuse_unknown("CONFIG", config, [*SECTIONS, *_RECIPE_KEYS])
    idle = []
    for name, keys in SECTIONS.items():
        section, known = _section(config, name), keys.replace("*", "").split()
        _refuse_unknown(f"CONFIG[{name!r}]", section, known)
        idle += [
            f"{name}.{key}" for key in known if f"{key}*" in keys and section.get(key) not in (None, False)
        ]
    if _enabled(config, "pretraining") and _enabled(config, "finetuning"):
        idle.append("pretraining")
    if idle:
        text = f"these keys of CONFIG have no effect: {', '.join(idle)}"
        warnings.warn(text, LegacyConfigWarning, stacklevel=2)


def _refuse_unknown(where: str, section: Mapping[str, Any], known: list[str]) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Its keys are {', '.join(known)}."
            raise UsageError(f"{where} has the unknown key {key!r}", hint=hint)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if section is None or section is False:
        return {}
    if not isinstance(section, Mapping):
        raise UsageError(f"CONFIG[{name!r}] is not a dictionary")
    return section


def _enabled(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section, or nothing if it is not enabled."""
    section = _section(config, name)
    return section if section.get("enabled", True) else {}


def _steps(phase: Mapping[str, Any], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Of the schedule, what several keys decide together."""
    found: dict[str, Any] = {}
    steps, warmup = phase.get("num_steps"), phase.get("warmup_steps")
    if isinstance(steps, int) and isinstance(warmup, int) and steps > 0:
        found["warmup"] = min(1.0, warmup / steps)
    batch, times = phase.get("batch_size"), phase.get("gradient_accumulation_steps", 1)
    if isinstance(batch, int) and isinstance(times, int):
        found |= {"batch_size": batch * times, "micro_batch_size": batch if times > 1 else None}
    if hardware.get("mixed_precision") is False:
        found["precision"] = "float32"
    elif "precision" in hardware:
        found["precision"] = _PRECISIONS.get(str(hardware["precision"]), "float32")
    return found


def _learning(config: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, Any]:
    """Teachers with a name and a weight, labels and losses; only the dense teacher has a weight of itself."""
    name = "knowledge_distillation"
    section = _enabled(config, name)
    if not section:
        return {"loss": [{"kind": "info_nce"}]}
    weights = section.get("teacher_weights") or {"dense": 1.0}
    if not isinstance(weights, Mapping) or set(weights) - {"dense", "sparse", "cross_encoder"}:
        raise UsageError(
            f"CONFIG[{name!r}]['teacher_weights'] is not {{'dense': ..., 'sparse': ...}}",
            hint="For example {'dense': 0.5, 'sparse': 0.5}.",
        )
    named = (
        ("dense", section.get("dense_teacher", DEFAULT_DENSE_TEACHER), weights.get("dense", 1.0)),
        ("sparse", section.get("sparse_teacher"), weights.get("sparse", 0.0)),
        ("cross-encoder", section.get("cross_encoder"), weights.get("cross_encoder", 0.0)),
    )
    found = [{"kind": kind, "name": one, "weight": weight} for kind, one, weight in named if one and weight]
    if not found:
        raise UsageError(f"CONFIG[{name!r}]: all teachers have the weight 0", hint="Give one a weight.")
    return {
        "teachers": found,
        "labels": _given(
            scale=section.get("score_scale", phase.get("scale_constant_S")),
            normalize="none" if section.get("use_normalization") is False else None,
        ),
        "loss": [_given(kind="kl", temperature=section.get("temperature"))],
    }
