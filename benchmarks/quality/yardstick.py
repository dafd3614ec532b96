"""Does a hold-out order checkpoints as judgements do? python -m benchmarks.quality.yardstick --data DIR.

Of each data set two trainings keep five checkpoints each: one as ``quick`` trains, one that goes too far. All
are measured on queries held out of the training data, by their own answers alone and by pooled judgements,
and on a collection that people judged. Kendall's tau says how well two orders agree: 1 the same, 0 by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.models import bert_tiny, minilm
from benchmarks.quality.data import FAQ_ENGLISH, MEDQUAD, Workspace, staged

STEPS, EVERY = 100, 20

RUNS = {
    "as quick": {"learning_rate": 2e-4, "documents": 0.01, "queries": 0.02},
    "too far": {"learning_rate": 1e-3, "documents": 0.1, "queries": 0.1},
}

YARDSTICKS = {"own answers": "ndcg@10", "pooled": "pooled_ndcg@10"}

_RESAMPLES = 500


@dataclass(frozen=True)
class DataSet:
    """What is trained on, and what people judged of the same subject.

    Attributes:
        judged: Name of the collection.
        sources: What is trained on, as a recipe has it.
        hold_out: Share of its queries.
    """

    judged: str
    sources: Callable[[Workspace], Any]
    hold_out: float = 0.1


def _documents_of(name: str, spans: int) -> Callable[[Workspace], Any]:
    def sources(work: Workspace) -> Any:
        path = str(work.collection(name).corpus)
        return [{"path": path, "kind": "documents", "queries": {"spans": spans}}]

    return sources


SETS = {
    "medquad": DataSet(MEDQUAD, lambda work: str(work.pairs_file())),
    "dbpedia": DataSet("dbpedia5k", _documents_of("dbpedia5k", 1)),
    "xquad": DataSet("xquad-en", _documents_of("xquad-en", 3), hold_out=0.2),
    "faq": DataSet(FAQ_ENGLISH, lambda work: str(work.faq_file(FAQ_ENGLISH)), hold_out=0.3),
}


@dataclass(frozen=True)
class Checkpoint:
    """One encoder, measured.

    Attributes:
        name: Its run and step.
        held: nDCG@10 of the held-out queries, by each yardstick.
        judged: nDCG@10 of each judged query.
        flops: On the judged collection.
    """

    name: str
    held: dict[str, float]
    judged: list[float]
    flops: float


def checkpoints(name: str, work: Workspace, held: dict[str, int]) -> list[Checkpoint]:
    """Train and measure, or read what was measured before."""
    path = work.work / "yardstick" / f"{name}.json"
    if not path.is_file():
        found = [one for run in RUNS for one in _of_run(name, run, work, held)]
        with staged(path) as staging:
            staging.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")
    return [Checkpoint(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _of_run(name: str, run: str, work: Workspace, held: dict[str, int]) -> list[Checkpoint]:
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.training.loop.run import train
    from oskit.training.report.yardstick import Yardstick

    folder = work.work / "yardstick" / f"{name}-{run.replace(' ', '-')}"
    train(_recipe(SETS[name], RUNS[run], work, held), folder, resume=folder.exists())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    yardstick = Yardstick(work.collection(SETS[name].judged))
    found = []
    for row in rows:
        if "eval_ndcg@10" in row:
            step = int(row["step"])
            place = folder / "checkpoints" / f"checkpoint-{step}"
            encoder = NeuralSparseEncoder.from_pretrained(place, fallback=False)
            figures = yardstick.measure(encoder)
            values = {label: row[f"eval_{logged}"] for label, logged in YARDSTICKS.items()}
            judged = list(figures.per_query.values())
            found.append(Checkpoint(f"{run}, step {step}", values, judged, figures.flops))
    return found


def _recipe(data: DataSet, run: dict[str, float], work: Workspace, held: dict[str, int]) -> dict[str, Any]:
    """As ``quick``, but for what the run says and shorter."""
    from oskit.training.recipe.file import load_recipe

    changes = [
        f"encoder.name={bert_tiny()}",
        f"teachers.dense.name={minilm()}",
        f"data.train={json.dumps(data.sources(work))}",
        f"data.hold_out={data.hold_out}",
        f"schedule.learning_rate={run['learning_rate']}",
        f"sparsity.documents.weight={run['documents']}",
        f"sparsity.queries.weight={run['queries']}",
        f"schedule.steps={STEPS}",
        f"schedule.evaluate_every={EVERY}",
        f"schedule.keep_checkpoints={STEPS}",
        *(f"evaluation.{key}={value}" for key, value in held.items() if value),
    ]
    return load_recipe("quick", changes).model_dump(mode="json")


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two orders."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)


def row(name: str, label: str, found: Sequence[Checkpoint]) -> list[str]:
    """How well a yardstick's order agrees with the judged one, and what it would choose."""
    held = [one.held[label] for one in found]
    judged = np.array([one.judged for one in found])
    means = judged.mean(axis=1)
    rng = np.random.default_rng(0)
    samples = rng.integers(judged.shape[1], size=(_RESAMPLES, judged.shape[1]))
    taus = [agreement(held, judged[:, sample].mean(axis=1)) for sample in samples]
    low, high = np.nanpercentile(taus, [5, 95])
    chosen = int(np.argmax(held))
    return [
        name,
        label,
        f"{agreement(held, means.tolist()):+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{found[chosen].name}: {means[chosen]:.3f}",
        f"{found[int(means.argmax())].name}: {means.max():.3f}",
    ]


def halves(found: Sequence[Checkpoint]) -> float:
    """How well two halves of the judged queries agree, on average: more cannot be asked of a yardstick."""
    judged = np.array([one.judged for one in found])
    rng = np.random.default_rng(0)
    taus = []
    for _ in range(_RESAMPLES):
        order = rng.permutation(judged.shape[1])
        middle = len(order) // 2
        ones, others = (judged[:, part].mean(axis=1) for part in (order[:middle], order[middle:]))
        taus.append(agreement(ones, others))
    return float(np.nanmean(taus))


COLUMNS = ("data", "yardstick", "tau", "90 % interval", "it chooses", "judged best")


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", default="quality-output", show_default=True, type=click.Path(path_type=Path))
@click.option("--sets", default=",".join(SETS), show_default=True, help="Which data sets.")
@click.option("--corpus", default=0, help="Documents of a judged collection; 0: all.", show_default=True)
@click.option("--held-queries", default=300, help="Of the held-out ones; 0: all.", show_default=True)
@click.option("--held-corpus", default=3000, help="Among so many documents; 0: all.", show_default=True)
def main(data: Path, work: Path, sets: str, corpus: int, held_queries: int, held_corpus: int) -> None:
    """Train ten checkpoints of each data set, and print how well yardsticks agree with judgements."""
    workspace = Workspace(data.resolve(), work.resolve(), corpus=corpus)
    held = {"queries": held_queries, "corpus": held_corpus}
    click.echo(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for name in sets.split(","):
        found = checkpoints(name.strip(), workspace, held)
        for label in YARDSTICKS:
            click.echo(f"| {' | '.join(row(name, label, found))} |")
        click.echo(f"| {name} | half of the judged queries | {halves(found):+.2f} | | | |")


if __name__ == "__main__":
    main()
