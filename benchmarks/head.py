"""The streaming vocabulary head beside the usual one, as ratios: python -m benchmarks.head [--rounds N]."""

from __future__ import annotations

import ctypes
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oskit.encoder.loader.quiet import quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer

    from oskit.encoder.model import NeuralSparseEncoder

BATCH, LENGTH, RATE = 16, 128, 2e-5
WARM_UP = 1
"""Steps and rounds that do not count."""

MEBI = 1 << 20

STREAMING, USUAL = HEADS = (True, False)
NAMES = {STREAMING: "streaming", USUAL: "usual"}


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure for each head, and how many times the streaming one is better."""

    name: str
    unit: str
    figures: dict[bool, float]
    ratio: float


@dataclass(frozen=True)
class Setting:
    """What both heads work on."""

    model: str
    documents: int
    steps: int
    device: str

    def load(self, *, streaming: bool) -> NeuralSparseEncoder:
        """The encoder with one of the heads."""
        from oskit.encoder.model import NeuralSparseEncoder

        encoder = NeuralSparseEncoder.from_pretrained(self.model, device=self.device, max_seq_length=LENGTH)
        encoder.streaming = streaming
        return encoder

    def texts(self) -> list[str]:
        """Answers of the demo's collection."""
        return _texts()[: self.documents]

    def options(self) -> list[str]:
        """The same as options of this command."""
        values = asdict(self).items()
        return [text for name, value in values for text in (f"--{name}", str(value))]


@click.command()
@click.option("--model", help="Encoder with a masked-language head; without it that of the demo, BERT-tiny.")
@click.option("--documents", default=503, show_default=True, help="Texts to encode in a round.")
@click.option("--rounds", default=5, show_default=True, help="Each head runs once in a round, by turns.")
@click.option("--steps", default=4, show_default=True, help="Training steps whose memory and loss count.")
@click.option("--device", default="cpu", show_default=True, help="Where torch runs it.")
@click.option("--memory-of", type=click.Choice(["encode", "train"]), hidden=True)
@click.option("--streaming/--usual", hidden=True)
def main(rounds: int, memory_of: str | None, streaming: bool, **setting: Any) -> None:
    """Measure encoding and training with both heads.

    Time: the heads take turns, and a ratio is the median over the rounds, so that a slow moment of the
    machine hits both. Memory (on Linux): each head has a process of its own; its figure is the most resident
    memory, or on a GPU allocated memory, beyond that at the moment when all is loaded and one text was
    encoded.
    """
    from oskit.demo.data import demo_encoder

    setting["model"] = setting["model"] or str(demo_encoder())
    shared = Setting(**setting)
    if memory_of is not None:
        click.echo(json.dumps(_memory_here(shared, memory_of, streaming)))
        return
    with quiet_libraries():
        encoder, reference = shared.load(streaming=True), shared.load(streaming=False)
        rows = [
            _times("encode", _encoders(encoder, reference, shared.texts()), rounds),
            _times("training step", {STREAMING: _stepper(encoder), USUAL: _stepper(reference)}, rounds),
        ]
    for work in ("encode", "train"):
        measured = {head: _measured(shared, work, head) for head in HEADS}
        peaks = {head: measured[head]["peak"] for head in HEADS}
        rows.append(Row(f"peak memory, {work}", "MiB", peaks, peaks[USUAL] / peaks[STREAMING]))
    what = f"encode: {shared.documents} texts; training: {BATCH} triples of {LENGTH} tokens"
    click.echo(f"{what}; {rounds} rounds\n")
    _print(rows)
    _print_losses(measured[USUAL]["losses"], measured[STREAMING]["losses"])


def _texts() -> list[str]:
    from oskit.demo.data import demo_collection

    return [document.passage for document in demo_collection().documents()]


def _triples(count: int) -> Dataset:
    """Texts of at least :data:`LENGTH` tokens: several answers of the collection, one after another."""
    from datasets import Dataset

    texts, chosen = _texts(), random.Random(0)
    return Dataset.from_dict(
        {
            name: [" ".join(chosen.sample(texts, 8)) for _ in range(count)]
            for name in ("query", "positive", "negative")
        }
    )


def _trainer(encoder: SparseEncoder, steps: int) -> SparseEncoderTrainer:
    """sentence-transformers' own trainer and loss on batches of full length."""
    from sentence_transformers import SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
    from transformers.trainer_callback import PrinterCallback

    arguments = SparseEncoderTrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=RATE,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=encoder.device.type == "cpu",
        dataloader_pin_memory=False,
        seed=0,
    )
    loss = SpladeLoss(
        encoder,
        SparseMultipleNegativesRankingLoss(encoder),
        document_regularizer_weight=1e-4,
        query_regularizer_weight=1e-4,
    )
    data = _triples(BATCH * steps)
    trainer = SparseEncoderTrainer(encoder, arguments, train_dataset=data, loss=loss)
    trainer.remove_callback(PrinterCallback)
    return trainer


Work = dict[bool, Callable[[], float]]
"""What each head does in one round; it returns the seconds that count."""


def _encoders(encoder: SparseEncoder, reference: SparseEncoder, texts: list[str]) -> Work:
    return {
        STREAMING: lambda: _seconds(lambda: encoder.encode(texts)),
        USUAL: lambda: _seconds(lambda: reference.encode(texts)),
    }


def _seconds(work: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _stepper(encoder: SparseEncoder) -> Callable[[], float]:
    """One training step as the trainer takes it: forward, backward, clipping, optimizer."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        start = seconds = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            _synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _synchronize()
            self.seconds = time.perf_counter() - self.start

    trainer, clock = _trainer(encoder, steps=1), Clock()
    trainer.add_callback(clock)

    def step() -> float:
        trainer.train()
        return clock.seconds

    return step


def _times(name: str, work: Work, rounds: int) -> Row:
    for _ in range(WARM_UP):
        for head in HEADS:
            work[head]()
    taken = [{head: work[head]() for head in HEADS} for _ in range(rounds)]
    figures = {head: 1000 * statistics.median(times[head] for times in taken) for head in HEADS}
    return Row(name, "ms", figures, statistics.median(times[USUAL] / times[STREAMING] for times in taken))


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measured(setting: Setting, work: str, streaming: bool) -> dict[str, Any]:
    """What a process of its own measures; memory that was freed before cannot hide in it."""
    command = [sys.executable, "-m", "benchmarks.head", "--memory-of", work, f"--{NAMES[streaming]}"]
    command += setting.options()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1])
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _memory_here(setting: Setting, work: str, streaming: bool) -> dict[str, Any]:
    """Peak memory of this process in MiB, beyond what it took when all was loaded; the losses of training."""
    with quiet_libraries():
        encoder, texts, device = setting.load(streaming=streaming), setting.texts(), setting.device
        trainer = _trainer(encoder, setting.steps) if work == "train" else None
        encoder.encode(texts[:1])
        before = _reset_peak(device)
        if trainer is None:
            encoder.encode(texts)
        else:
            trainer.train()
    history = [] if trainer is None else trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return {"peak": _peak(device) - before, "losses": losses}


def _reset_peak(device: str) -> float:
    """Forget the peak so far, in which loading would hide what comes; returns what is taken now, in MiB."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        gc.collect()
        # What was freed goes back to the system: else it is used again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _peak(device)


def _peak(device: str) -> float:
    """The most memory that was taken since :func:`_reset_peak`, in MiB; of the process or of the GPU."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / MEBI
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _print(rows: Sequence[Row]) -> None:
    click.echo(f"{'':<22}{'usual':>14}{'streaming':>14}{'ratio':>8}")
    for row in rows:
        figures = "".join(f"{row.figures[head]:>10.0f} {row.unit:<3}" for head in (USUAL, STREAMING))
        click.echo(f"{row.name:<22}{figures}{row.ratio:>8.2f}")


def _print_losses(usual: Sequence[float], streaming: Sequence[float]) -> None:
    pairs = list(zip(usual, streaming, strict=True))
    largest = max(abs(one - other) / abs(one) for one, other in pairs)
    click.echo(f"\nloss of {len(pairs)} steps from one seed; largest relative difference {largest:.1e}")
    for one, other in pairs:
        click.echo(f"{'':<22}{one:>14.6f}{other:>14.6f}")


if __name__ == "__main__":
    main()
