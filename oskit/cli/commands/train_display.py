"""What a person sees of a training run: progress while it goes on, and the closing table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from oskit.cli.output import ProgressHandle, duration
from oskit.training.loop.events import Listener

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.evaluation.offline.significance import Significance
    from oskit.training.report.figures import Figures
    from oskit.training.report.result import StageResult, TrainingResult


class Display(Listener):
    """Progress on stderr: a bar on a terminal, a line for each measurement everywhere.

    Args:
        out: Where it goes.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._stage = ""
        self._bar: ProgressHandle = ProgressHandle()
        self._open: AbstractContextManager[ProgressHandle] | None = None
        self._loss = ""
        self._figures = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @contextmanager
    def python_warnings(self) -> Iterator[None]:
        """Tell oskit's own warnings in a line each; the box about a random projection stays a box."""
        with warnings.catch_warnings():
            others = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
                if not category.__module__.startswith("oskit."):
                    others(message, category, *rest, **more)
                elif "\n" in str(message):
                    click.secho(f"{message}\n", err=True, fg="yellow", bold=True)
                else:
                    self.warning(str(message))

            warnings.showwarning = show
            yield

    def stage_started(self, name: str, number: int, stages: int) -> None:
        self._stage = name
        if stages > 1:
            self._note(f"stage {number} of {stages}")

    def doing(self, what: str) -> None:
        self._note(what)
        self._start(what, None, "")

    def advance(self, what: str, count: int) -> None:
        self._bar.update(f"{self._stage}: {what}")
        self._bar.advance(count)

    def training_started(self, steps: int, done: int) -> None:
        self._note(f"training, {steps:,} steps" + (f", {done:,} of them done" if done else ""))
        self._loss = self._figures = ""
        self._start("training", steps, "steps")
        self._bar.update(completed=done)

    def step(self, step: int, steps: int, logs: Mapping[str, float]) -> None:
        if "loss" in logs:
            self._loss = f" loss {logs['loss']:.3f}"
        self._bar.update(f"{self._stage}:{self._loss}{self._figures}", completed=step, total=steps)

    def evaluated(self, step: int, figures: Figures) -> None:
        self._figures = f" nDCG@10 {figures.quality:.3f} dims {figures.document_active:.0f}"
        own = "" if figures.pooled is None else f" pooled, {figures.ndcg:.4f} by own answers"
        self._note(
            f"step {step:,}:{self._loss} nDCG@10 {figures.quality:.4f}{own}, active dimensions "
            f"{figures.query_active:.0f} of a query, {figures.document_active:.0f} of a document"
        )

    def warning(self, message: str) -> None:
        self._out.warn(f"{self._stage}: {message}" if self._stage else message)

    def stage_finished(self, result: StageResult) -> None:
        self._close()
        after = result.after
        self._note(f"done in {duration(result.seconds)}, {after.quality_name} {after.quality:.4f}")

    def _note(self, text: str) -> None:
        self._out.note(f"{self._stage}: {text}" if self._stage else text)

    def _start(self, what: str, total: int | None, unit: str) -> None:
        self._close()
        self._open = self._out.progress(f"{self._stage}: {what}", total, unit)
        self._bar = self._open.__enter__()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open, self._bar = None, ProgressHandle()


def print_result(console: Console, result: TrainingResult) -> None:
    """Before and after, what became of data and teachers, where everything is, and what comes next."""

    def tell(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    console.print(_table(result))
    for stage in result.stages:
        prefix = f"{stage.name}: " if len(result.stages) > 1 else ""
        for line in _stage_lines(stage):
            tell(f"{prefix}{line}")
    if result.gain is not None:
        tell(f"{result.stages[-1].name} beside {result.stages[-2].name}: {_significance(result.gain)}")
    tell(f"\nEncoder   {result.name}, in {result.encoder}")
    tell(
        f"Run       {result.folder}: recipe.yaml, report.json, README.md (model card), curves.png, curves.csv"
    )
    tell(f"Next      oskit export {result.encoder} -o {result.folder}/archives")


def _table(result: TrainingResult) -> Any:
    from oskit.evaluation.reports.terminal import plain_table

    rows = [
        [name, *(format(getattr(figures, measure.attribute), measure.digits) for measure in result.measures)]
        for name, figures in result.measured.items()
    ]
    return plain_table(["", *(measure.label for measure in result.measures)], rows)


def _stage_lines(stage: StageResult) -> list[str]:
    from oskit.training.teachers.report import TeacherReport

    data, after = stage.data, stage.after
    measured = f"{after.queries:,} {'held-out ' if data.held_out else ''}queries"
    lines = [
        f"{after.quality_name} {_significance(stage.gain)}; {measured}, {after.documents:,} documents",
        stage.verdict,
        *stage.limits,
        f"{data.examples:,} examples, {stage.steps:,} steps in {duration(stage.seconds)}",
        stage.choice.line,
    ]
    lines += stage.lengths.lines
    lines.append(_negatives(stage))
    teachers = (data.teachers or {}).get("teachers", [])
    lines += [str(TeacherReport(**teacher)) for teacher in teachers if teacher["status"] != "unused"]
    if data.leakage is not None:
        lines.append(_leakage(data.leakage, data.dropped_leaks))
    return lines


def _negatives(stage: StageResult) -> str:
    mining = stage.data.mining
    if mining is None:
        own = f"{stage.data.negatives} of each example's own, " if stage.data.negatives else ""
        return f"negatives: {own}none mined"
    dropped = f", {mining['false_negatives']:,} likely answers left out" if mining["filtered"] else ""
    return f"negatives: {stage.data.negatives} an example, {mining['mined']:,} mined{dropped}"


def _leakage(leakage: Mapping[str, Any], dropped: int) -> str:
    leaked = leakage["exact"] + leakage["near"]
    if not leaked:
        return f"leakage: no training query is an evaluation query of {leakage['collection']}"
    what = f"{dropped:,} dropped" if dropped else "trained on nevertheless"
    return f"leakage: {leaked:,} training queries are evaluation queries of {leakage['collection']}; {what}"


def _significance(gain: Significance) -> str:
    p = f"p = {gain.p_value:.3f}" if gain.p_value >= 0.001 else "p < 0.001"
    verdict = "" if gain.is_significant else ", not significant"
    return (
        f"{gain.difference:+.4f} ({gain.confidence:.0%} interval {gain.low:+.4f} to {gain.high:+.4f}, {p}"
        f"{verdict}; {gain.wins:,} queries better, {gain.losses:,} worse)"
    )
