"""A repository in the Hub's cache on this machine: which of its commits are there, and whether whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from oskit.data.atomic import write_whole

_FILES = (
    *("*.json", "*.txt", "*.model", "neural_sparse_head.pt"),
    *("model.safetensors", "model-*.safetensors", "*/model.safetensors", "*/model-*.safetensors"),
)
_NOT_NEEDED = ("onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*", ".*", "*/.*")

NEWEST = "main"
"""The branch that is meant where no revision is named."""


@dataclass(frozen=True)
class CachedRepository:
    """Branches and tags in ``refs`` point to commits; each has its files in a folder of ``snapshots``.

    Attributes:
        cache: Folder of the whole cache.
        code: Whether its Python files are wanted.
    """

    name: str
    cache: Path
    code: bool

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        from huggingface_hub.file_download import repo_folder_name

        return self.cache / repo_folder_name(repo_id=self.name, repo_type="model")

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        return self.folder / "snapshots" / commit

    def complete(self, revision: str | None) -> tuple[str | None, list[str]]:
        """The commit to use for a revision, and why it may not be the one that was asked for.

        Args:
            revision: A branch, tag or commit stands for itself alone; None for the newest that is complete.

        Returns:
            The commit, None if there is none that is complete; and a line each on what is missing.
        """
        refs = self.refs()
        asked = refs.pop(revision or NEWEST, revision)
        folders = (path for path in (self.folder / "snapshots").glob("*") if path.is_dir())
        ages = {path.name: path.stat().st_mtime for path in folders}
        # What another branch or tag points to was asked for by that name.
        commits = sorted(ages, key=lambda commit: (commit != asked, commit in refs.values(), -ages[commit]))
        if revision not in (None, NEWEST):
            commits = [commit for commit in commits if commit == asked]
        missing = {
            commit: self._missing(commit, [older for older in ages if ages[older] < ages[commit]])
            for commit in commits
        }
        found = next((commit for commit in commits if missing[commit] is None), None)
        why = [
            f"of commit {commit[:12]} the cache lacks {missing[commit]}"
            for commit in commits
            if missing[commit] and (found is None or commit == asked or ages[commit] > ages[found])
        ]
        if found != asked and asked not in ages:
            why.append(f"the cache has no revision {revision or NEWEST!r}")
        return found, why

    def refs(self) -> dict[str, str]:
        """The commit of each branch and tag."""
        folder = self.folder / "refs"
        files = [path for path in folder.rglob("*") if path.is_file()]
        # Other programs leave files of their own there, such as .DS_Store, which are no text.
        return {
            path.relative_to(folder).as_posix(): path.read_text("utf-8", "replace").strip() for path in files
        }

    def point(self, revision: str, commit: str) -> None:
        """Let a branch or tag point to a commit whose files are all there."""
        ref = self.folder / "refs" / revision
        if revision == commit or self.refs().get(revision) == commit:
            return
        with suppress(OSError):  # a cache that must not be written serves all the same
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, commit)

    def _missing(self, commit: str, older: Sequence[str]) -> str | None:
        """What the cache lacks of a commit, in words; None if nothing."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        folder = self.snapshot(commit)
        try:
            entries = get_cached_repo_tree(self.name, revision=commit, cache_dir=self.cache)
            return missing_from(folder, self.needed(entry.path for entry in entries))
        except CachedRepoTreeNotFoundError:
            # Brought by a program that asked for one file after the other, so that nobody knows all of them:
            # what older commits have belongs to it, and so do weights.
            folders = [folder, *map(self.snapshot, older)]
            there = [path.relative_to(each).as_posix() for each in folders for path in each.rglob("*")]
            files = self.needed(there)
            weights = any(file.endswith((".safetensors", ".bin")) for file in files)
            return missing_from(folder, files) or (None if weights else "weights")

    def needed(self, files: Iterable[str]) -> list[str]:
        """Those of its files that an encoder needs: older weights only for want of safetensors."""
        files = sorted(file for file in set(files) if not _matches(file, _NOT_NEEDED))
        needed = [file for file in files if _matches(file, (*_FILES, *(["*.py"] if self.code else [])))]
        paths = [PurePosixPath(file) for file in needed]
        models = {path.parent for path in paths if path.name == "config.json"}
        bare = models - {path.parent for path in paths if path.suffix == ".safetensors"}
        older = [file for file in files if _matches(file, ("pytorch_model*.bin*", "*/pytorch_model*.bin*"))]
        return needed + [file for file in older if PurePosixPath(file).parent in bare]


def _matches(file: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in patterns)


def missing_from(folder: Path, files: Iterable[str]) -> str | None:
    """Which of the files a folder lacks, in words; None if it has them all."""
    missing = [file for file in files if not (folder / file).is_file()]
    return ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "") or None
