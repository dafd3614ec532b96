"""The fastest back end for an archive on this machine: measured once on a job's own texts, and remembered.

Short jobs never pay for it: until :data:`ENOUGH_TEXTS` were asked for, what is remembered runs, else ONNX
Runtime. Then every back end that is installed computes a sample of these texts in turns. One that computes
the archive's own precision is taken if it is faster and no weight differs by more than :data:`SAME`; bf16,
where ``precision`` is ``"auto"``, if the sample's ranking stays (:data:`SAME_COSINE`, :data:`SAME_TOP`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.backends.opening import open_backend
from oskit.archive.backends.runtime import Runtime, own_precision
from oskit.archive.batching import TOKEN_BUDGET, token_batches, token_budget
from oskit.archive.likeness import cosines, overlap, tops
from oskit.errors import OskitError
from oskit.extras import is_installed
from oskit.folders import user_cache

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.archive import Archive
    from oskit.archive.backends.backend import Backend

ENOUGH_TEXTS = 256
"""Texts after which a job counts as long enough to measure."""

SAME = 1e-4
"""How far a weight may differ from ONNX Runtime's for results to be the same: the tolerance of parity."""

SAME_COSINE = 0.999
"""Least cosine, over the sample's vectors, of a narrower precision with the archive's own."""

SAME_TOP = 0.97
"""Least share of the nearest texts of each text of the sample, ten at most, that both precisions find."""

FASTER = 1.1
"""How many times as fast another back end has to be."""

_SAMPLE_TEXTS = 48
_SAMPLE_S = 0.5
"""Texts of the sample, and how long ONNX Runtime may need for them; at least four whatever they need."""

_SEEN_CHARACTERS = 4096
"""Of a text that is kept for the sample: no fewer than an encoder reads of most."""

_ROUNDS = 3
_BUDGETS = (TOKEN_BUDGET // 2, TOKEN_BUDGET * 2)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What was found to be the fastest.

    Attributes:
        backend: ``"onnxruntime"`` or ``"openvino"``.
        precision: None for the archive's own, or ``"bf16"``.
        budget: Tokens of a batch.
        gain: Times as fast as what runs unmeasured, with batches of :data:`TOKEN_BUDGET`.
        cosine: Least cosine with the vectors of the archive's own precision, where a narrower one was chosen.
        top: Share of the nearest texts that stayed then.
    """

    backend: str = "onnxruntime"
    precision: str | None = None
    budget: int = TOKEN_BUDGET
    gain: float = 1.0
    cosine: float | None = None
    top: float | None = None

    def runtime(self) -> Runtime:
        """It, as what people ask for."""
        return Runtime(self.backend, self.precision)  # type: ignore[arg-type]

    def __str__(self) -> str:
        named = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[self.backend]
        quality = "" if self.top is None else f", cosine {self.cosine:.4f}, {self.top:.0%} of the top 10 stay"
        return (
            f"{named}{f' in {self.precision}' if self.precision else ''}, {self.budget:,} tokens a batch "
            f"({self.gain:.1f} times as fast as unmeasured{quality})"
        )


class Selection:
    """Finds the fastest back end for a job, once.

    Args:
        archive: In ONNX format.
        runtime: What is left to ``"auto"`` is found.
        threads: As many as one batch may use.
        notify: Told, in one line, what was taken.
    """

    def __init__(
        self,
        archive: Archive,
        runtime: Runtime,
        threads: int | None = None,
        notify: Callable[[str], object] | None = None,
    ) -> None:
        self._archive = archive
        self._runtime = runtime
        self._threads = threads
        self._notify = notify or (lambda _: None)
        self._seen: list[str] = []
        self._decided = False
        self._lock = threading.Lock()

    def recall(self) -> Choice | None:
        """What was found on this machine before; None if nothing was, or it cannot be read or used."""
        self._runtime.check(self._archive)
        try:
            found = Choice(**json.loads(self._file().read_bytes()))
            found.runtime().check(self._archive)
            fits = self._runtime.backend in ("auto", found.backend) and type(found.budget) is int
            told = f"{found}, as measured before"
        except (OSError, ValueError, TypeError, KeyError, RecursionError, ImportError, OskitError) as error:
            logger.debug("nothing is remembered about %s: %s", self._archive.path, error)
            return None
        precisions = {"auto": (None, "bf16"), "bf16": ("bf16",)}.get(self._runtime.precision or "", (None,))
        if not fits or found.budget < 1 or found.precision not in precisions:
            return None
        self._decided = True
        self._notify(f"Encoding with {told}")
        return found

    def decide(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        plain: Backend,
        keep: NDArray[np.bool_],
    ) -> tuple[Choice, Backend] | None:
        """What to go on with; None to go on as before. Measures once enough texts were asked for.

        Args:
            texts: Those that are encoded next.
            tokenize: Gives their token ids.
            plain: The archive on ONNX Runtime, or on what the runtime demands.
            keep: ``[vocabulary]``, which tokens may weigh something.
        """
        with self._lock:
            if self._decided:
                return None
            self._seen += (text[:_SEEN_CHARACTERS] for text in texts[:ENOUGH_TEXTS])
            if len(self._seen) < ENOUGH_TEXTS:
                return None
            self._decided = True
            ids = [row for row in tokenize(self._seen) if row]
            self._seen.clear()
            if not ids:
                return None
            found = select(self._archive, self._runtime, self._threads, plain, ids, keep)
        self._remember(found[0])
        self._notify(f"Encoding with {found[0]}")
        return found

    def _remember(self, choice: Choice) -> None:
        """Keep it for later jobs; a cache that cannot be written is no reason to fail."""
        path = self._file()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps(asdict(choice)))
            whole.replace(path)

    def _file(self) -> Path:
        versions = [_version(name) for name in ("onnxruntime", "openvino")]
        asked = [*asdict(self._runtime).values(), self._threads]
        facts = [self._archive.sha256, *asked, *versions, *_machine(), TOKEN_BUDGET]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return user_cache() / "backends" / f"{name[:32]}.json"


@cache
def _machine() -> tuple[str, ...]:
    model = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next((line for line in lines if line.startswith("model name")), model)
    try:
        cores = len(os.sched_getaffinity(0))  # type: ignore[attr-defined,unused-ignore]
    except AttributeError:
        cores = os.cpu_count() or 1
    return platform.machine(), model, str(cores)


def _version(package: str) -> str | None:
    from importlib import metadata

    return metadata.version(package) if is_installed(package) else None


def select(
    archive: Archive,
    runtime: Runtime,
    threads: int | None,
    plain: Backend,
    ids: Sequence[Sequence[int]],
    keep: NDArray[np.bool_],
) -> tuple[Choice, Backend]:
    """Measure what fits ``runtime`` and take the fastest; a few seconds.

    Args:
        archive: In ONNX format.
        runtime: What is left to ``"auto"`` is found.
        threads: As many as one batch may use.
        plain: The archive on ONNX Runtime, or on what ``runtime`` demands.
        ids: Token ids of texts that are like those to come.
        keep: ``[vocabulary]``, which tokens may weigh something.
    """
    width = len(keep)
    sample = _sample(plain, ids, keep)
    own = _Contender(_plain(runtime), plain, sample, keep)
    contenders = [own]
    for choice in _others(archive, runtime):
        try:
            backend = open_backend(archive, choice.runtime(), threads)
            contenders.append(_Contender(choice, backend, sample, keep))
        except (OskitError, ImportError) as error:  # this CPU has no bf16, or OpenVINO is half installed
            logger.debug("%s is left out: %s", choice.backend, error)
    contenders = [found for found in contenders if found.fits(own)]
    _race(contenders)
    best = min(contenders, key=lambda found: found.seconds)
    best = best if own.seconds >= FASTER * best.seconds else own
    if best.backend.batches:
        sizes = [best, *(best.with_budget(size) for size in _BUDGETS if size <= token_budget(width, size))]
        _race(sizes)
        fastest = min(sizes, key=lambda found: found.seconds)
        best = fastest if best.seconds >= 1.03 * fastest.seconds else best
    choice = replace(best.choice, gain=round(own.seconds / best.seconds, 2))
    return choice, best.backend


def _plain(runtime: Runtime) -> Choice:
    """What ``runtime`` is unmeasured."""
    if runtime.precision == "bf16":
        return Choice("openvino", "bf16")
    return Choice("openvino" if runtime.backend == "openvino" else "onnxruntime")


def _others(archive: Archive, runtime: Runtime) -> list[Choice]:
    if runtime.backend not in ("auto", "openvino") or runtime.precision == "bf16":
        return []
    if not is_installed("openvino"):
        return []
    others = [Choice("openvino")] if runtime.backend == "auto" else []
    if runtime.precision == "auto" and own_precision(archive) == "fp32":
        others.append(Choice("openvino", "bf16"))
    return others


def _sample(plain: Backend, ids: Sequence[Sequence[int]], keep: NDArray[np.bool_]) -> list[Sequence[int]]:
    """Texts from everywhere in the list, as many as can be computed in the time there is."""
    spread = [ids[round(place)] for place in np.linspace(0, len(ids) - 1, min(_SAMPLE_TEXTS, len(ids)))]
    order = np.random.default_rng(0).permutation(len(spread))
    chosen: list[Sequence[int]] = []
    start = time.perf_counter()
    for place in order:
        if len(chosen) >= 4 and time.perf_counter() - start > _SAMPLE_S:
            break
        chosen.append(spread[place])
        plain.run([spread[place]], keep)
    return chosen


class _Contender:
    """A back end and what it makes of the sample."""

    def __init__(
        self, choice: Choice, backend: Backend, sample: Sequence[Sequence[int]], keep: NDArray[np.bool_]
    ) -> None:
        self.choice = choice
        self.backend = backend
        self._sample = sample
        self._keep = keep
        self.times: list[float] = []
        self.vectors = self.compute()  # the first run of each shape takes longer: it is not measured

    def with_budget(self, budget: int) -> _Contender:
        return _Contender(replace(self.choice, budget=budget), self.backend, self._sample, self._keep)

    def compute(self) -> csr_matrix:
        from scipy.sparse import vstack

        budget = token_budget(len(self._keep), self.choice.budget) if self.backend.batches else 1
        batches = list(token_batches(self._sample, budget))
        made = [self.backend.run([self._sample[place] for place in batch], self._keep) for batch in batches]
        return vstack(made, format="csr")

    @property
    def seconds(self) -> float:
        return median(self.times)

    def nearest(self) -> list[list[int]]:
        """For each text of the sample the others that come next to it."""
        scores = (self.vectors @ self.vectors.T).toarray()
        np.fill_diagonal(scores, 0)
        return tops(scores)

    def fits(self, own: _Contender) -> bool:
        """Whether its results are those of ``own``, or near enough for a narrower precision."""
        if self is own:
            return True
        if self.choice.precision is None:
            return bool(abs(self.vectors - own.vectors).max() <= SAME)
        cosine = float(cosines(own.vectors, self.vectors).min())
        top = overlap(own.nearest(), self.nearest())
        self.choice = replace(self.choice, cosine=round(cosine, 5), top=round(top, 4))
        return cosine >= SAME_COSINE and top >= SAME_TOP


def _race(contenders: Sequence[_Contender]) -> None:
    """Time them in turns, so that what else the machine does meets all of them alike."""
    for found in contenders:
        found.times = []
    for _ in range(_ROUNDS if len(contenders) > 1 else 1):
        for found in contenders:
            start = time.perf_counter()
            found.compute()
            found.times.append(max(time.perf_counter() - start, 1e-9))
