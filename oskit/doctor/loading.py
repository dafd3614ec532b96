"""The loading scenarios: each tier, inference, save and load; on a tiny encoder, or on the user's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from oskit.doctor.finding import Finding, attempt
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.errors import BrokenEncoderError, MissingDependencyError

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

PROBE = "How long does it take to get a building permit?"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] how long does it take to get a building permit ?"


def check_loading(*, offline: bool = False) -> list[Finding]:
    """Try each tier of the loader, inference, and saving and loading again, on a tiny untrained encoder.

    Nothing is downloaded, except that the Hub is asked whether it answers, unless ``offline``.
    """
    missing = _missing_packages("loading")
    if missing:
        return [missing]
    from oskit.encoder.model import NeuralSparseEncoder

    with tempfile.TemporaryDirectory(prefix="oskit-doctor-") as scratch, quiet_libraries():
        folder = _write_tiny_encoder(Path(scratch) / "tiny")
        loaded: list[NeuralSparseEncoder] = []

        def local() -> str:
            loaded.append(NeuralSparseEncoder.from_pretrained(str(folder), device="cpu"))
            return f"a folder loads, head {loaded[0].load_report.head}"

        def fallback() -> str:
            name = str(Path(scratch) / "no-such-folder")
            encoder = NeuralSparseEncoder.from_pretrained(name, base=str(folder), device="cpu")
            return f"without an encoder, the base with a {encoder.load_report.head} projection and a warning"

        findings = [
            attempt("loading", "local folder", local),
            _hub(offline=offline),
            attempt("loading", "fallback", fallback),
        ]
        if not loaded:
            return findings
        return findings + _scenarios("loading", loaded[0], NeuralSparseEncoder.from_pretrained, scratch)


def check_encoder(
    name_or_path: str, load: Callable[[str], NeuralSparseEncoder] | None = None
) -> list[Finding]:
    """Load the user's encoder, run it, save it and load it again.

    Args:
        name_or_path: A folder or a name on the Hub, as for ``NeuralSparseEncoder.from_pretrained``.
        load: How to load it, where not by that alone.
    """
    missing = _missing_packages("encoder")
    if missing:  # this encoder was asked about, so it is no small matter that it cannot be looked at
        return [replace(missing, status="failure")]
    from oskit.encoder.loader.report import TIER_NAMES
    from oskit.encoder.model import NeuralSparseEncoder

    load = load or NeuralSparseEncoder.from_pretrained
    loaded: list[NeuralSparseEncoder] = []

    def found() -> str:
        loaded.append(load(name_or_path))
        report = loaded[0].load_report
        source = f"{report.source} from the {TIER_NAMES[report.tier]} ({report.attempts[-1].reason})"
        return f"{source}, {report.architecture}, vocabulary {report.vocabulary_size:,}"

    with tempfile.TemporaryDirectory(prefix="oskit-doctor-") as scratch, quiet_libraries():
        findings = [attempt("encoder", "load", found)]
        if not loaded:
            return findings
        findings.append(_head(loaded[0]))
        return findings + _scenarios("encoder", loaded[0], load, scratch)


def _head(encoder: NeuralSparseEncoder) -> Finding:
    report = encoder.load_report
    if report.head == "random":
        advice = "Train it, or name an encoder that has its head; export and deploy refuse this one"
        detail = f"the projection to the vocabulary is random: {'; '.join(map(str, report.attempts))}"
        return Finding("encoder", "head", "failure", detail, advice)
    return Finding("encoder", "head", "ok", "the projection to the vocabulary is pretrained")


def _scenarios(
    area: str, encoder: NeuralSparseEncoder, load: Callable[[str], NeuralSparseEncoder], scratch: str
) -> list[Finding]:
    def inference() -> str:
        weights = encoder.document_weights([PROBE])[0]
        if not weights:
            raise BrokenEncoderError(
                f"no token of {PROBE!r} has a weight", hint="The encoder has collapsed or was never trained"
            )
        return f"{len(weights):,} active dimensions for {PROBE!r}"

    def save_and_load() -> str:
        saved = str(Path(scratch) / "saved")
        encoder.save_pretrained(saved)
        again = load(saved)
        difference = abs(again.document_matrix([PROBE]) - encoder.document_matrix([PROBE])).max()
        if difference > 1e-5:
            raise BrokenEncoderError(
                f"after saving and loading, weights differ by {difference:.2g}", hint="Report this as a bug"
            )
        return f"the same weights after saving and loading (largest difference {difference:.1g})"

    return [attempt(area, "inference", inference), attempt(area, "save and load", save_and_load)]


def _hub(*, offline: bool) -> Finding:
    """Whether the Hugging Face Hub answers; any HTTP answer counts, even a refusal."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from oskit.encoder.loader import hub

    endpoint = hub.endpoint()
    if offline or hub.is_offline():
        why = "--offline was given" if offline else "HF_HUB_OFFLINE is set"
        return Finding("loading", "hub", "skipped", f"{why}; only cached encoders load")
    if not endpoint.startswith(("http://", "https://")):
        return Finding(
            "loading", "hub", "failure", f"HF_ENDPOINT is {endpoint!r}", "Set it to a http(s) address"
        )
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):  # noqa: S310 - the scheme was checked
            pass
    except HTTPError:
        pass
    except (URLError, OSError) as error:
        advice = "Set HTTPS_PROXY or HF_ENDPOINT, or use encoders in local folders"
        return Finding("loading", "hub", "warning", f"{endpoint} does not answer: {error}", advice)
    return Finding("loading", "hub", "ok", f"{endpoint} answers")


def _missing_packages(area: str) -> Finding | None:
    for package in ("torch", "transformers", "sentence_transformers", "huggingface_hub"):
        try:
            __import__(package)
        except ImportError:
            error = MissingDependencyError.for_extra("Loading encoders", package, "export")
            return Finding(area, "packages", "skipped", error.message, error.hint)
    return None


def _write_tiny_encoder(folder: Path) -> Path:
    """A masked language model of one small layer with random weights, large enough to be above zero."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = WORDS.split()
    folder.mkdir()
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(words)})
    names = {f"{word[1:-1].lower()}_token": word for word in words if word.startswith("[")}
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer._tokenizer, model_max_length=64, **names
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=1.0,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder
