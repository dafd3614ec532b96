"""What the demo found: the schema of its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from oskit.cluster.models.deploy import DeployedModel
from oskit.demo.steps import Step
from oskit.errors import VerificationError
from oskit.evaluation.live.result import VerificationReport

DEMO_SCHEMA = "oskit.demo/1"


@dataclass
class DemoIndex:
    """One index: how it was loaded, and the proof. ``model_format`` is that of the documents' encoder."""

    label: str
    model_format: str
    encode: str
    ingest: dict[str, Any]
    verification: VerificationReport


@dataclass
class DemoReport:
    """Everything the demo did.

    Attributes:
        created: ISO 8601, UTC.
        training: What training brought, before and after; None if the encoder was taken as it is.
        url: Where the cluster is, for a node that runs on.
    """

    created: str
    machine: dict[str, Any]
    load: dict[str, Any]
    collection: dict[str, Any]
    training: dict[str, Any] | None = None
    archives: list[dict[str, Any]] = field(default_factory=list)
    models: list[DeployedModel] = field(default_factory=list)
    indexes: list[DemoIndex] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0
    url: str | None = None

    @property
    def failures(self) -> list[str]:
        """Why the proof failed, one line for each reason; empty if it did not."""
        found = []
        for index in self.indexes:
            refused = index.ingest["refused"]
            if refused:
                found.append(f"{index.label}: {refused} documents were refused")
            found.extend(f"{index.label}: {line}" for line in index.verification.failures)
        return found

    @property
    def passed(self) -> bool:
        """Whether every index retrieves what it should."""
        return bool(self.indexes) and not self.failures

    def raise_for_disagreement(self) -> None:
        """Raise if anything disagreed.

        Raises:
            VerificationError: Names the first reason.
        """
        if failures := self.failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise VerificationError(f"{failures[0]}{more}", hint="The report lists each disagreement.")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; ``schema`` names its version."""
        own = {key: value for key, value in vars(self).items() if key != "url"}
        return {
            "schema": DEMO_SCHEMA,
            "passed": self.passed,
            "failures": self.failures,
            **own,
            "seconds": round(self.seconds, 1),
            "models": [asdict(model) for model in self.models],
            "indexes": [
                {**vars(index), "verification": index.verification.to_dict()} for index in self.indexes
            ],
            "steps": [asdict(step) for step in self.steps],
        }
