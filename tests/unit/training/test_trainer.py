"""The trainer: memory that does not suffice, numbers that are none, and the order of the data."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoderTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import TrainerCallback

from oskit.encoder.model import NeuralSparseEncoder
from oskit.encoder.surgery.inference_free import inference_free
from oskit.errors import TrainingError
from oskit.training import TrainingData
from oskit.training.data.arrow import LABELS
from oskit.training.loop.guards import Guards
from oskit.training.loop.trainer import OskitTrainer
from oskit.training.objective.batches import ROUTES, DrawnExamples, ExampleCollator
from oskit.training.objective.objective import FACTS, TrainingLoss
from oskit.training.objective.sparsity import SparsityWeights
from oskit.training.recipe.recipe import Recipe
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without dropout: micro batches then compute what the whole batch computes."""
    return tiny.without_dropout(tiny.build("bert", tmp_path_factory.mktemp("trainer") / "bert"))


@pytest.fixture(scope="module")
def drawn() -> DrawnExamples:
    """24 queries with their answer and two other documents, which teachers labelled."""
    words = tiny.WORDS
    records = [
        {
            "query": f"{words[n]} {words[n + 5]}",
            "positive": " ".join([words[n], "of the", words[n + 5]] * (1 + n % 4)),
            "negatives": [words[n + 9], f"a {words[n + 3]}"],
        }
        for n in range(24)
    ]
    data = TrainingData.of(records)
    labelled = data.examples.map(lambda _: {LABELS: [9.0, 1.0, 3.0]})
    return DrawnExamples(labelled, data.corpus, negatives=2, top=2)


Made = Callable[..., OskitTrainer]
SPARSITY = {"documents": {"weight": 3e-3}, "queries": {"weight": 5e-3}, "ramp": 0.5}


@pytest.fixture
def make(folder: Path, drawn: DrawnExamples, tmp_path: Path) -> Made:
    """Builds a trainer of three steps of eight rows.

    SGD, because AdamW makes whole steps of the rounding of gradients that are 0.
    """

    def build(
        *, micro_batch_size: int | None = None, notes: list[str] | None = None,
        steps: int = 3, learning_rate: float = 1e-3, table: bool = False, evaluator: Any = None,
        arguments: dict[str, Any] | None = None, **parts: Any,
    ) -> OskitTrainer:  # fmt: skip
        values = {"name": "x", "encoder": {"name": str(folder)}, "data": {"train": ["x"]}}
        recipe = Recipe.model_validate(
            {**values, "loss": [{"kind": "kl"}, {"kind": "info_nce"}], "sparsity": SPARSITY, **parts}
        )
        encoder = NeuralSparseEncoder.from_pretrained(folder, device="cpu")
        if table:
            idf = np.where(encoder.vocabulary.weight_mask() > 0, 2.0, 0.0).astype(np.float32)
            encoder = inference_free(encoder, idf, trainable=True)
        encoder.model_card_data.generate_widget_examples = False
        loss = TrainingLoss(encoder, recipe.loss, recipe.sparsity)
        given = {"output_dir": str(tmp_path), "save_strategy": "no", "optim": "sgd", **(arguments or {})}
        mapping = ROUTES if table else {}
        args = SparseEncoderTrainingArguments(
            max_steps=steps, per_device_train_batch_size=8, use_cpu=True,
            learning_rate=learning_rate, report_to="none", disable_tqdm=True, logging_steps=1,
            dataloader_drop_last=True, logging_nan_inf_filter=False, router_mapping=mapping, **given,
        )  # fmt: skip
        return OskitTrainer(
            guards=Guards(recipe, vocabulary=encoder.vocabulary.size, ramp_end=1),
            micro_batch_size=micro_batch_size,
            sparsity=SparsityWeights(recipe.sparsity.ramp, steps, loss.penalties),
            on_note=(notes if notes is not None else []).append,
            model=encoder,
            args=args,
            train_dataset=drawn,
            evaluator=evaluator,
            loss=loss,
            data_collator=ExampleCollator(preprocess_fn=encoder.preprocess, router_mapping=mapping),
        )

    return build


def weights(trainer: OskitTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def fail_once(trainer: OskitTrainer, error: Exception, at: int = 2) -> None:
    """The forward pass number ``at`` of the encoder has no memory."""
    forward, calls = trainer.model.forward, 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return forward(*args, **kwargs)

    trainer.model.forward = broken  # type: ignore[method-assign]


def test_every_part_of_the_loss_is_logged(make: Made) -> None:
    trainer = make()
    trainer.train()
    step = trainer.state.log_history[-2]
    parts = ("kl", "info_nce", "document_penalty", "query_penalty")
    assert step["loss"] == pytest.approx(sum(step[name] for name in parts), abs=1e-3)
    queries, documents, flops = (trainer.loss.values[name].item() for name in FACTS)
    assert step["step"] == 3 and step["document_dims"] == documents > 0
    assert (step["query_dims"], step["batch_flops"]) == (queries, flops)
    assert step["document_weight"] == pytest.approx(3e-3) and step["query_weight"] == pytest.approx(5e-3)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_what_is_computed_at_once_and_keeps_the_batch(
    make: Made, error: Exception
) -> None:
    """Without dropout the step that is done again is the step that would have been."""
    undisturbed, notes = make(), list[str]()
    undisturbed.train()
    trainer = make(notes=notes)
    fail_once(trainer, error)
    trainer.train()
    assert trainer.loss.mini_batch_size == 4
    assert trainer.state.global_step == 3
    assert notes == [
        "out of memory at step 1: 4 texts at once from here on; the batch stays 8 (gradients are cached)"
    ]
    assert torch.allclose(weights(trainer), weights(undisturbed), atol=1e-6)


def test_a_failure_in_the_backward_pass_leaves_no_gradients_behind(make: Made) -> None:
    """The cache computes texts again in the backward pass: passes 9 to 16 of the first step."""
    undisturbed = make(micro_batch_size=4)
    undisturbed.train()
    trainer = make(micro_batch_size=4)
    fail_once(trainer, torch.OutOfMemoryError("CUDA out of memory"), at=14)
    trainer.train()
    assert trainer.loss.mini_batch_size == 2
    assert torch.allclose(weights(trainer), weights(undisturbed), atol=1e-6)


def test_a_text_that_does_not_fit_alone_ends_the_training(make: Made) -> None:
    trainer = make(micro_batch_size=1)
    fail_once(trainer, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(TrainingError, match="with one text at once") as caught:
        trainer.train()
    assert "schedule.max_length" in str(caught.value)


def test_other_errors_are_not_taken_for_it(make: Made) -> None:
    trainer = make()
    fail_once(trainer, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer.train()


def test_a_loss_that_is_no_number_never_reaches_the_weights(make: Made) -> None:
    trainer = make()
    before = weights(trainer)
    collected = trainer.collect_features

    def broken(inputs: dict[str, Any]) -> Any:
        return collected(inputs | {"labels": torch.full_like(inputs["labels"], math.inf)})

    trainer.collect_features = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"no finite number at step 1 \(kl\)"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("scale", [None, 1.0, 2.0**16])
def test_gradients_that_are_no_numbers_never_reach_the_weights(make: Made, scale: float | None) -> None:
    """An overflow of fp16 ends training no more than its scaler does, which halves the scale and goes on."""
    trainer = make(steps=1)
    before = weights(trainer)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    if scale is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    if scale == 2.0**16:
        trainer.train()
        assert trainer.accelerator.scaler.get_scale() == 2.0**15
    else:
        with pytest.raises(TrainingError, match="gradients are no finite numbers at step 1"):
            trainer.train()
    assert torch.equal(weights(trainer), before)


def test_a_penalty_that_kills_the_encoder_is_noticed(make: Made) -> None:
    """The collapse itself, not a made-up number: a penalty that outweighs everything."""
    heavy = {"documents": {"weight": 1e4}, "queries": {"weight": 1e4}}
    trainer = make(
        steps=400,
        learning_rate=0.05,
        arguments={"optim": "adamw_torch"},
        sparsity=heavy,
        guards={"patience": 3},
    )
    with pytest.raises(TrainingError, match="the encoder is dead"):
        trainer.train()


class Peak(BaseEvaluator):
    """The second evaluation is the best one."""

    def __call__(
        self, model: Any, output_path: Any = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        return {"figure": 1.0 if steps == 4 else 0.5}


@pytest.mark.parametrize("table", [False, True])
def test_the_best_checkpoint_is_what_is_left(make: Made, table: bool, tmp_path: Path) -> None:
    by_steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "eval_figure"}
    trainer = make(steps=6, table=table, evaluator=Peak(), arguments={**by_steps, **chosen})
    trainer.train()
    best = NeuralSparseEncoder.from_pretrained(tmp_path / "checkpoint-4", device="cpu", fallback=False)
    last = NeuralSparseEncoder.from_pretrained(tmp_path / "checkpoint-6", device="cpu", fallback=False)
    texts = ["a long bridge of concrete", "old road"]
    found = trainer.model.document_matrix(texts).toarray()
    assert np.allclose(found, best.document_matrix(texts).toarray(), atol=1e-6)
    assert not np.allclose(found, last.document_matrix(texts).toarray(), atol=1e-6)
    if table:
        assert np.allclose(trainer.model.query_idf(), best.query_idf(), atol=1e-6)


def test_a_best_checkpoint_that_is_gone_or_broken_is_an_error(make: Made, tmp_path: Path) -> None:
    trainer = make(steps=1, arguments={"save_strategy": "steps", "save_steps": 1})
    trainer.train()
    trainer.state.best_model_checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="nowhere is gone"):
        trainer._load_best_model()
    checkpoint = tmp_path / "checkpoint-1"
    (weight_file,) = checkpoint.glob("**/model.safetensors")
    weight_file.write_bytes(weight_file.read_bytes()[:1000])
    trainer.state.best_model_checkpoint = str(checkpoint)
    with pytest.raises(TrainingError, match="checkpoint-1 cannot be loaded"):
        trainer._load_best_model()


def test_training_that_was_interrupted_ends_with_the_same_weights(make: Made, tmp_path: Path) -> None:
    """Stopped in the second of three epochs; with AdamW, whose state goes on too."""
    saving = {"save_strategy": "steps", "save_steps": 4, "optim": "adamw_torch"}
    whole = make(steps=9, arguments={**saving, "output_dir": str(tmp_path / "whole")})
    whole.train()
    stopped = make(steps=9, arguments={**saving, "output_dir": str(tmp_path / "parts")})
    stopped.add_callback(StopAt(4))
    stopped.train()
    assert stopped.state.global_step == 4
    resumed = make(steps=9, arguments={**saving, "output_dir": str(tmp_path / "parts")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert resumed.state.global_step == 9
    assert torch.equal(weights(resumed), weights(whole))


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self._step


def test_a_target_is_searched_for_and_the_search_goes_on_after_an_interruption(
    make: Made, tmp_path: Path
) -> None:
    target = {
        "documents": {"target": 40, "kind": "flops"},
        "queries": None,
        "ramp": {"share": 0.5, "delay": 0.1},
    }
    saving = {"save_strategy": "steps", "save_steps": 20, "optim": "adamw_torch"}
    made = {"steps": 60, "learning_rate": 1e-2, "sparsity": target}
    whole = make(arguments={**saving, "output_dir": str(tmp_path / "whole")}, **made)
    whole.train()
    logs = [line for line in whole.state.log_history if "document_weight" in line]
    assert [line["document_weight"] > 0 for line in logs] == [line["step"] > 6 for line in logs], (
        "after the delay"
    )
    assert logs[-1]["document_dims_path"] < 60
    assert logs[-1]["document_dims"] < 0.75 * logs[0]["document_dims"]

    stopped = make(arguments={**saving, "output_dir": str(tmp_path / "parts")}, **made)
    stopped.add_callback(StopAt(40))
    stopped.train()
    resumed = make(arguments={**saving, "output_dir": str(tmp_path / "parts")}, **made)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-40"))
    assert resumed.sparsity.state() == whole.sparsity.state()
    assert torch.equal(weights(resumed), weights(whole))


def test_workers_that_tokenize_change_nothing(make: Made) -> None:
    alone, helped = make(), make(arguments={"dataloader_num_workers": 2})
    alone.train()
    environment = dict(os.environ)
    helped.train()
    assert torch.equal(weights(helped), weights(alone))
    assert dict(os.environ) == environment, "a loader of somebody else that forks would hang"


def test_learned_query_weights_stay_above_0_and_leave_it_again(make: Made) -> None:
    trainer = make(table=True, learning_rate=0.1)
    table = trainer.model.anatomy.queries
    assert table is not None
    with torch.no_grad():
        table.weight.fill_(-1.0)
    trainer.train()
    assert (table.weight > 0).any() and not (table.weight <= -1).any()
