"""The demo's training: the encoder learns from the questions that are not asked afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oskit.data.collection import Collection
from oskit.demo.data import demo_encoder, demo_teacher, faq_split
from oskit.demo.result import DemoReport
from oskit.demo.steps import Steps

if TYPE_CHECKING:
    from oskit.training.report.result import TrainingResult

STEPS = 80
BATCH_SIZE = 32
MAX_LENGTH = 128


def train_demo(folder: Path, report: DemoReport, steps: Steps) -> tuple[Path, Collection]:
    """Train the demo's encoder on the FAQ, and measure it before and after on held-out questions.

    Args:
        folder: Where the run is kept; a run that was interrupted there goes on.
        report: Its ``training`` is filled in.
        steps: Tells what is done.

    Returns:
        The folder of the trained encoder, and the held-out questions with all answers.

    Raises:
        MissingDependencyError: The encoder, the teacher or the collection is not installed.
        TrainingError: Training failed.
    """
    pairs, held_out = faq_split()
    with steps.step(f"Train on {len(pairs)} questions, {len(held_out.queries)} are held out") as step:
        from oskit.training.loop.run import train

        collection = held_out.write(folder / "held-out")
        data = folder / "pairs.jsonl"
        lines = (json.dumps({"query": query, "positive": positive}) for query, positive in pairs)
        data.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        run = folder / "run"
        result = train(demo_recipe(data, collection), run, resume=run.exists())
        report.training = _facts(result, len(pairs))
        step.result = f"nDCG@10 {result.before.ndcg:.3f} before, {result.after.ndcg:.3f} after"
    return result.encoder, held_out


def demo_recipe(data: Path, collection: Path) -> dict[str, Any]:
    """The recipe: the teacher's view of all answers of a batch, and the right answers themselves.

    It is evaluated once, at the end: no checkpoint is chosen by the questions that the demo reports on.
    """
    return {
        "name": "demo",
        "description": "The demo's encoder, trained on the FAQ.",
        "encoder": {"name": str(demo_encoder()), "max_length": MAX_LENGTH},
        "data": {"train": [str(data)]},
        "teachers": [{"kind": "dense", "name": str(demo_teacher()), "required": True}],
        "labels": {"normalize": "none", "scale": 20.0},
        "loss": [
            {"kind": "kl", "temperature": 1.0, "candidates": "batch"},
            {"kind": "info_nce", "weight": 0.3},
        ],
        "schedule": {
            "steps": STEPS,
            "batch_size": BATCH_SIZE,
            "learning_rate": 2e-4,
            "evaluate_every": STEPS,
            "keep_checkpoints": 1,
        },
        "evaluation": {"collection": str(collection)},
    }


def _facts(result: TrainingResult, pairs: int) -> dict[str, Any]:
    stage = result.stages[-1]
    return {
        "pairs": pairs,
        "steps": stage.steps,
        "seconds": stage.seconds,
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "gain": stage.gain.to_dict(),
        "folder": str(result.folder),
    }
