"""The demo's part on the cluster: deploy, ingest, prove, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters, delete_index, read_index
from oskit.cluster.ingest.load import IngestReport, ingest
from oskit.cluster.models.deploy import deploy_archive
from oskit.cluster.models.retire import delete_model
from oskit.demo.plan import APPROXIMATE_THRESHOLD, IndexPlan
from oskit.demo.remembering import Memory, RememberingEncoder
from oskit.demo.result import DemoIndex, DemoReport
from oskit.demo.steps import Steps
from oskit.errors import IndexingError, OskitError
from oskit.evaluation.live.result import VerificationReport
from oskit.evaluation.live.verify import verify

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.models.deploy import DeployedModel
    from oskit.data.collection import Collection
    from oskit.demo.export import DemoArchives

DEPTH = 100
"""Hits that are compared for each query."""


@dataclass
class ClusterJob:
    """Deploys the archives, then makes and proves one index after the other, and fills the report."""

    client: OpenSearch
    collection: Collection
    archives: DemoArchives
    report: DemoReport
    steps: Steps
    _models: dict[str, DeployedModel] = field(default_factory=dict, init=False)
    _indexes: list[str] = field(default_factory=list, init=False)
    _memory: Memory = field(default_factory=dict, init=False)

    def deploy(self, *, configure: bool) -> None:
        """Deploy every archive; each model's predictions are compared with the archive's.

        Args:
            configure: Whether settings that stand in the way may be changed.

        Raises:
            ModelError: A model cannot be deployed, or predicts something else.
        """
        for archive in self.archives.all():
            with self.steps.step(f"Deploy {archive.path.name}") as step:
                model = deploy_archive(
                    self.client,
                    archive,
                    name=archive.name,
                    replace=True,  # an older demo's model of the name gives way
                    configure_cluster=configure,
                    notify=self._say,
                )
                self._models[archive.sha256] = model
                self.report.models.append(model)
                step.result = f"{model.state}, largest difference {model.max_difference or 0:.1e}"

    def _say(self, text: str) -> None:
        self.steps.tell(f"    {text}")

    def prove(self, plan: IndexPlan) -> None:
        """Make the index of a plan, load the collection into it, and verify it.

        Raises:
            OskitError: Loading failed, or the cluster refused a query.
        """
        archive = self.archives.encoders[plan.model_format]
        query_archive = self.archives.tokenizer if plan.inference_free else None
        encoder = ArchiveEncoder.open(archive, query=query_archive)
        query_model = self._models[(query_archive or archive).sha256].model_id
        loaded = self._ingest(plan, encoder, self._models[archive.sha256].model_id, query_model)
        proof = self._verify(plan, encoder, query_model)
        self.report.indexes.append(
            DemoIndex(plan.label, archive.model_format, plan.encode, loaded.to_dict(), proof)
        )

    def _ingest(
        self, plan: IndexPlan, encoder: ArchiveEncoder, model_id: str, query_model_id: str
    ) -> IngestReport:
        existing = read_index(self.client, plan.index)
        if existing is None or existing.encode is not None:
            self._indexes.append(plan.index)  # an index that oskit did not make is refused, and stays
        with self.steps.step(f"Ingest into {plan.index}") as step:
            threshold = APPROXIMATE_THRESHOLD if plan.approximate else None
            parameters = SparseVectorParameters(approximate_threshold=threshold)
            loaded = ingest(
                self.client,
                plan.index,
                self.collection.documents(),
                encode=plan.encode,
                encoder=encoder,
                model_id=model_id if plan.encode == "cluster" else None,
                query_model_id=query_model_id,
                settings=IndexSettings(plan.kind, sparse_vector=parameters),
                recreate=True,
            )
            if plan.approximate:
                # One segment, so that every document is searched in the same way.
                with cluster_errors(f"merge the index {plan.index!r}", IndexingError):
                    self.client.indices.forcemerge(index=plan.index, params={"max_num_segments": 1})
            rate = loaded.docs_per_second
            step.result = f"{loaded.indexed:,} documents, {loaded.refused:,} refused, {rate:.0f}/s"
        return loaded

    def _verify(self, plan: IndexPlan, encoder: ArchiveEncoder, query_model_id: str) -> VerificationReport:
        is_first = not self.report.indexes
        with self.steps.step(f"Verify {plan.index}") as step:
            proof = verify(
                self.client,
                plan.index,
                self.collection,
                RememberingEncoder(encoder, self._memory),
                by="model",
                model_id=query_model_id,
                k=DEPTH,
                baseline_bm25=is_first,
                two_phase=is_first,
            )
            quality = proof.run("cluster").quality["nDCG@10"]
            verdict = "agrees" if proof.passed else "DISAGREES"
            step.result = f"nDCG@10 {quality:.4f}, {verdict} with the exact scores"
        return proof

    def clean_up(self) -> None:
        """Delete the indexes and the models that this job made; models that were there before stay."""
        made = [model.model_id for model in self._models.values() if not model.reused]
        self._say("Deleting what the demo made")
        for index in self._indexes:
            self._attempt(delete_index, index)
        for model_id in made:
            self._attempt(delete_model, model_id)

    def _attempt(self, delete: Callable[[OpenSearch, str], None], name: str) -> None:
        """Say what cannot be deleted, and go on: it must not hide the failure that may have led here."""
        try:
            delete(self.client, name)
        except OskitError as error:
            self._say(str(error))
