"""Back ends by name: what does not fit is refused, and ``auto`` is the fastest that changes no result."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oskit.archive.archive import open_archive
from oskit.archive.backends import Runtime, auto, open_backend
from oskit.archive.backends.onnx_runtime import OnnxRuntimeBackend
from oskit.archive.encoder import ArchiveEncoder
from oskit.encoder.opening import open_encoder
from oskit.errors import UsageError
from tests.archives import WORDS, encoder_archive, tokenizer_archive, write_manifest

TEXTS = [" ".join(WORDS[n % 7 : n % 13 + 1]) for n in range(auto.ENOUGH_TEXTS)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(tmp_path / "cache"))
    return encoder_archive(tmp_path / "encoder.zip")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime loses against anything."""
    run = OnnxRuntimeBackend.run

    def wait(*given: Any) -> Any:
        time.sleep(0.02)
        return run(*given)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", wait)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch, slow: None) -> Iterator[Callable[..., None]]:
    """Puts something in OpenVINO's place that is fast, and errs by what the test says."""
    pytest.importorskip("openvino")
    monkeypatch.setattr("oskit.archive.backends.open_vino.has_bf16", lambda: True)

    class Other:
        name, batches = "other", True

        def __init__(self, archive: Any, error: Callable[[Any], Any]) -> None:
            self._known: dict[Any, Any] = {}
            self._plain, self._error = open_backend(archive), error

        def run(self, ids: Any, keep: Any) -> Any:
            key = tuple(map(tuple, ids))
            if key not in self._known:
                self._known[key] = self._error(self._plain.run(ids, keep))
            return self._known[key]

    def put(**errors: Callable[[Any], Any]) -> None:
        def opened(archive: Any, runtime: Runtime, threads: int | None = None) -> Other:
            return Other(archive, errors[runtime.precision or "own"])

        monkeypatch.setattr(auto, "open_backend", opened)

    yield put


def encode(path: Path, runtime: Runtime, texts: list[str] = TEXTS) -> tuple[ArchiveEncoder, Any, list[str]]:
    told: list[str] = []
    encoder = ArchiveEncoder.open(path, runtime=runtime, notify=told.append)
    return encoder, encoder.document_matrix(texts), told


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/backends/*"))


def same(matrix: Any) -> Any:
    return matrix


def doubled(matrix: Any) -> Any:
    return matrix * 2


def shuffled(matrix: Any) -> Any:
    return matrix[np.random.default_rng(0).permutation(matrix.shape[0])]


def test_a_short_job_is_not_measured(path: Path, tmp_path: Path) -> None:
    encoder, _, told = encode(path, Runtime(), TEXTS[:-1])
    assert (encoder.runtime or "").startswith("onnxruntime") and not told and not files(tmp_path)


def test_nobody_is_measured_unless_asked(path: Path, tmp_path: Path) -> None:
    """What others are compared with is ONNX Runtime, whatever was found before."""
    encode(path, Runtime())
    encoder = ArchiveEncoder.open(path)
    encoder.document_matrix(TEXTS * 2)
    assert (encoder.runtime or "").startswith("onnxruntime")
    assert encode(path, Runtime("onnxruntime"))[2] == []


def test_what_is_found_is_told_once_remembered_and_changes_nothing(
    path: Path, tmp_path: Path, slow: None
) -> None:
    pytest.importorskip("openvino")
    expected = ArchiveEncoder.open(path).document_matrix(TEXTS)
    encoder, found, told = encode(path, Runtime())
    assert abs(found - expected).max() < 1e-5
    assert (encoder.runtime or "").startswith("openvino") and encoder.truncation.texts == len(TEXTS)
    assert len(told) == 1 and told[0].startswith("Encoding with OpenVINO, ")
    encoder.document_matrix(TEXTS)
    assert len(told) == 1
    # A short job takes it at once.
    encoder, again, told = encode(path, Runtime(), TEXTS[:3])
    assert (encoder.runtime or "").startswith("openvino") and "as measured before" in told[0]
    assert abs(again - expected[:3]).max() < 1e-5
    # Another archive, another question: nothing is known.
    assert encode(encoder_archive(tmp_path / "b.zip", seed=1), Runtime(), TEXTS[:3])[2] == []
    assert encode(path, Runtime(precision="auto"), TEXTS[:3])[2] == []


def test_a_job_of_many_small_calls_is_measured_as_well(path: Path, tmp_path: Path) -> None:
    told: list[str] = []
    encoder = ArchiveEncoder.open(path, runtime=Runtime(), notify=told.append)
    for text in TEXTS:
        assert not told
        encoder.document_matrix([text])
    assert len(told) == 1 and len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 100_000, '{"backend": "abacus"}', '{"budget": "many"}', '{"budget": 512.5}', '{"x": 1}'],
)
def test_a_damaged_memory_is_as_good_as_none(path: Path, tmp_path: Path, content: str) -> None:
    encode(path, Runtime())
    (remembered,) = files(tmp_path)
    remembered.write_text(content)
    _, found, told = encode(path, Runtime())
    assert len(told) == 1 and "before" not in told[0] and found.nnz
    assert remembered.read_text() != content


def test_a_cache_that_cannot_be_written_costs_only_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSKIT_CACHE_DIR", str(path))
    for _ in range(2):
        _, found, told = encode(path, Runtime())
        assert len(told) == 1 and found.nnz


def test_texts_without_tokens_are_nothing_to_measure_with(path: Path, tmp_path: Path) -> None:
    _, found, told = encode(path, Runtime(), [""] * (2 * auto.ENOUGH_TEXTS))
    assert not found.nnz and not told and not files(tmp_path)


def test_the_fastest_is_not_taken_where_it_gives_other_weights(
    path: Path, other: Callable[..., None]
) -> None:
    expected = ArchiveEncoder.open(path).document_matrix(TEXTS)
    other(own=same)
    assert encode(path, Runtime())[0].runtime == "other"
    other(own=doubled)
    encoder, found, told = encode(encoder_archive(path.with_name("b.zip")), Runtime("auto", "fp32"))
    assert (encoder.runtime or "").startswith("onnxruntime") and "ONNX Runtime" in told[0]
    assert abs(found - expected).max() < 1e-5


def test_a_narrower_precision_is_taken_only_if_asked_for_and_the_ranking_stays(
    path: Path, other: Callable[..., None]
) -> None:
    other(own=doubled, bf16=lambda matrix: matrix * np.float32(1.01))  # another scale, the same ranking
    encoder, _, told = encode(path, Runtime(precision="auto"))
    assert encoder.runtime == "other" and "in bf16" in told[0] and "100% of the top 10 stay" in told[0]
    other(own=doubled, bf16=shuffled)
    encoder, _, told = encode(path, Runtime("auto", "auto", "cpu"))
    assert (encoder.runtime or "").startswith("onnxruntime") and "bf16" not in told[0]
    encoder, _, told = encode(path, Runtime())
    assert (encoder.runtime or "").startswith("onnxruntime") and "bf16" not in told[0]


def test_bf16_is_near(path: Path) -> None:
    open_vino = pytest.importorskip("oskit.archive.backends.open_vino")
    pytest.importorskip("openvino")
    if not open_vino.has_bf16():
        with pytest.raises(UsageError, match="this CPU has no bf16"):
            encode(path, Runtime(precision="bf16"))
        return
    expected = ArchiveEncoder.open(path).document_matrix(TEXTS)
    for remembered in (False, True):
        encoder, found, told = encode(path, Runtime(precision="bf16"))
        assert (encoder.runtime or "").endswith("bf16") and "OpenVINO in bf16" in told[0]
        assert told[0].endswith("measured before") == remembered
        np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=0.02, atol=0.02)


_DROPPED_ELSEWHERE = """
import gc, os, signal, sys, threading, time
from oskit.archive.backends import Runtime
from oskit.archive.encoder import ArchiveEncoder

here = [ArchiveEncoder.open(sys.argv[1], runtime=Runtime("openvino"))]
here[0].document_matrix(["a text"])
thread = threading.Thread(target=lambda: (here.clear(), gc.collect()))
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_heard_after_an_openvino_encoder_was_dropped_by_another_thread(path: Path) -> None:
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", _DROPPED_ELSEWHERE, str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_an_openvino_that_cannot_be_imported_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    for _ in range(2):
        encoder, _, told = encode(path, Runtime(precision="auto"))
        assert (encoder.runtime or "").startswith("onnxruntime") and len(told) == 1


def test_what_runs_no_model_takes_no_back_end(tmp_path: Path) -> None:
    path = tokenizer_archive(tmp_path / "tokenizer.zip")
    for runtime in (None, Runtime()):
        assert ArchiveEncoder.open(path, runtime=runtime).query_matrix(["hello"]).nnz
    with pytest.raises(UsageError, match="no effect on a tokenizer archive"):
        ArchiveEncoder.open(path, runtime=Runtime("openvino"))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"backend": "openvino", "device": "cuda"}, "runs on the CPU here"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "no bf16"),
        ({"backend": "torch"}, "an ONNX archive, which does not run on torch"),
        ({"device": "cuda"}, "an ONNX archive, which does not run on cuda"),
        ({"precision": "int8"}, "is not quantised to int8"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as told:
        ArchiveEncoder.open(path, runtime=Runtime(**how))
    assert told.value.hint


def test_an_int8_archive_is_computed_as_it_is(path: Path) -> None:
    write_manifest(path, quantization="int8")
    for precision in ("fp32", "bf16"):
        with pytest.raises(UsageError, match="is quantised to int8"):
            ArchiveEncoder.open(path, runtime=Runtime(precision=precision))  # type: ignore[arg-type]
    archive = open_archive(path)
    for fitting in (Runtime(), Runtime(precision="int8"), Runtime(precision="auto")):
        fitting.check(archive)
    Runtime(precision="fp32").check(replace(archive, manifest=None))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"backend": "openvino"}, "a model runs on torch, not on openvino"),
        ({"precision": "int8"}, "a model is not quantised"),
        ({"device": "xpu:7"}, "there is no device 'xpu:7' here"),
    ],
)
def test_a_models_folder_runs_on_torch(tmp_path: Path, how: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_encoder(tmp_path, Runtime(**how))
    with pytest.raises(UsageError, match="goes with an archive"):
        open_encoder(tmp_path, query=tmp_path)
