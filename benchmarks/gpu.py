"""Encoding on a GPU, in one run of some three minutes: python -m benchmarks.gpu --out FOLDER.

Encoders of BERT-base's and DistilBERT's size with random weights, whose bias lets about 200 columns of a text
be positive; texts and tokenizer are made up. So nothing is fetched, and torch, transformers,
sentence-transformers and scipy are all that must be there. ``--tiny`` tries all of it in a minute on a CPU.
"""

from __future__ import annotations

import gc
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sentence_transformers import SparseEncoder

    from oskit.encoder.model import NeuralSparseEncoder

POSITIVE = 200
LENGTHS = {"short": 24, "long": 256}
SIZES = {"DistilBERT": 6, "BERT-base": 12}
BUDGETS = tuple(1 << power for power in range(12, 19))
TILES = tuple(megabytes << 20 for megabytes in (8, 16, 32, 64, 128, 256))

KINDS = (
    ("attention", r"fmha|flash|attention|sdpa|softmax"),
    ("matrix products", r"gemm|gemv|cutlass|nvjet|xmma|sm90|mkldnn|addmm|aten::mm"),
    ("maxima", r"reduce"),
    ("layer norm", r"layer_?norm"),
    ("copies to and from the host", r"memcpy (dtoh|htod)"),
    ("gather, scatter, find", r"index|gather|scatter|nonzero|cub|thrust|scan|select"),
    ("elementwise and casts", r"elementwise|vectorized|copy|gelu|memset|memcpy|fill"),
)

PARTS = ("agreement", "rates", "profile", "parts", "sweep")

Report = dict[str, Any]


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

    def allows(self, what: str, seconds: float) -> bool:
        """Whether there is time for it; says so if not."""
        fits = self.gone + seconds < self.seconds
        if not fits:
            say(f"[{self.gone:5.0f} s] left out, no time: {what}")
        return fits


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for gpu.json.")
@click.option("--tiny", is_flag=True, help="Small sizes, to try the script out.")
@click.option("--device", default=None, help="Where torch runs it; without it a GPU, else the CPU.")
@click.option("--seconds", default=220.0, show_default=True, help="What does not fit is left out, and told.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts of it; without it all.")
@click.option("--trained", type=click.Path(path_type=Path, exists=True), help="Also compare its results.")
@click.option(
    "--texts", "texts_file", type=click.Path(path_type=Path, exists=True), help="Texts for it, a line each."
)
def main(
    out: Path,
    tiny: bool,
    device: str | None,
    seconds: float,
    only: tuple[str, ...],
    trained: Path | None,
    texts_file: Path | None,
) -> None:
    """Measure encoding on a GPU: documents a second, share of the peak, where the time goes, what changes."""
    clock = Clock(seconds)
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    report: Report = {"device": _device(device), "tiny": tiny}

    def keep() -> None:
        (out / "gpu.json").write_text(json.dumps(report, indent=1))

    say(f"[{clock.gone:5.0f} s] {report['device']}")
    report["matrix products, TFLOP/s"] = peaks = _peaks(device, 512 if tiny else 8192)
    say(f"[{clock.gone:5.0f} s] matrix products, TFLOP/s: {peaks}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, layers in SIZES.items():
            bench = Bench(Path(scratch) / name, layers // 6 if tiny else layers, tiny, device, peaks, clock)
            say(f"\n[{clock.gone:5.0f} s] == {name}: {bench.columns:.0f} positive columns a text")
            for part_name in only or PARTS:
                try:
                    report.setdefault(name, {})[part_name] = getattr(bench, part_name)()
                except Exception as error:  # what follows may work; the run costs too much to lose it
                    report.setdefault(name, {})[part_name] = f"failed: {error!r}"
                    say(f"[{clock.gone:5.0f} s] {part_name} failed: {error!r}")
                keep()
            bench.close()
    if trained is not None and texts_file is not None and clock.allows("trained encoder", 15):
        report["trained"] = _trained(trained, texts_file.read_text().splitlines(), device)
    report["seconds"] = clock.gone
    keep()
    say(f"\n[{clock.gone:5.0f} s] done; all of it in {out / 'gpu.json'}")


def _device(device: str) -> str:
    import sentence_transformers
    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {versions}, sentence-transformers {sentence_transformers.__version__}"


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _peaks(device: str, size: int) -> dict[str, float]:
    """What a large product of matrices reaches in each precision."""
    import torch

    found = {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        one, other = (torch.randn(size, size, device=device, dtype=dtype or torch.float32) for _ in range(2))
        for _ in range(2):
            one @ other
        taken = [_seconds(lambda a=one, b=other: a @ b, device) for _ in range(5)]  # type: ignore[misc]
        found[name] = round(2 * size**3 / sorted(taken)[2] / 1e12, 2)
    torch.set_float32_matmul_precision("highest")
    return found


class Bench:
    """One encoder, as sentence-transformers and as oskit run it."""

    def __init__(
        self, folder: Path, layers: int, tiny: bool, device: str, peaks: dict[str, float], clock: Clock
    ) -> None:
        self.tiny, self.device, self.peaks, self.clock = tiny, device, peaks, clock
        self.hidden, self.layers, self.vocabulary = (64 if tiny else 768), layers, (700 if tiny else 30522)
        words = made_up_model(folder, self.hidden, layers, self.vocabulary)
        draw = random.Random(1)
        # Zipf's law: few words are most of a text.
        weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))
        counts = {"short": 48, "long": 12} if tiny else {"short": 60_000, "long": 8_000}
        self.texts = {
            kind: [
                " ".join(draw.choices(words, cum_weights=weights, k=LENGTHS[kind] - 2)) for _ in range(count)
            ]
            for kind, count in counts.items()
        }
        self.ours: NeuralSparseEncoder = _load(folder, device, ours=True)
        self.theirs: SparseEncoder = _load(folder, device, ours=False)
        sample = [*self.texts["short"][:32], *self.texts["long"][:32]]
        self.columns = self._shift(sample)

    def _shift(self, sample: Sequence[str]) -> float:
        """Move the bias so that some 200 columns of a text are positive; returns how many."""
        import torch

        output = self.ours.anatomy.output
        with torch.no_grad():
            output.bias.fill_(5)  # all are positive: their order shows
            weights = self.ours.encode(list(sample), convert_to_sparse_tensor=False)
            maxima = weights.expm1().topk(min(POSITIVE, self.vocabulary // 8), dim=1).values[:, -1] - 5
            for encoder in (self.ours, self.theirs):
                encoder[0].model.get_output_embeddings().bias.fill_(-float(maxima.mean()))
        return self.ours.document_matrix(list(sample)).nnz / len(sample)

    def close(self) -> None:
        """Give the memory back."""
        import torch

        del self.ours, self.theirs
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def flops(self, length: int) -> float:
        """Floating-point operations for a text of ``length`` tokens: the matrix products alone."""
        h = self.hidden
        layer = 2 * (4 * h * h + 2 * h * 4 * h) + 4 * length * h
        return length * (self.layers * layer + 2 * h * h + 2 * h * self.vocabulary)

    # What is run ------------------------------------------------------------------------------------------

    @contextmanager
    def contender(self, name: str) -> Iterator[Callable[[list[str]], object]]:
        """A way to encode, by name."""
        import torch

        who, precision, *batch = name.split()
        encoder = self.theirs if who == "sentence-transformers" else self.ours
        halved = "whole" in name or (who == "sentence-transformers" and precision == "bf16")
        if halved:
            encoder = encoder.to(torch.bfloat16)
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if who == "sentence-transformers":
            size = int(batch[-1])

            def run(texts: list[str]) -> object:
                return self.theirs.encode(texts, batch_size=size, save_to_cpu=True, show_progress_bar=False)
        else:
            self.ours.precision = "bf16" if precision == "bf16" and not halved else "fp32"
            run = self.ours.document_matrix
        try:
            yield run
        finally:
            self.ours.precision = "fp32"
            torch.set_float32_matmul_precision("highest")
            if halved:
                encoder.to(torch.float32)  # the weights are random: rounded ones do as well

    def rate(self, run: Callable[[list[str]], object], kind: str, seconds: float = 1.2) -> float:
        """Documents a second."""
        texts = self.texts[kind]
        few = texts[: 4 if self.tiny else 512 if kind == "short" else 128]
        run(few)
        guess = len(few) / _seconds(lambda: run(few), self.device)
        many = texts[: max(len(few), int(guess * (0.1 if self.tiny else seconds)))]
        run(many[: len(many) // 2])
        return len(many) / _seconds(lambda: run(many), self.device)

    # Parts of the report ----------------------------------------------------------------------------------

    def rates(self) -> Report:
        """Documents a second of each contender, and its share of the bf16 peak."""
        contenders = (
            *(f"sentence-transformers fp32 {size}" for size in (32, 256)),
            *(f"sentence-transformers bf16 {size}" for size in (32, 256)),
            "oskit fp32",
            "oskit tf32",
            "oskit bf16",
            "oskit bf16 whole",
        )
        found: Report = {}
        for kind, length in LENGTHS.items():
            for name in contenders:
                if not self.clock.allows(name, 6):
                    continue
                with self._peak_memory() as memory, self.contender(name) as run:
                    rate = self.rate(run, kind)
                share = rate * self.flops(length) / self.peaks["bf16"] / 1e12
                found.setdefault(kind, {})[name] = {"docs/s": rate, "share of bf16 peak": share, **memory}
                say(
                    f"[{self.clock.gone:5.0f} s] {kind:<6}{name:<32}{rate:>10.0f} docs/s{share:>8.1%} of peak"
                    f"{memory.get('peak MiB', 0):>8.0f} MiB"
                )
        return found

    @contextmanager
    def _peak_memory(self) -> Iterator[dict[str, float]]:
        import torch

        found: dict[str, float] = {}
        if not self.device.startswith("cuda"):
            yield found
            return
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        found["peak MiB"] = (torch.cuda.max_memory_allocated() - before) / (1 << 20)

    def agreement(self) -> Report:
        """What each precision changes, beside sentence-transformers in fp32."""
        from scipy.sparse import csr_matrix

        few = 8 if self.tiny else 400
        texts = [*self.texts["short"][:few], *self.texts["long"][: few // 2]]
        theirs = self.theirs.encode(texts, batch_size=32, convert_to_sparse_tensor=False, save_to_cpu=True)
        keep = self.ours.vocabulary.weight_mask()
        expected = csr_matrix(theirs.numpy() * keep)
        found: Report = {}
        for name in ("oskit fp32", "oskit tf32", "oskit bf16"):
            with self.contender(name) as run:
                found[name] = compare(run(texts), expected)  # type: ignore[arg-type]
            say(f"[{self.clock.gone:5.0f} s] {name} beside sentence-transformers fp32: {_short(found[name])}")
        with self.contender("sentence-transformers bf16 32"):
            half = self.theirs.encode(texts, batch_size=32, convert_to_sparse_tensor=False, save_to_cpu=True)
        name = "sentence-transformers bf16"
        found[name] = compare(csr_matrix(half.float().numpy() * keep), expected)
        say(f"[{self.clock.gone:5.0f} s] {name} beside its fp32: {_short(found[name])}")
        return found

    def profile(self) -> Report:
        """The kernels that take the time, and what is copied to the host."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        found: Report = {}
        cuda = self.device.startswith("cuda")
        for kind in LENGTHS:
            if not self.clock.allows(f"profile {kind}", 12):
                continue
            texts = self.texts[kind][: 4 * self.ours.token_budget // LENGTHS[kind]]
            with self.contender("oskit bf16") as run:
                run(texts)
                activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
                with profile(activities=[activities[-1]]) as profiler:
                    wall = _seconds(lambda r=run, t=texts: r(t), self.device)  # type: ignore[misc]
            events = profiler.key_averages()
            times = {
                e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in events
            }
            total = sum(times.values())
            kinds: dict[str, float] = {}
            for key, taken in times.items():
                label = next(
                    (label for label, words in KINDS if re.search(words, key, re.IGNORECASE)), "other"
                )
                kinds[label] = kinds.get(label, 0) + taken / total
            top = sorted(times.items(), key=lambda item: -item[1])[:14]
            found[kind] = {
                "texts": len(texts), "seconds": wall, "device busy": total / wall, "kinds": kinds,
                "top": [(key[:110], taken / total) for key, taken in top],
            }  # fmt: skip
            say(f"[{self.clock.gone:5.0f} s] {kind}: {len(texts)} texts {wall:.3f} s, kernels {total:.3f} s")
            say(
                "         " + ", ".join(f"{k} {v:.1%}" for k, v in sorted(kinds.items(), key=lambda i: -i[1]))
            )
            for key, taken in top:
                say(f"         {taken / total:6.1%}  {key[:110]}")
            if cuda:
                found[kind].update(self._copies(profiler, texts))
                say(f"         to the host: {found[kind]['to the host']}")
            del profiler
            torch.cuda.empty_cache()
        return found

    def _copies(self, profiler: Any, texts: list[str]) -> Report:
        """Bytes of copies to the host, by the profiler's trace, beside what dense fp32 weights would be."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        copies = [e["args"].get("bytes", 0) for e in events if "Memcpy DtoH" in e.get("name", "")]
        dense = 4 * self.vocabulary * len(texts)
        return {
            "to the host": {
                "copies": len(copies), "bytes": sum(copies), "largest": max(copies, default=0),
                "share of dense fp32": sum(copies) / dense,
            }
        }  # fmt: skip

    def parts(self) -> Report:
        """How long transformer, head, sparsifying and tokenizing take for one full batch, each by itself."""
        import torch

        from oskit.encoder.head.streaming import streamed
        from oskit.encoder.pipeline import arithmetic, sparse_rows

        found: Report = {}
        anatomy, device = self.ours.anatomy, self.device
        never = torch.tensor(sorted(self.ours.vocabulary.special_ids), device=device)
        for kind, length in LENGTHS.items():
            if not self.clock.allows(f"parts {kind}", 5):
                continue
            texts = self.texts[kind][: max(1, self.ours.token_budget // length)]
            taken: dict[str, list[float]] = {}

            def timed(name: str, work: Callable[[], Any], taken: dict[str, list[float]] = taken) -> Any:
                result: list[Any] = []
                taken.setdefault(name, []).append(_seconds(lambda: result.append(work()), device))
                return result[0]

            for _ in range(2 if self.tiny else 5):
                ids = timed("tokenize", lambda t=texts: self.ours.tokenize_documents(t))
                features = timed("pad and copy", lambda i=ids: anatomy.features(i))
                weights = next(anatomy.model.parameters())
                with torch.inference_mode(), arithmetic("bf16", weights), streamed(activate=False) as head:
                    for module in anatomy.logit_modules:
                        features = timed("transformer", lambda m=module, f=features: m(f))
                    features = timed("head", lambda f=features: anatomy.pooling(f))
                    maxima = features["sentence_embedding"]
                    timed("to sparse", lambda m=maxima, h=head: sparse_rows(m, never, h.logarithms))
            medians = {name: sorted(times)[len(times) // 2] for name, times in taken.items()}
            found[kind] = {"texts": len(texts), "dtype of the maxima": str(maxima.dtype), **medians}
            shown = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in medians.items())
            say(f"[{self.clock.gone:5.0f} s] {kind}: a batch of {len(texts)}: {shown}")
        return found

    def sweep(self) -> Report:
        """Documents a second by the tokens of a batch, by the size of a tile, and by batches at a time."""
        from oskit.encoder import model, pipeline
        from oskit.encoder.head import maxima

        settings: list[tuple[str, Any, str, Any]] = [
            *(("tokens of a batch", model, "tokens_at_once", value) for value in BUDGETS),
            *(("tile, bytes", maxima, "TILE_BYTES", value) for value in TILES),
            *(("batches at a time", pipeline, "BATCHES_ON_A_GPU", value) for value in (1, 2, 3)),
        ]
        found: Report = {}
        for kind in LENGTHS:
            for label, module, attribute, value in settings[:: 3 if self.tiny else 1]:
                if not self.clock.allows(f"{label} {value}", 4):
                    continue
                where = (
                    self.ours.__class__.document_matrix.__globals__
                    if label.startswith("tokens")
                    else vars(module)
                )
                before = where[attribute]
                where[attribute] = (
                    (lambda *_, v=value: v) if label.startswith("tokens") else
                    {"cpu": value, "cuda": value} if label.startswith("tile") else value
                )  # fmt: skip
                try:
                    with self.contender("oskit bf16") as run:
                        rate = self.rate(run, kind, 0.7)
                finally:
                    where[attribute] = before
                found.setdefault(kind, {}).setdefault(label, {})[value] = rate
            for label, rates in found.get(kind, {}).items():
                line = "  ".join(f"{value}: {rate:.0f}" for value, rate in rates.items())
                say(f"[{self.clock.gone:5.0f} s] {kind} docs/s by {label}: {line}")
        return found


def compare(found: csr_matrix, expected: csr_matrix) -> Report:
    """How far weights are from those expected, and whether the ten best of each row's neighbours stay."""
    one, other = found.toarray(), expected.toarray()
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1)[norms > 0] / norms[norms > 0]
    queries = min(64, len(one) // 4)

    def best(matrix: np.ndarray) -> np.ndarray:
        scores = matrix[:queries] @ matrix[queries:].T
        return np.argsort(-scores, axis=1)[:, :10]

    pairs = zip(best(one), best(other), strict=True)
    overlap = np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs])
    return {
        "largest difference": float(np.abs(one - other).max()),
        "largest weight": float(other.max()),
        "cosine, mean": float(cosines.mean()),
        "cosine, least": float(cosines.min()),
        "overlap of the ten best": float(overlap),
        "positive in one only": int(((one > 0) != (other > 0)).sum()) / max(int((other > 0).sum()), 1),
    }


def _short(found: Report) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in found.items())


def _trained(folder: Path, texts: list[str], device: str) -> Report:
    """The same comparison on a trained encoder and real texts."""
    from oskit.encoder.model import NeuralSparseEncoder

    encoder = NeuralSparseEncoder.from_pretrained(folder, device=device, fallback=False)
    found: Report = {}
    encoder.precision = "fp32"
    expected = encoder.document_matrix(texts)
    encoder.precision = "bf16"
    found["oskit bf16 beside fp32"] = compare(encoder.document_matrix(texts), expected)
    encoder.precision = "fp32"
    import torch

    encoder.to(torch.bfloat16)
    found["whole in bf16 beside fp32"] = compare(encoder.document_matrix(texts), expected)
    for name, result in found.items():
        say(f"trained, {name}: {_short(result)}")
    return found


def made_up_model(folder: Path, hidden: int, layers: int, vocabulary: int) -> list[str]:
    """Write a BERT with a masked-language head and random weights; returns the words of its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
    words = [one + two + three for one in syllables for two in syllables for three in syllables[:5]]
    random.Random(0).shuffle(words)
    words = words[: vocabulary - len(specials)]
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
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        intermediate_size=4 * hidden,
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
