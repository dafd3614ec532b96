"""CONFIG dictionaries of old."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest

from oskit.errors import UsageError
from oskit.training.recipe.file import load_recipe
from oskit.training.recipe.notebook_config import LegacyConfigWarning, is_legacy, legacy_output
from oskit.training.recipe.objective import InfoNceConfig, KlConfig
from oskit.training.recipe.recipe import Recipe

CONFIG: dict[str, Any] = {
    "model": {"base_model": "some/encoder", "max_doc_length": 256, "use_relu": True},
    "finetuning": {
        "enabled": True,
        "num_steps": 500,
        "batch_size": 20,
        "gradient_accumulation_steps": 2,
        "num_hard_negatives": 10,
        "learning_rate": 2e-5,
        "lambda_flops": 0.02,
        "warmup_steps": 20,
        "max_grad_norm": 1.0,
        "scale_constant_S": 20,
    },
    "idf_penalty": {"enabled": True},
    "knowledge_distillation": {
        "enabled": True,
        "dense_teacher": "some/dense",
        "sparse_teacher": None,
        "temperature": 3.0,
        "cross_encoder": "some/cross",
        "use_normalization": True,
        "teacher_weights": {"dense": 1.0, "sparse": 0.0},
    },
    "hardware": {"mixed_precision": True, "precision": "bf16"},
    "logging": {"output_dir": "outputs/neural v2", "eval_steps": 50, "save_total_limit": 5},
    "data": "pairs.jsonl",
}


def read(**changes: Any) -> Recipe:
    config = copy.deepcopy(CONFIG)
    for name, change in changes.items():
        config[name] = {**config[name], **change} if isinstance(change, dict) and name in config else change
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_recipe(config)


def teachers(recipe: Recipe) -> list[tuple[str, str, float]]:
    return [(one.kind, one.name, one.weight) for one in recipe.teachers]  # type: ignore[union-attr]


def test_what_a_config_means() -> None:
    recipe = read()
    assert (recipe.name, recipe.encoder.name, recipe.encoder.max_length) == ("neural-v2", "some/encoder", 256)
    assert recipe.data.train[0].path == str(Path.cwd() / "pairs.jsonl")
    assert recipe.data.negatives is not None
    assert (recipe.data.negatives.per_query, recipe.data.negatives.ranker) == (10, "dense")
    assert recipe.data.sampling.negatives == 10
    assert teachers(recipe) == [("dense", "some/dense", 1.0)]
    assert (recipe.labels.scale, recipe.labels.normalize) == (20, "minmax")
    assert recipe.loss == (KlConfig(temperature=3.0),)
    documents = recipe.sparsity.documents
    assert (documents.weight, documents.kind) == (0.02, "idf_flops")
    assert recipe.sparsity.queries is not None
    assert (recipe.sparsity.queries.weight, recipe.sparsity.queries.kind) == (0.02, "idf_flops")
    schedule = recipe.schedule
    assert (schedule.steps, schedule.batch_size, schedule.micro_batch_size) == (500, 40, 20)
    assert (schedule.learning_rate, schedule.warmup, schedule.precision) == (2e-5, 0.04, "bf16")
    assert (schedule.evaluate_every, schedule.keep_checkpoints) == (50, 5)
    assert legacy_output(CONFIG) == Path("outputs/neural v2")


def test_the_second_stage_of_old() -> None:
    section = {"sparse_teacher": "outputs/v1", "teacher_weights": {"dense": 0.5, "sparse": 0.5}}
    recipe = read(knowledge_distillation=section)
    assert teachers(recipe) == [("dense", "some/dense", 0.5), ("sparse", "outputs/v1", 0.5)]


def test_without_distillation_it_is_learned_from_the_pairs() -> None:
    recipe = read(knowledge_distillation={"enabled": False}, idf_penalty={"enabled": False})
    assert recipe.loss == (InfoNceConfig(),)
    assert recipe.data.negatives is not None and recipe.data.negatives.ranker == "bm25"
    assert recipe.sparsity.documents.kind == "flops"


def test_a_cross_encoder_with_a_weight_is_a_teacher() -> None:
    section = {"teacher_weights": {"dense": 0.5, "cross_encoder": 0.5}, "use_normalization": False}
    recipe = read(knowledge_distillation=section)
    assert teachers(recipe) == [("dense", "some/dense", 0.5), ("cross-encoder", "some/cross", 0.5)]
    assert recipe.labels.normalize == "none"


def test_other_phases_and_precisions() -> None:
    phase = {**CONFIG["finetuning"], "num_steps": 9, "warmup_steps": 3}
    recipe = read(pretraining=phase, finetuning={"enabled": False}, hardware={"mixed_precision": False})
    assert (recipe.schedule.steps, recipe.schedule.precision) == (9, "float32")
    assert recipe.schedule.warmup == pytest.approx(1 / 3)


def test_what_has_no_effect_is_told_in_one_warning() -> None:
    with pytest.warns(
        LegacyConfigWarning, match=r"hardware\.num_workers, data_filtering\.top_k_filter, pretraining"
    ):
        load_recipe(
            {
                **CONFIG,
                "pretraining": {"num_steps": 1},
                "hardware": {"num_workers": 8},
                "data_filtering": {"top_k_filter": 10},
            }
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"knowledge_distilation": {}},
            r"unknown key 'knowledge_distilation'. Did you mean 'knowledge_distill",
        ),
        (
            {"finetuning": {"num_step": 3}},
            r"CONFIG\['finetuning'\] has the unknown key 'num_step'. Did you mean",
        ),
        ({"data": None}, "data"),
        ({"model": {"use_relu": False}}, "use_relu"),
        ({"hardware": 3}, "not a dictionary"),
        ({"knowledge_distillation": {"teacher_weights": {"dense": 0, "sparse": 0}}}, "weight 0"),
        ({"knowledge_distillation": {"dense_teacher": None}}, "weight 0"),
        ({"knowledge_distillation": {"teacher": "x"}}, "unknown key 'teacher'"),
        ({"knowledge_distillation": {"teacher_weights": {"dens": 1}}}, "teacher_weights"),
        ({"knowledge_distillation": {"teacher_weights": {"dense": "much"}}}, "teachers.0.weight"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        read(**change)
    assert type(caught.value).__module__.startswith("oskit.")


def test_what_has_no_default_must_be_there() -> None:
    for section, key in (("data", "data"), ("model", "base_model")):
        with pytest.raises(UsageError, match=key):
            load_recipe({name: value for name, value in CONFIG.items() if name != section})


def test_a_recipe_is_not_taken_for_a_config() -> None:
    assert is_legacy(CONFIG)
    assert not is_legacy({"name": "x", "encoder": {"name": "e"}, "data": {"train": "p"}})
