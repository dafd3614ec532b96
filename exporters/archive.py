"""Writing an archive: the zip, its register body and its manifest, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from oskit.archive.archive import REGISTER_BODY_NAME, Archive
from oskit.archive.manifest import MANIFEST_NAME, Manifest
from oskit.errors import ExportError, UsageError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 22
_STAGING, _WHOLE = ".export-", ".whole"


def write_zip(path: Path, files: Mapping[str, bytes | Path]) -> None:
    """Zip ``files`` (contents, or paths of them) so that the same files are the same bytes.

    Nothing is compressed: weights hardly shrink, and a compressor's output differs between its versions.
    """
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def write_beside(archive: Archive, manifest: Manifest) -> None:
    """Write the register body and the manifest beside the zip."""
    body = json.dumps(archive.register_body(), indent=2, ensure_ascii=False) + "\n"
    archive.path.with_name(REGISTER_BODY_NAME).write_text(body, encoding="utf-8")
    archive.path.with_name(MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def check_replaceable(folder: Path, bringing: Collection[str] = ()) -> None:
    """Refuse to write an archive where something else than an archive of ours lies.

    An archive of any version of oskit may be replaced, even one whose manifest cannot be read any more.

    Args:
        bringing: Names of files that the new folder has besides an archive's.

    Raises:
        UsageError: The folder holds something that no export wrote.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    others: list[str] = []
    if folder.is_dir() and not folder.is_symlink():
        names = {path.name for path in folder.iterdir()} - set(bringing)
        zips = {name for name in names if name.endswith(".zip")}
        others = sorted(names - zips - {MANIFEST_NAME, REGISTER_BODY_NAME})
        described = (folder / MANIFEST_NAME).is_file()
        if not names or (not others and len(zips) <= 1 and described):
            return
    found = f": {', '.join(others[:3])}" if others else ""
    raise UsageError(
        f"{folder} is in the way and was not written by an export{found}",
        hint="Choose another folder with -o; nothing was changed.",
    )


@contextmanager
def replacing(output_dir: Path) -> Iterator[Path]:
    """A folder to write an export to, which takes the place of its namesakes in ``output_dir`` at the end.

    Only the folders that were written are replaced, all of them or none: after an error nothing has changed.
    A process that is killed between two of them leaves the rest to the next export into ``output_dir``.

    Raises:
        ExportError: The output cannot be written.
        UsageError: A folder that would be replaced holds something that no export wrote.
    """
    is_new = not output_dir.exists()
    with ExitStack() as at_work:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            with _at_work(output_dir, wait=True):  # what another export makes here is at work at once
                for left in output_dir.glob(f"{_STAGING}*"):
                    _go_on(left)
                staging = Path(mkdtemp(prefix=_STAGING, dir=output_dir))
                at_work.enter_context(_at_work(staging))
        except OSError as error:
            raise ExportError(
                f"cannot write to {output_dir}: {error.strerror}", hint="Choose another folder with -o."
            ) from error
        try:
            yield staging
            _swap(staging)
        except OSError as error:
            raise ExportError(
                f"cannot write the export to {output_dir}: {error.strerror or error}",
                hint="Is the disk full? Choose another folder with -o.",
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # an export is in it
                    output_dir.rmdir()


def _swap(staging: Path) -> None:
    """Put each folder in the place of its namesake beside ``staging``; none after an error."""
    (staging / _WHOLE).touch()
    with ExitStack() as undo:
        for folder in sorted(path for path in staging.iterdir() if path.is_dir() and path.name[0] != "."):
            target = staging.parent / folder.name
            # Someone may have put files there in the meantime.
            is_archive = (folder / MANIFEST_NAME).exists()
            check_replaceable(target, () if is_archive else {path.name for path in folder.iterdir()})
            if target.exists():
                _move(target, staging / f".old-{folder.name}", undo)
            _move(folder, target, undo)
        undo.pop_all()


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    def back() -> None:
        if target.exists() and not source.exists():
            target.rename(source)

    undo.callback(back)  # before: an interruption may come as soon as it has moved
    source.rename(target)


def _go_on(staging: Path) -> None:
    """End what an export that was killed had begun: put its folders in place, if they were all whole."""
    with _at_work(staging) as is_ours:
        if not is_ours:
            return
        if (staging / _WHOLE).exists():
            try:
                _swap(staging)
            except UsageError:  # somebody has put something else there since
                return
        with suppress(FileNotFoundError):  # it was not killed, and has just ended
            shutil.rmtree(staging)


@contextmanager
def _at_work(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on a folder, which ends with the process; False where there is none to be had."""
    if os.name != "posix":
        yield False
        return
    import fcntl

    try:
        opened = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # whoever it belonged to has ended
        yield False
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:  # another process has it, or the file system knows no locks
            is_held = False
        yield is_held
    finally:
        os.close(opened)


def file_stem(name: str, version: str, kind: str) -> str:
    """Name of the zip, without its suffix; what a file name cannot hold becomes ``-``.

    Raises:
        UsageError: Name or version is empty.
    """
    safe = [re.sub(r"[^\w.+-]+", "-", text).strip("-.") for text in (name, version)]
    if not all(safe):
        raise UsageError(
            f"the name {name!r} with the version {version!r} does not make a file name",
            hint="Give both letters or digits.",
        )
    return "-".join([*safe, kind])
