"""Which checkpoint becomes the run's encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oskit.training.loop.run import train
from oskit.training.report.choice import Choice, Rule
from tests import tiny
from tests.unit.training.word_pairs import write_pairs

STEPS = {5: (0.9, 50.0), 10: (0.7, 9.0), 15: (0.6, 4.0), 20: (0.8, 6.0), 25: (0.8, 2.0)}
HISTORY: list[dict[str, Any]] = [
    {"step": 5, "loss": 1.0},
    *(
        {"step": step, "eval_ndcg@10": ndcg, "eval_flops": flops, "eval_document_active": 9.0}
        for step, (ndcg, flops) in STEPS.items()
    ),
]


@pytest.mark.parametrize(
    ("rule", "step", "kept", "told"),
    [
        (Rule(12), 20, True, "by nDCG@10 alone it would be step 5 "),  # of equals the first
        (Rule(1), 5, True, "and of all"),
        (Rule(25), 25, True, "from the end of the ramp (step 25) on"),
        (Rule(99), 25, False, "NO checkpoint is from the end of the ramp"),  # the last one is nearest
        (Rule(12, max_flops=9.0), 20, True, "within 9 FLOPS"),
        (Rule(25, max_flops=100.0), 5, True, "and of all"),  # a budget asks for no ramp
        (Rule(1, max_flops=1.0), 25, False, "NO checkpoint is within 1 FLOPS"),  # the cheapest one
    ],
)
def test_the_best_after_the_ramp_or_within_the_budget(rule: Rule, step: int, kept: bool, told: str) -> None:
    choice = Choice.of(rule, HISTORY, "ndcg@10")
    assert (choice.chosen.step, choice.highest.step, choice.kept) == (step, 5, kept)
    assert told in choice.line


def test_a_run_keeps_the_checkpoint_that_its_rule_names(tmp_path: Path) -> None:
    base = tiny.without_dropout(tiny.build("bert", tmp_path / "base"))
    words = ("concrete", "bridge", "water", "road", "stone", "house", "old", "steel", "wall", "floor")
    recipe: dict[str, Any] = {
        "name": "tiny",
        "encoder": {"name": str(base), "max_length": 16},
        "data": {"train": [str(write_pairs(tmp_path / "pairs.jsonl", words))], "hold_out": 0.4},
        "teachers": [],
        "loss": [{"kind": "info_nce"}],
        "sparsity": {"documents": {"weight": 0.3}, "queries": None, "ramp": 0.7},
        "schedule": {
            "steps": 20,
            "batch_size": 16,
            "learning_rate": 5e-3,
            "evaluate_every": 4,
            "keep_checkpoints": 9,
        },
    }
    first = tmp_path / "first"
    by_ramp = train(recipe, first).stages[0].choice
    measured = {
        row["step"]: (row["eval_ndcg@10"], row["eval_flops"])
        for row in map(json.loads, (first / "log.jsonl").read_text().splitlines())
        if "eval_flops" in row
    }
    late = {step: values for step, values in measured.items() if step >= 14}
    assert list(late) == [16, 20] and list(measured) == [4, 8, 12, 16, 20]
    assert by_ramp.chosen.step == max(late, key=lambda step: late[step][0])
    assert by_ramp.highest.step == max(measured, key=lambda step: measured[step][0])
    _is_checkpoint(first, by_ramp.chosen.step)

    budget = sorted(flops for _, flops in measured.values())[2]
    by_budget = train({**recipe, "evaluation": {"max_flops": budget}}, tmp_path / "second").stages[0].choice
    cheap = {step: ndcg for step, (ndcg, flops) in measured.items() if flops <= budget}
    assert len(cheap) == 3
    assert by_budget.chosen.step == max(cheap, key=lambda step: cheap[step])
    _is_checkpoint(tmp_path / "second", by_budget.chosen.step)


def _is_checkpoint(folder: Path, step: int) -> None:
    ours = load_file(folder / "best" / "model.safetensors")
    kept = load_file(folder / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    assert ours.keys() == kept.keys()
    assert all(torch.equal(ours[name], kept[name]) for name in ours)
