"""The model card of a run: what the encoder is, how it was made and how good it is, by the report."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from oskit.archive.manifest import short_name
from oskit.training.recipe.recipe import Recipe
from oskit.training.report.result import BEST, StageResult, TrainingResult

CARD = "README.md"

_USE = """
## Use

```python
from oskit import NeuralSparseEncoder

encoder = NeuralSparseEncoder.from_pretrained("{name}")  # its folder, or repository
encoder.document_weights(["a text"])
```
"""
_REST = """
It opens in sentence-transformers as a `SparseEncoder` too; `oskit export` makes an archive of it
for OpenSearch.

## How it was made

`recipe.yaml` says everything, `environment.json` with which versions, `report.json` what came of
it.
"""


def write_card(recipe: Recipe, result: TrainingResult) -> None:
    """Write ``README.md`` into the run's folder and beside the encoder."""
    text = model_card(recipe, result)
    for folder in (result.folder, result.folder / BEST):
        (folder / CARD).write_text(text, encoding="utf-8")


def model_card(recipe: Recipe, result: TrainingResult) -> str:
    """The card as Markdown with the header that the Hub reads."""
    last, stages = result.stages[-1], len(result.stages)
    lines = [
        f"---\n{_header(recipe, result)}\n---\n\n# {result.name}\n",
        *([f"{recipe.description}\n"] if recipe.description else []),
        f"A learned sparse encoder for OpenSearch, trained from `{short_name(recipe.encoder.name)}`"
        + (f" in {stages} stages.\n" if stages > 1 else ".\n"),
        "## How good it is\n",
        f"On {last.after.queries:,} queries ({_evaluation(recipe)}), over "
        f"{last.after.documents:,} documents, ranked exactly:\n",
        *_table(result),
        "",
        _gain(last),
        *(["", *_listed(last.limits)] if last.limits else []),
        *_leakage(last),
        _USE.format(name=result.name),
        *_listed(last.lengths.lines),
        _REST,
        *(line for stage in result.stages for line in _made(stage)),
    ]
    return "\n".join(lines) + "\n"


def _listed(lines: list[str]) -> list[str]:
    return [f"* {line[0].upper()}{line[1:]}." for line in lines]


def _header(recipe: Recipe, result: TrainingResult) -> str:
    """What the Hub reads, with figures under the names that sentence-transformers' evaluators use."""
    name = recipe.encoder.name
    results = [
        EvalResult(
            task_type="sparse-information-retrieval",
            task_name="Sparse Information Retrieval",
            dataset_type="unknown",
            dataset_name=_evaluation(recipe),
            metric_type=measure.on_hub,
            metric_name=measure.label,
            metric_value=round(getattr(result.after, measure.attribute), 4),
        )
        for measure in result.after.measures
    ]
    data = ModelCardData(
        model_name=result.name,
        base_model=None if Path(name).exists() else name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=["sentence-transformers", "sparse-encoder", "sparse", "splade", "opensearch", "oskit"],
        eval_results=results,
    )
    return data.to_yaml()


def _evaluation(recipe: Recipe) -> str:
    if recipe.evaluation.collection is not None:
        return f"{recipe.evaluation.collection.name}, split {recipe.evaluation.split}"
    return "held out of the training data"


def _table(result: TrainingResult) -> list[str]:
    columns = result.measured
    rows = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for attribute, label, digits, *_ in result.measures:
        values = " | ".join(format(getattr(figures, attribute), digits) for figures in columns.values())
        rows.append(f"| {label} | {values} |")
    return rows


def _gain(stage: StageResult) -> str:
    gain = stage.gain
    return (
        f"In training {stage.after.quality_name} changed by {gain.difference:+.3f} ({gain.confidence:.0%} "
        f"interval {gain.low:+.3f} to {gain.high:+.3f} by paired bootstrap over queries): {stage.verdict}. "
        "The best checkpoint was chosen on these queries, so its figures are slightly too good."
    )


def _leakage(stage: StageResult) -> list[str]:
    found = stage.data.leakage or {"exact": 0, "near": 0}
    if not (leaked := found["exact"] + found["near"]):
        return []
    treated = "they were dropped" if stage.data.dropped_leaks else "**they were trained on**"
    return ["", f"{leaked:,} training queries were (nearly) evaluation queries; {treated}."]


def _made(stage: StageResult) -> list[str]:
    data = stage.data
    teachers = [
        f"{one['kind']} teacher {short_name(one['name'] or '')}".strip() + f" ({one['effective_weight']:.0%})"
        for one in (data.teachers or {}).get("teachers", [])
        if one["status"] == "used"
    ]
    sources = ", ".join(f"{short_name(source['name'])} ({source['examples']:,})" for source in data.sources)
    read = f"read {data.visits:,} times an epoch, each time with {data.negatives} other documents"
    told = [f"{data.examples:,} queries, {read}, of {sources}", *teachers]
    return [
        f"* {stage.name}: {stage.steps:,} steps; {stage.choice.line}; {'; '.join(told)}.",
        *(
            f"* {target.key}: {target.value:g} asked for, {target.reached:,.1f} reached."
            for target in stage.targets.values()
        ),
    ]
