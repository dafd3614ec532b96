"""Training and encoding on a GPU, in one run of under eight minutes: python -m benchmarks.gpu --out FOLDER.

* ``training``: a step of oskit's trainer beside one of sentence-transformers', BERT-base, 256 tokens, bf16:
  time, memory, losses, and where the time goes;
* ``encoding``: documents a second and the share of the GPU's peak, beside sentence-transformers, and what
  bf16 changes;
* ``stage``: in the time that is left, stage 1 of a real base on all pairs of ``--data``, measured on the
  whole medquad-liveqa beside BM25 and the dense teacher; needs ``--base`` and ``--teacher``.

The first two make up an encoder of BERT-base's size with random weights, whose bias lets about 200 columns of
a text be positive, its tokenizer and its texts, so nothing is fetched. ``--tiny`` tries all of it on a CPU.
"""

from __future__ import annotations

import gc
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from oskit.training.loop.events import Listener

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sentence_transformers import SparseEncoder

    from oskit.encoder.model import NeuralSparseEncoder

POSITIVE = 200
LENGTHS = {"short": 24, "long": 256}

KINDS = (
    ("attention", r"fmha|flash|attention|sdpa|softmax"),
    ("matrix products", r"gemm|gemv|cutlass|nvjet|xmma|sm90|mkldnn|addmm|aten::mm"),
    ("maxima", r"reduce"),
    ("layer norm", r"layer_?norm"),
    ("optimizer", r"multi_tensor|foreach|adam"),
    ("copies to and from the host", r"memcpy (dtoh|htod)"),
    ("gather, scatter, find", r"index|gather|scatter|nonzero|cub|thrust|scan|select"),
    ("elementwise and casts", r"elementwise|vectorized|copy|gelu|memset|memcpy|fill"),
)

PARTS = ("training", "encoding", "stage")
RESERVE = 75
"""Seconds that the stage needs beside its steps: labels, BM25, and measuring three times."""

Report = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    hidden: int
    layers: int
    vocabulary: int
    batch: int
    steps: int
    texts: dict[str, int]
    stage_steps: int


WHOLE = Size(768, 12, 30522, batch=32, steps=60, texts={"short": 60_000, "long": 8_000}, stage_steps=3000)
TINY = Size(64, 2, 700, batch=4, steps=10, texts={"short": 48, "long": 12}, stage_steps=3)


def say(text: str = "") -> None:
    """At once, so that a run that is cut off has told what it knew."""
    print(text, flush=True)


class Clock:
    """How long the run may go on."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.perf_counter(), seconds

    @property
    def gone(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - self.gone

    def allows(self, what: str, seconds: float) -> bool:
        """Whether there is time for it; says so if not."""
        fits = self.left > seconds
        if not fits:
            self.say(f"left out, no time: {what}")
        return fits

    def say(self, text: str) -> None:
        """A line with the time."""
        say(f"[{self.gone:5.0f} s] {text}")


Folder = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for gpu.json.")
@click.option("--tiny", is_flag=True, help="Small sizes, to try the script out.")
@click.option("--seconds", default=450.0, show_default=True, help="What does not fit is left out, and told.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts of it; without it all.")
@click.option("--base", type=Folder, help="Of `stage`: a masked language model, such as BERT-base.")
@click.option("--teacher", type=Folder, help="Of `stage`: a dense model.")
@click.option("--data", type=Folder, help="Of `stage`: as for benchmarks.quality.")
def main(
    out: Path,
    tiny: bool,
    seconds: float,
    only: tuple[str, ...],
    base: Path | None,
    teacher: Path | None,
    data: Path | None,
) -> None:
    """Measure training and encoding on a GPU beside sentence-transformers, and what a stage there reaches."""
    clock = Clock(seconds)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    out.mkdir(parents=True, exist_ok=True)
    report: Report = {"device": _device(device), "tiny": tiny}
    clock.say(report["device"])
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), TINY if tiny else WHOLE, device, clock)
        clock.say(f"{bench.columns:.0f} positive columns a text")
        parts: dict[str, Callable[[], Report]] = {
            "training": bench.training,
            "encoding": bench.encoding,
            "stage": lambda: bench.stage(base, teacher, data),
        }
        for name in only or PARTS:
            try:
                report[name] = parts[name]()
            except Exception as error:  # what follows may work; the run costs too much to lose it
                report[name] = f"failed: {error!r}"
                clock.say(f"{name} failed: {error!r}")
            (out / "gpu.json").write_text(json.dumps(report, indent=1))
    report["seconds"] = clock.gone
    (out / "gpu.json").write_text(json.dumps(report, indent=1))
    clock.say(f"done; all of it in {out / 'gpu.json'}")


def _device(device: str) -> str:
    import sentence_transformers
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {versions}, sentence-transformers {sentence_transformers.__version__}"


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


@contextmanager
def _peak_memory() -> Iterator[Report]:
    """The most memory of the GPU that the block took beyond what was taken before."""
    import torch

    found: Report = {}
    if not torch.cuda.is_available():
        yield found
        return
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    yield found
    found["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / (1 << 20)


class Steps(Listener):
    """When each step ended; a profile of three steps in the middle.

    Args:
        steps: How many there will be.
        profiled: Whether to take the profile.
    """

    def __init__(self, steps: int, *, profiled: bool = False) -> None:
        self.ends: list[float] = []
        self.kernels: dict[str, float] = {}
        self._from = steps * 2 // 3 if profiled else -1
        self._profiler: Any = None

    def step(self, step: int, steps: int, logs: Mapping[str, float]) -> None:
        """A step ended."""
        _synchronize()
        self.ends.append(time.perf_counter())
        if step == self._from:
            self._profiler = _profiler()
            self._profiler.__enter__()
        elif step == self._from + 3 and self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            self.kernels = _kernels(self._profiler)

    @property
    def milliseconds(self) -> float:
        """Of a step, in the median; the first third warms up, and what is profiled is slow."""
        taken = np.diff(self.ends[: self._from if self._from > 0 else None])
        return 1000 * statistics.median(taken[len(taken) // 3 :].tolist())


def _profiler() -> Any:
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    return profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])


def _kernels(profiler: Any) -> dict[str, float]:
    """Which share of the time each kind of kernel takes."""
    import torch

    own = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    kinds: dict[str, float] = {}
    events = profiler.key_averages()
    total = sum(getattr(event, own) for event in events) or 1.0
    for event in events:
        named = (label for label, words in KINDS if re.search(words, event.key, re.IGNORECASE))
        label = next(named, "other")
        kinds[label] = kinds.get(label, 0.0) + getattr(event, own) / total
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


class Bench:
    """One encoder, as sentence-transformers and as oskit train and run it.

    Args:
        scratch: Folder for models and runs.
        size: Of everything.
        device: Where torch puts it.
        clock: How long it may take.
    """

    def __init__(self, scratch: Path, size: Size, device: str, clock: Clock) -> None:
        self.scratch, self.size, self.device, self.clock = scratch, size, device, clock
        self.folder = scratch / "made-up"
        words = made_up_model(self.folder, size)
        draw = random.Random(1)
        # Zipf's law: few words are most of a text.
        weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
        self.texts = {
            kind: [
                " ".join(draw.choices(words, cum_weights=weights, k=LENGTHS[kind] - 2)) for _ in range(count)
            ]
            for kind, count in size.texts.items()
        }
        self.columns = self._shift([*self.texts["short"][:32], *self.texts["long"][:32]])

    def _shift(self, sample: Sequence[str]) -> float:
        """Move the bias so that some 200 columns of a text are positive, none of special tokens; how many."""
        import torch

        encoder = _load(self.folder, self.device, ours=True)
        output = encoder.anatomy.output
        with torch.no_grad():
            output.bias.fill_(5)  # all are positive: their order shows
            weights = encoder.encode(list(sample), convert_to_sparse_tensor=False)
            maxima = weights.expm1().topk(min(POSITIVE, self.size.vocabulary // 8), dim=1).values[:, -1] - 5
            output.bias.fill_(-float(maxima.mean()))
            output.bias[:5] = -1e4
        encoder.anatomy.model.save_pretrained(self.folder)
        return float(encoder.document_matrix(list(sample)).nnz / len(sample))

    # Training ---------------------------------------------------------------------------------------------

    def training(self) -> Report:
        """A step of both trainers on the same batch, with the same losses."""
        found: Report = {}
        for name, train in (("sentence-transformers", self._theirs), ("oskit", self._ours)):
            with _peak_memory() as memory:
                steps, losses, more = train()
            found[name] = {"ms a step": steps.milliseconds, **memory, "losses": losses, **more}
            self.clock.say(
                f"{name:<24}{steps.milliseconds:>8.1f} ms a step{memory.get('peak MiB', 0):>8.0f} MiB"
                f"   losses {', '.join(f'{loss:.4f}' for loss in losses)}"
            )
        one, other = found["sentence-transformers"], found["oskit"]
        pairs = zip(one["losses"], other["losses"], strict=True)
        found["largest relative difference of a loss"] = max(abs(a - b) / abs(a) for a, b in pairs)
        found["times as fast"] = one["ms a step"] / other["ms a step"]
        self.clock.say(
            f"{found['times as fast']:.2f} times as fast; losses differ by "
            f"{found['largest relative difference of a loss']:.1e} at most"
        )
        kernels = ", ".join(f"{kind} {share:.0%}" for kind, share in other["kernels"].items())
        self.clock.say(f"oskit's step: {kernels}")
        return found

    def _batch(self) -> dict[str, list[str]]:
        """The one batch that every step sees: in any order its loss is the same."""
        count, texts = self.size.batch, self.texts
        long = [texts["long"][number % len(texts["long"])] for number in range(2 * count)]
        return {"query": texts["short"][:count], "positive": long[:count], "negative": long[count:]}

    @property
    def _precision(self) -> str:
        return "bf16" if self.device == "cuda" else "float32"

    def _ours(self) -> tuple[Steps, list[float], Report]:
        from oskit.data.collection import Collection
        from oskit.data.documents import Document
        from oskit.training.loop.run import train

        batch, steps = self._batch(), self.size.steps
        data, aside = self.scratch / "triples.jsonl", self.scratch / "aside"
        rows = (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        Collection({"q": "aside"}, {"q": {"d": 1}}, (Document("d", "aside"),)).write(aside)
        recipe = {
            "name": "gpu",
            "encoder": {"name": str(self.folder), "dropout": 0.0},
            "data": {"train": [str(data)], "sampling": {"negatives": 1}},
            "loss": [{"kind": "info_nce", "temperature": 1.0, "candidates": "batch"}],
            "sparsity": {
                "documents": {"kind": "flops", "weight": 1e-4},
                "queries": {"kind": "flops", "weight": 1e-4},
            },
            "schedule": {
                "steps": steps,
                "batch_size": self.size.batch,
                "learning_rate": 2e-5,
                "precision": self._precision,
                "evaluate_every": steps,
                "keep_checkpoints": 1,
            },
            "evaluation": {"collection": str(aside)},
        }
        told = Steps(steps, profiled=True)
        folder = self.scratch / "ours"
        train(recipe, folder, listener=told)
        logged = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return told, [entry["loss"] for entry in logged if "loss" in entry], {"kernels": told.kernels}

    def _theirs(self) -> tuple[Steps, list[float], Report]:
        """sentence-transformers' own trainer, loss and modules."""
        from datasets import Dataset
        from sentence_transformers import SparseEncoderTrainer, SparseEncoderTrainingArguments
        from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss
        from transformers import TrainerCallback
        from transformers.trainer_callback import PrinterCallback

        encoder, steps = _load(self.folder, self.device, ours=False), self.size.steps
        for module in encoder.modules():
            if hasattr(module, "p") and type(module).__name__ == "Dropout":
                module.p = 0.0
        told = Steps(steps)

        class Ends(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                told.step(state.global_step, steps, {})

        arguments = SparseEncoderTrainingArguments(
            output_dir=str(self.scratch / "theirs"),
            per_device_train_batch_size=self.size.batch,
            max_steps=steps,
            learning_rate=2e-5,
            warmup_steps=-(-steps // 10),
            weight_decay=0.01,
            bf16=self._precision == "bf16",
            logging_steps=max(1, steps // 5),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=self.device == "cpu",
            dataloader_pin_memory=self.device == "cuda",
        )
        loss = SpladeLoss(
            encoder,
            SparseMultipleNegativesRankingLoss(encoder, scale=1.0),
            document_regularizer_weight=1e-4,
            query_regularizer_weight=1e-4,
        )
        data = Dataset.from_dict(self._batch())
        trainer = SparseEncoderTrainer(encoder, arguments, train_dataset=data, loss=loss, callbacks=[Ends()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return told, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], {}

    # Encoding ---------------------------------------------------------------------------------------------

    def encoding(self) -> Report:
        """Documents a second of each contender, its share of the peak, and what bf16 changes."""
        ours, theirs = (_load(self.folder, self.device, ours=kind) for kind in (True, False))
        peak = self._peak()
        found: Report = {"bf16 matrix products, TFLOP/s": peak}
        self.clock.say(f"bf16 matrix products: {peak:.0f} TFLOP/s")
        for kind, length in LENGTHS.items():
            for name in (
                "sentence-transformers fp32",
                "sentence-transformers bf16",
                "oskit fp32",
                "oskit bf16",
            ):
                if not self.clock.allows(name, 8):
                    continue
                with _peak_memory() as memory, _contender(name, ours, theirs) as run:
                    rate = self._rate(run, kind)
                share = rate * self._flops(length) / peak / 1e12
                found.setdefault(kind, {})[name] = {"docs/s": rate, "share of bf16 peak": share, **memory}
                self.clock.say(
                    f"{kind:<6}{name:<28}{rate:>10.0f} docs/s{share:>8.1%} of peak"
                    f"{memory.get('peak MiB', 0):>8.0f} MiB"
                )
        few = min(400, len(self.texts["short"]))
        texts = [*self.texts["short"][:few], *self.texts["long"][: few // 2]]
        with _contender("oskit fp32", ours, theirs) as run:
            expected = run(texts)
        with _contender("oskit bf16", ours, theirs) as run:
            found["oskit bf16 beside fp32"] = compare(run(texts), expected)
        told = ", ".join(f"{name} {value:.6g}" for name, value in found["oskit bf16 beside fp32"].items())
        self.clock.say(f"oskit bf16 beside fp32: {told}")
        return found

    def _peak(self) -> float:
        """TFLOP/s of a large product of matrices in bf16."""
        import torch

        side = 8192 if self.device == "cuda" else 512
        one, other = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        taken = [_seconds(lambda: one @ other) for _ in range(7)]
        return 2 * side**3 / statistics.median(taken[2:]) / 1e12

    def _flops(self, length: int) -> float:
        """Floating-point operations for a text of ``length`` tokens: the matrix products alone."""
        h = self.size.hidden
        layer = 2 * (4 * h * h + 2 * h * 4 * h) + 4 * length * h
        return length * (self.size.layers * layer + 2 * h * h + 2 * h * self.size.vocabulary)

    def _rate(self, run: Callable[[list[str]], Any], kind: str) -> float:
        """Documents a second."""
        texts = self.texts[kind]
        few = texts[: 512 if kind == "short" else 128]
        run(few)
        guess = len(few) / _seconds(lambda: run(few))
        many = texts[: max(len(few), int(1.5 * guess))]
        run(many[: len(many) // 2])
        return len(many) / _seconds(lambda: run(many))

    # Stage 1 ----------------------------------------------------------------------------------------------

    def stage(self, base: Path | None, teacher: Path | None, data: Path | None) -> Report:
        """Stage 1 on all pairs in the time that is left, measured on the whole collection."""
        from benchmarks.quality.data import MEDQUAD, Workspace
        from benchmarks.quality.measure import measure_bm25, measure_dense
        from oskit.training.loop.run import train

        if base is None or teacher is None or data is None:
            self.clock.say("stage is left out: it needs --base, --teacher and --data")
            return {"left out": "--base, --teacher and --data are not all given"}
        if not self.clock.allows("stage", RESERVE + 30):
            return {"left out": "no time"}
        tiny = self.size is TINY
        work = Workspace(data, self.scratch / "stage", corpus=60 if tiny else 0, pairs=60 if tiny else 0)
        collection = work.collection(MEDQUAD)
        judged = collection.write(self.scratch / "judged")
        found: Report = {
            "BM25": measure_bm25(collection).ndcg,
            "dense teacher": measure_dense(str(teacher), collection).ndcg,
        }
        for name, value in found.items():
            self.clock.say(f"{name:<24} nDCG@10 {value:.3f}")
        recipe: Report = {
            "name": "stage",
            "encoder": {"name": str(base), "head": "lexical", "dropout": 0.0},
            "data": {"train": [str(work.pairs_file())]},
            "teachers": [{"kind": "dense", "name": str(teacher), "required": True, "max_length": 256}],
            "labels": {"scale": 20.0, "normalize": "none"},
            "loss": [
                {"kind": "kl", "candidates": "batch", "temperature": 1.0},
                {"kind": "info_nce", "weight": 0.3},
            ],
            "sparsity": {
                "documents": {"kind": "idf_flops", "weight": 0.01, "target": 150},
                "queries": {"kind": "idf_flops", "weight": 0.02},
            },
            "schedule": {
                "batch_size": 4 if tiny else 64,
                "max_length": 256,
                "learning_rate": 5e-5,
                "keep_checkpoints": 1,
            },
            "evaluation": {"collection": str(judged)},
        }
        trial = Steps(6)
        self._staged(train, recipe, 6, trial)
        steps = max(3, int((self.clock.left - RESERVE) / (trial.milliseconds / 1000)))
        steps = min(steps, self.size.stage_steps)
        result = self._staged(train, recipe, steps, Steps(steps))
        found |= {"steps": steps, "before": result.before.to_dict(), "after": result.after.to_dict()}
        self.clock.say(f"before                   {result.before}")
        self.clock.say(f"after {steps:,} steps: {result.after}")
        return found

    def _staged(self, train: Any, recipe: Report, steps: int, told: Steps) -> Any:
        schedule = {**recipe["schedule"], "steps": steps, "evaluate_every": steps}
        return train({**recipe, "schedule": schedule}, self.scratch / f"stage-{steps}", listener=told)


@contextmanager
def _contender(
    name: str, ours: NeuralSparseEncoder, theirs: SparseEncoder
) -> Iterator[Callable[[list[str]], Any]]:
    """A way to encode, by name."""
    import torch

    who, precision = name.split()
    if who == "oskit":
        ours.precision = "bf16" if precision == "bf16" else "fp32"
        yield ours.document_matrix
        ours.precision = "fp32"
        return
    if precision == "bf16":
        theirs.to(torch.bfloat16)
    yield lambda texts: theirs.encode(texts, batch_size=64, save_to_cpu=True, show_progress_bar=False)
    theirs.to(torch.float32)  # the weights are random: rounded ones do as well


def compare(found: csr_matrix, expected: csr_matrix) -> Report:
    """How far weights are from those expected, and whether the ten best of each row's neighbours stay."""
    from oskit.archive.likeness import cosines, overlap, tops

    near = cosines(found, expected)
    queries = min(64, found.shape[0] // 4)
    one, other = ((side[:queries] @ side[queries:].T).toarray() for side in (found, expected))
    return {
        "cosine, mean": float(near.mean()),
        "cosine, least": float(near.min()),
        "overlap of the ten best": overlap(tops(one), tops(other)),
    }


def made_up_model(folder: Path, size: Size) -> list[str]:
    """Write a BERT with a masked-language head and random weights; returns the words of its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
    words = [one + two + three for one in syllables for two in syllables for three in syllables[:5]]
    random.Random(0).shuffle(words)
    words = words[: size.vocabulary - len(specials)]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate([*specials, *words])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=max(size.hidden // 64, 1),
        intermediate_size=4 * size.hidden,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():  # as large as those of a trained one, which tell tokens apart
        model.get_output_embeddings().weight.mul_(3)
    model.save_pretrained(folder)
    return words


def _load(folder: Path, device: str, *, ours: bool) -> Any:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    from oskit.encoder.model import NeuralSparseEncoder

    modules = [Transformer(str(folder), transformer_task="fill-mask"), SpladePooling("max")]
    kind = NeuralSparseEncoder if ours else SparseEncoder
    return kind(modules=modules, device=device).eval()


if __name__ == "__main__":
    main()
