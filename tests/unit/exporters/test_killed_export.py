"""An export that ends half-way: no half of it has a final name, and an earlier one stays whole."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Barrier
from typing import Any

import archives
import pytest

from exporters.archive import check_replaceable, replacing
from oskit.archive.archive import open_archive
from oskit.cluster.models import sagemaker
from oskit.cluster.models.sagemaker import FILES, FOLDER, write_bundle
from oskit.errors import ExportError, UsageError

FOLDERS = ("onnx", FOLDER, "tokenizer")


@cache
def made(seed: int) -> Path:
    """Tiny archives of an inference-free encoder; one seed is always the same bytes."""
    folder = Path(mkdtemp(prefix="oskit-test-"))
    atexit.register(shutil.rmtree, folder)
    encoder = archives.encoder_archive(folder / "onnx" / "e.zip", seed=seed)
    queries = archives.tokenizer_archive(folder / "tokenizer" / "e-tokenizer.zip", 200 + seed)
    archives.write_manifest(encoder)
    archives.write_manifest(queries, kind="tokenizer", model_format="TORCH_SCRIPT")
    return folder


def export(output_dir: Path, seed: int) -> None:
    """As ``oskit export --sagemaker`` does."""
    with replacing(output_dir) as staging:
        shutil.copytree(made(seed), staging, dirs_exist_ok=True)
        zips = (staging / "onnx" / "e.zip", staging / "tokenizer" / "e-tokenizer.zip")
        write_bundle([open_archive(path) for path in zips], staging)


def contents(output_dir: Path) -> dict[str, dict[str, object]]:
    """What each folder holds; of a tar what is in it, which is not told by its bytes."""

    def of(path: Path) -> object:
        if path.suffix != ".gz":
            return path.read_bytes()
        with tarfile.open(path) as tar:
            return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]

    return {
        folder: {path.name: of(path) for path in (output_dir / folder).iterdir()}
        for folder in FOLDERS
        if (output_dir / folder).exists()
    }


def ends_in(folder: Path, name: str, after: int) -> int:
    """Export in a process that gets a signal before a write or a renaming; how it ends."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = after

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                left = 999
                os.kill(os.getpid(), getattr(signal, name))
            return function(*args, **options)

        return counted

    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        for function in ("rename", "write_text", "touch", "mkdir"):
            setattr(Path, function, counting(getattr(Path, function)))
        export(folder, seed=2)
    except BaseException:
        os._exit(130)
    os._exit(0)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_at_each_moment(tmp_path: Path, name: str) -> None:
    """Every write and every renaming of an export is once the last thing that its process does."""
    pure = {}
    for seed in (1, 2, 3):
        export(tmp_path / str(seed), seed)
        pure[seed] = contents(tmp_path / str(seed))
    ends = set()
    for after in range(40):
        folder = tmp_path / f"{name}-{after}"
        export(folder, seed=1)
        code = ends_in(folder, name, after)
        found = contents(folder)
        for each, files in found.items():
            assert files in (pure[1][each], pure[2][each]), f"{each} after {after} steps"
        if name == "SIGTERM":
            assert found in (pure[1], pure[2])
            assert sorted(path.name for path in folder.iterdir()) == sorted(FOLDERS)
        # The next one fails, and what the killed one had begun is whole.
        with pytest.raises(ZeroDivisionError), replacing(folder):
            raise ZeroDivisionError
        assert contents(folder) in (pure[1], pure[2])
        ends.add(contents(folder) == pure[1])
        export(folder, seed=3)
        assert contents(folder) == pure[3]
        assert sorted(path.name for path in folder.iterdir()) == sorted(FOLDERS), "nothing is left"
        if code == 0:
            break
    else:
        pytest.fail("it never got to its end")
    assert ends == {True, False}


@pytest.mark.parametrize("where", ["tarfile.open", "tarfile.TarFile.add", "pathlib.Path.write_text"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    export(tmp_path / "out", seed=1)
    before = contents(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bundle: Callable[..., object] = write_bundle

    def on_a_full_disk(*args: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            bundle(*args)

    monkeypatch.setattr(sagemaker, "write_bundle", on_a_full_disk)
    monkeypatch.setitem(globals(), "write_bundle", on_a_full_disk)
    with pytest.raises(ExportError, match="No space left on device"):
        export(tmp_path / "out", seed=2)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FOLDERS)


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_one_at_work_beside_it_is_left_alone(tmp_path: Path) -> None:
    export(tmp_path / "one", seed=1)
    export(tmp_path / "two", seed=2)
    with replacing(tmp_path / "out") as staging:
        (staging / "half").mkdir()
        export(tmp_path / "out", seed=2)
        assert (staging / "half").exists()
        (tmp_path / "one" / "onnx").rename(staging / "onnx")
        (staging / "half").rmdir()
    assert contents(tmp_path / "out")["onnx"] != contents(tmp_path / "two")["onnx"]
    assert contents(tmp_path / "out")[FOLDER] == contents(tmp_path / "two")[FOLDER]


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_exports_that_begin_at_once_leave_each_others_folders_alone(tmp_path: Path) -> None:
    """Each looks for what killed ones have left when another one has made its folder and not begun."""
    for turn in range(20):
        output, together = tmp_path / str(turn), Barrier(4)

        def one(name: str, output: Path = output, together: Barrier = together) -> None:
            together.wait()
            with replacing(output) as staging:
                (staging / name).mkdir()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, "abcd"))
        assert sorted(path.name for path in output.iterdir()) == list("abcd")


def test_a_file_of_somebody_else_in_the_bundle_is_not_taken_away(tmp_path: Path) -> None:
    export(tmp_path, seed=1)
    check_replaceable(tmp_path / FOLDER, FILES)
    (tmp_path / FOLDER / "deploy.sh").write_text("mine")
    before = contents(tmp_path)
    for attempt in (lambda: check_replaceable(tmp_path / FOLDER, FILES), lambda: export(tmp_path, seed=2)):
        with pytest.raises(UsageError, match=r"in the way and was not written by an export: deploy\.sh"):
            attempt()
    assert contents(tmp_path) == before
