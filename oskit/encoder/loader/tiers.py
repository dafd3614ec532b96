"""Where an encoder is looked for: a local folder, else the Hub, else a base encoder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from oskit.encoder.loader import hub
from oskit.encoder.loader.layouts import Layout, detect_layout
from oskit.encoder.loader.report import LoadAttempt, Outcome, Tier
from oskit.errors import EncoderError, EncoderNotFoundError, UsageError

DEFAULT_BASE = "distilbert/distilbert-base-uncased"
"""The base encoder of the third tier; OpenSearch's own distilled models started from it."""


@dataclass(frozen=True)
class Found:
    """A folder that holds an encoder, where it came from, and what to warn of."""

    tier: Tier
    source: str
    revision: str | None
    layout: Layout
    reason: str
    warning: str | None = None


@dataclass
class Search:
    """A search for an encoder over the tiers; every place that was looked at stands in ``attempts``.

    Args:
        options: How to ask the Hub.
    """

    options: hub.HubOptions
    attempts: list[LoadAttempt] = field(default_factory=list)

    def find(self, name: str, base: str | None) -> Found:
        """The encoder called ``name``, else the base encoder.

        Args:
            name: A folder, or a repository on the Hub.
            base: The same for the last tier; None to have no last tier.

        Raises:
            EncoderNotFoundError: No tier has it.
            EncoderError: A tier has it, and it is broken or refused.
            UsageError: The name is empty or that of a file.
        """
        found = self._folder(name, "local") or self._repository(name, "hub")
        if found is None and base is not None:
            # A base is another encoder: the revision that was asked for is not one of it.
            search = Search(replace(self.options, revision=None), self.attempts)
            found = search._folder(base, "base") or search._repository(base, "base")
        if found is None:
            raise EncoderNotFoundError(
                f"no encoder {name!r}: {'; '.join(map(str, self.attempts))}",
                hint="Give the folder of an encoder or the name of a repository on the Hugging Face Hub.",
            )
        return found

    def loaded(self, found: Found, what: str) -> tuple[LoadAttempt, ...]:
        """All attempts, with the one that was taken at the end."""
        self._note(found.tier, found.source, "loaded", f"{found.reason}; {what}")
        return tuple(self.attempts)

    def _note(self, tier: Tier, location: str, outcome: Outcome, reason: str) -> None:
        self.attempts.append(LoadAttempt(tier, location, outcome, reason))

    def _folder(self, name: str, tier: Tier) -> Found | None:
        if not name.strip() or "\0" in name:
            raise UsageError(
                "the name of the encoder is empty", hint="Give a folder or the name of a repository."
            )
        try:
            path = Path(name).expanduser()
            is_folder, exists = path.is_dir(), path.exists()
        except PermissionError as error:
            raise EncoderError(
                f"{name} cannot be looked at: {error.strerror}", hint="Check its permissions."
            ) from error
        except (OSError, RuntimeError) as error:  # too long, no such user
            self._note(tier, name[:200], "missing", f"no folder: {getattr(error, 'strerror', '') or error}")
            return None
        if is_folder:
            layout = detect_layout(path)
            unused = "; a folder has no revision" if tier == "local" and self.options.revision else ""
            return Found(tier, str(path), None, layout, f"a folder, laid out as {layout.kind}{unused}")
        if exists:
            hint = "Give the folder of an encoder."
            if path.suffix == ".zip":
                hint = "An archive is opened with ArchiveEncoder.open(); `oskit encode` takes it as it is."
            raise UsageError(f"{path} is a file, not the folder of an encoder", hint=hint)
        self._note(tier, str(path), "missing", "no such folder")
        return None

    def _repository(self, name: str, tier: Tier) -> Found | None:
        location = f"{hub.endpoint()}/{name}"
        if not hub.is_repository_name(name):
            self._note(tier, name, "skipped", "a path, not the name of a repository on the Hub")
            return None
        try:
            snapshot = hub.fetch(name, self.options)
        except hub.NotOnHubError as error:
            self._note(tier, location, "missing", error.message)
            return None
        except hub.HubUnreachableError as error:
            self._note(tier, location, "unreachable", error.message)
            return None
        layout = detect_layout(snapshot.folder)
        reason = f"{snapshot.reason}, laid out as {layout.kind}"
        return Found(tier, name, snapshot.revision, layout, reason, snapshot.warning)
