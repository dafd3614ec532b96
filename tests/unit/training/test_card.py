"""The model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from oskit.training.data.facts import DataFacts, Target
from oskit.training.recipe.file import load_recipe
from oskit.training.report.card import model_card
from oskit.training.report.choice import Candidate, Choice
from oskit.training.report.figures import Figures
from oskit.training.report.lengths import Lengths
from oskit.training.report.result import StageResult, TrainingResult


def test_14_card_and_report_call_the_encoder_like_its_run_and_tell_no_path(tmp_path: Path) -> None:
    for folder in ("models/base", "runs/shop/stage-1/best", "runs/shop/best"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pairs.jsonl").touch()
    figures = Figures(0.5, 0.5, 0.5, 1.0, 2.0, 3.0, 4, 5, {"a": 0.5, "b": 0.4})
    teacher: dict[str, Any] = {"kind": "sparse", "effective_weight": 1.0, "status": "used"}
    data = DataFacts(
        examples=9,
        negatives=1,
        sources=[{"name": str(tmp_path / "pairs.jsonl"), "examples": 9}],
        teachers={"teachers": [{**teacher, "name": str(tmp_path / "runs/shop/stage-1/best")}]},
    )
    run = tmp_path / "runs" / "shop"
    one = Candidate(1, 0.5, 1.0, 3.0)
    lengths = Lengths(128, None, 128)
    choice = Choice("from the end of the ramp (step 1) on", one, one)
    stage = StageResult("two", run, run / "best", 2, choice, figures, figures, data, 1.0, lengths)
    stage.targets["document"] = Target("sparsity.documents.target", 60.0, 99.86, 0.2)
    result = TrainingResult(run, run / "best", [stage])
    recipe = load_recipe(
        {"name": "two", "encoder": {"name": str(tmp_path / "models/base")}, "data": {"train": "p"}}
    )

    text = model_card(recipe, result)
    assert str(tmp_path) not in text
    assert "# shop\n" in text and 'from_pretrained("shop")' in text
    assert ModelCard(text).data.model_name == result.to_dict()["name"] == "shop"
    assert (
        "trained from `base`" in text
        and "sparse teacher stage-1 (100%)" in text
        and "of pairs.jsonl (9)" in text
    )
    assert "sparsity.documents.target: 60 asked for, 99.9 reached." in text
    assert '"best"' not in text
