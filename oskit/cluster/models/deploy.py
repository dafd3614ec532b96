"""From an archive to a deployed model that predicts what the archive does.

The same content is one model: it is found by its sha256 and reused, finished or deployed, whatever state an
earlier run left it in. A run that fails removes what it made.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_fields
from typing import Any, NamedTuple

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import Archive
from oskit.cluster.client.failures import cluster_errors, error_class
from oskit.cluster.client.retry import is_transient, policy_of, with_retries
from oskit.cluster.client.server_words import UNDER_WAY, Meaning, meaning
from oskit.cluster.models.deployment_plan import DeploymentPlan, plan_deployment
from oskit.cluster.models.predict import is_ready
from oskit.cluster.models.prediction_parity import Expectation, compare_predictions, expectation
from oskit.cluster.models.preflight import configure, raise_for_problems
from oskit.cluster.models.registry import (
    IN_MEMORY_STATES,
    ModelInfo,
    delete_empty_group,
    delete_model,
    existing_model,
    get_model,
    pipelines_using,
    placement,
    request,
    undeploy_model,
    wait_until,
)
from oskit.cluster.models.upload import (
    Notify,
    Progress,
    chunks_present,
    register,
    resolve_group,
    upload,
)
from oskit.errors import ClusterError, ModelError, OskitError, UntrainedEncoderError

DEPLOY_ATTEMPTS = 4
DEPLOY_PAUSE_S = 5.0
"""A memory breaker that opened because of the upload closes once the garbage of it is collected."""

LOST_AFTER_S = 5.0
"""An unfinished task that no node has known for so long is lost with the node that ran it."""

ALL_NODES_WAIT_S = 30.0
"""The cluster counts the nodes of a model anew every 10 s."""

FINISHED_TASKS = frozenset(
    {"COMPLETED", "COMPLETED_WITH_ERROR", "FAILED", "CANCELLED", "EXPIRED", "UNREACHABLE"}
)


@dataclass(frozen=True)
class DeployedModel:
    """A model that answers.

    Attributes:
        model_id: For queries and pipelines.
        name: As registered.
        version: Counted by the cluster.
        state: ``DEPLOYED``, or ``PARTIALLY_DEPLOYED`` if some nodes could not load it.
        function_name: ``SPARSE_ENCODING`` or ``SPARSE_TOKENIZE``.
        model_format: ``ONNX`` or ``TORCH_SCRIPT``.
        sha256: Of the archive.
        reused: Whether the cluster had it deployed already.
        max_difference: Largest difference of a weight between the cluster and the archive; None if they were
            not compared.
        compared_texts: How many texts were compared.
        replaced: Ids of older models of this name that were deleted.
        kept: Ids of older models of this name that stay, because pipelines use them.
        max_length: Tokens that it reads of a text; None where the archive has no manifest.
    """

    model_id: str
    name: str
    version: str
    state: str
    function_name: str
    model_format: str
    sha256: str
    reused: bool
    max_difference: float | None = None
    compared_texts: int = 0
    replaced: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    max_length: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def deploy_archive(
    client: OpenSearch,
    archive: Archive,
    *,
    name: str | None = None,
    group: str | None = None,
    replace: bool = False,
    configure_cluster: bool = False,
    allow_untrained: bool = False,
    redeploy: bool = False,
    wait_s: float = 600,
    progress: Progress | None = None,
    notify: Notify | None = None,
    compare: bool = True,
) -> DeployedModel:
    """Make the cluster predict what the archive does, and prove that it does.

    Args:
        client: The cluster.
        archive: From :func:`oskit.archive.archive.open_archive`.
        name: Name of the model; None takes the archive's. A name of your own makes a model of its own, even
            if the same content is there by another name.
        group: Name or id of the model group; one of this name is made if there is none.
        replace: Where models of this name and format have other content: delete them once the new one answers
            right.
            Models that a pipeline uses are kept.
        configure_cluster: Change the settings that stand in the way.
        allow_untrained: Accept an archive whose projection is random.
        redeploy: Deploy the model again if it is deployed already, as to bring it to nodes that lack it. The
            nodes that have it go on answering.
        wait_s: Limit of the deployment, after the upload, in seconds.
        progress: Told what happens, bytes done and bytes in all (0 if it has no size).
        notify: Told what a person should know: changed settings, nodes that lack the model, models that stay.
        compare: Compare the predictions with the archive's own on a handful of texts.

    Raises:
        UntrainedEncoderError: The archive's projection is random.
        ClusterSettingsError: A setting or a breaker stands in the way; the hint has the call that changes it.
        PredictionMismatchError: The model predicts something else than its archive.
        ModelError: Another model has the name, or the model cannot be uploaded or deployed. What this run
            made is removed again.
    """
    if not allow_untrained and archive.manifest is not None and archive.manifest.source.head == "random":
        raise UntrainedEncoderError(
            f"{archive.path} was exported with a random projection: it retrieves nothing useful",
            hint="Train the encoder first, or deploy it anyway with --allow-untrained",
        )
    run = _Deployment(client, archive, wait_s, progress or _silent, notify or _silent)
    expected = run.expectation() if compare else None
    plan = plan_deployment(client, archive, name=name, group=group)
    if plan.others and not replace and plan.action not in ("reuse", "await"):
        there = ", ".join(f"{model.model_id} ({model.state})" for model in plan.others)
        raise ModelError(
            f"The cluster has a model named {plan.name!r} with other content: {there}",
            hint="Put this one in its place with --replace, or give this one another name with --name",
        )
    if plan.name != (name or archive.name):
        run.notify(f"The cluster has this archive as {plan.name!r}; --name makes another model of it")
    run.prepare_cluster(plan, configure_cluster)
    if redeploy and plan.action == "reuse":
        plan = replace_fields(plan, action="deploy")
    deployed = run.execute(plan, group, expected)
    return run.replace_others(plan, deployed) if replace else deployed


class _Failure(NamedTuple):
    """Why a deployment failed, in the cluster's words and in ours, and whether some nodes have the model."""

    reason: str
    cause: Meaning
    partial: bool = False


_NODE_IS_GONE = Meaning(
    "", "deployment", "soon", "cluster", "the node that was loading it is gone or was restarted", "Try again"
)

_UNKNOWN = Meaning(
    "", "deployment", "never", "cluster", "the cluster could not load it", "The node's log says more"
)


def node_errors(error: str) -> str:
    """The distinct messages of a task's ``error``, in one line.

    Args:
        error: JSON of messages by node id; other text stays as it is.
    """
    try:
        by_node = json.loads(error)
    except ValueError:
        by_node = None
    messages = list(dict.fromkeys(map(str, by_node.values()))) if isinstance(by_node, dict) else [error]
    return " ".join("; ".join(messages).split()) or "no reason given"


def _silent(*_told: object) -> None:
    return None


@dataclass
class _Deployment:
    """One run: what it made, so that a failure can take it back."""

    _client: OpenSearch
    _archive: Archive
    _wait_s: float
    _progress: Progress
    notify: Notify
    _made_model: str | None = None
    _made_group: str | None = None
    _deployed: str | None = None
    _unknown_since: float | None = None  # when no node knew the task of the deployment any more

    def expectation(self) -> Expectation | None:
        """What the model must predict, found out before anything is sent."""
        self._progress("Running the archive here", 0, 0)
        expected = expectation(self._archive)
        if expected is None:
            self.notify(
                f"{self._archive.path.name} cannot run here and has no probes: its predictions are not "
                "compared. Install torch, or deploy the ONNX archive"
            )
        return expected

    def prepare_cluster(self, plan: DeploymentPlan, configure_cluster: bool) -> None:
        """Change the settings in the way, or refuse because of them."""
        if not configure_cluster:
            raise_for_problems(plan.problems)
            return
        for setting, value in configure(self._client, plan.problems).items():
            self.notify(f"Changed the cluster's setting {setting} to {value}")
        raise_for_problems([problem for problem in plan.problems if problem.value is None])

    def execute(self, plan: DeploymentPlan, group: str | None, expected: Expectation | None) -> DeployedModel:
        """Upload, deploy and compare what the plan says; on a failure take back what was made."""
        try:
            model_id = self._registered(plan, group)
            model = self._deployed_model(model_id, plan)
            difference = None
            if expected is not None:
                self._progress("Comparing predictions", 0, 0)
                difference = compare_predictions(self._client, model, expected)
        except Exception as error:
            self._take_back(error)
            raise
        except KeyboardInterrupt:
            if self._made_model is not None:
                self.notify(
                    f"The model {self._made_model} is unfinished: the same command goes on with it, "
                    f"`oskit delete {self._made_model}` removes it"
                )
            raise
        return DeployedModel(
            model_id=model.model_id,
            name=model.name,
            version=model.version,
            state=model.state,
            function_name=model.function_name,
            model_format=self._archive.model_format,
            sha256=self._archive.sha256,
            reused=plan.action in ("reuse", "await"),
            max_difference=difference,
            compared_texts=len(expected.texts) if expected is not None else 0,
            max_length=self._archive.manifest.max_length if self._archive.manifest is not None else None,
        )

    def _registered(self, plan: DeploymentPlan, group: str | None) -> str:
        """The id of the model, uploaded whole."""
        if plan.model is not None:
            model_id = plan.model.model_id
            if plan.action == "resume":
                self._made_model = model_id
                self.notify(f"Going on with the interrupted upload of {model_id}")
                present = chunks_present(self._client, model_id)
                upload(self._client, self._archive, model_id, self._progress, present)
            return model_id
        group_id = None  # lets the cluster make one of the model's name
        if group is not None:
            group_id, made = resolve_group(self._client, group, self._archive.description)
            self._made_group = group_id if made else None
        self._made_model = register(self._client, self._archive, name=plan.name, group_id=group_id)
        upload(self._client, self._archive, self._made_model, self._progress)
        return self._made_model

    def _deployed_model(self, model_id: str, plan: DeploymentPlan) -> ModelInfo:
        if plan.action == "reuse" and plan.model is not None:
            if is_ready(self._client, plan.model):
                self._tell_missing_nodes(plan.model)
                return plan.model
            self.notify(f"The model {model_id} is called DEPLOYED but does not answer: deploying it again")
        end = time.monotonic() + self._wait_s
        if plan.action != "await":  # else another run is deploying it right now
            self._deploy_with_patience(model_id, end)
        model = self._wait_for_answers(model_id, end)
        if model is not None and model.state == "DEPLOY_FAILED":
            # The cluster's own check can call it so after a restart, whatever the task said.
            self.notify(f"The cluster calls the deployment of {model_id} failed: deploying it again")
            self._deploy_with_patience(model_id, end)
            model = self._wait_for_answers(model_id, end)
        if model is None or model.state == "DEPLOY_FAILED":
            problem = "answers nothing once it is deployed" if model is None else "could not be deployed"
            raise ModelError(f"The model {model_id} {problem}", hint="Deploy it again to see why")
        if not model.is_on_all_nodes:
            wait_s = min(ALL_NODES_WAIT_S, end - time.monotonic())
            wait_until(lambda: self._now(model_id).is_on_all_nodes, wait_s=wait_s)
            model = self._now(model_id)
        self._tell_missing_nodes(model)
        return model

    def _now(self, model_id: str) -> ModelInfo:
        return existing_model(self._client, model_id, "deployment")

    def _tell_missing_nodes(self, model: ModelInfo) -> None:
        if not model.is_on_all_nodes:
            self.notify(
                f"The model {model.model_id} is {placement(self._client, model)}. "
                "Bring it to all with: oskit deploy ARCHIVE --redeploy"
            )

    def _wait_for_answers(self, model_id: str, end: float) -> ModelInfo | None:
        """The model once it answers or its deployment failed; None after ``end``."""
        wait_s = max(10.0, end - time.monotonic())
        return wait_until(lambda: self._answering(model_id), wait_s=wait_s, max_pause_s=1.0)

    def _answering(self, model_id: str) -> ModelInfo | None:
        model = self._now(model_id)
        self._progress(f"Deploying: {model.state}", 0, 0)
        if model.state == "DEPLOY_FAILED":
            return model
        return model if model.is_deployed and is_ready(self._client, model) else None

    def _deploy_with_patience(self, model_id: str, end: float) -> None:
        """Deploy, again after a pause where the reason may pass by itself."""
        attempts = 0
        while True:
            failure = self._deploy_once(model_id, end)
            if failure is None:
                return
            reason, cause, partial = failure
            attempts += cause is not UNDER_WAY
            is_over = attempts == DEPLOY_ATTEMPTS or time.monotonic() + DEPLOY_PAUSE_S > end
            if is_over or cause.passes != "soon":
                if partial:
                    self.notify(f"Some nodes cannot load the model: {cause.means} ({reason})")
                    return
                raise error_class(cause, ModelError)(
                    f"The model {self._archive.name!r} cannot be deployed: {cause.means} ({reason})",
                    hint=cause.do,
                )
            where = "on all nodes " if partial else ""
            self.notify(f"Not deployed {where}yet, trying again in {DEPLOY_PAUSE_S:g} s: {cause.means}")
            time.sleep(DEPLOY_PAUSE_S)

    def _deploy_once(self, model_id: str, end: float) -> _Failure | None:
        """Deploy and wait; None if all nodes have the model."""
        self._deployed, self._unknown_since = model_id, None
        task_id = self._start_deployment(model_id)
        task = wait_until(
            lambda: self._finished(task_id, model_id),
            wait_s=max(0.0, end - time.monotonic()),
            max_pause_s=1.0,
        )
        if task is None:
            raise ModelError(
                f"The model {self._archive.name!r} is not deployed after {self._wait_s:g} s",
                hint="Wait longer with --wait, or look at the node's log and load",
            )
        if task["state"] == "COMPLETED":
            return None
        if task["state"] == "LOST":
            return _Failure(f"the task {task_id} is lost", _NODE_IS_GONE)
        reason = node_errors(str(task.get("error") or f"the task is {task['state']}"))
        cause = meaning(reason, None, "deployment") or _UNKNOWN
        return _Failure(reason, cause, partial=task["state"] == "COMPLETED_WITH_ERROR")

    def _start_deployment(self, model_id: str) -> str | None:
        """The id of the task; None if the answer was lost, but the model is being deployed."""

        def attempt() -> str | None:
            try:
                return str(request(self._client, "POST", f"/models/{model_id}/_deploy")["task_id"])
            except TransportError as failure:
                if is_transient(failure):
                    model = get_model(self._client, model_id)
                    # A second deployment beside the first would make both fail with a version conflict.
                    if model is not None and model.state in IN_MEMORY_STATES:
                        return None
                raise

        with cluster_errors(f"deploy {self._archive.name!r}", ModelError, "deployment"):
            return with_retries(attempt, policy_of(self._client))

    def _finished(self, task_id: str | None, model_id: str) -> dict[str, Any] | None:
        """The task once it is finished; the model's state stands in for a task that we do not know."""
        if task_id is None:
            return {"state": "COMPLETED"} if self._answering(model_id) else None
        with cluster_errors("watch the deployment", ModelError):
            task: dict[str, Any] = request(self._client, "GET", f"/tasks/{task_id}")
        self._progress(f"Deploying: {task['state']}", 0, 0)
        if task["state"] in FINISHED_TASKS:
            return task
        return {"state": "LOST"} if self._is_lost(task_id) else None

    def _is_lost(self, task_id: str) -> bool:
        """Whether the task's node was restarted: the record of such a task stays unfinished for ever."""
        try:
            known = request(self._client, "GET", f"/profile/tasks/{task_id}").get("nodes")
        except TransportError:  # such as a user who may not see profiles
            known = True
        now = time.monotonic()
        self._unknown_since = None if known else self._unknown_since or now
        return self._unknown_since is not None and now - self._unknown_since > LOST_AFTER_S

    def _take_back(self, error: Exception) -> None:
        """Remove what this run made; if that fails too, say what is left."""
        self._progress("Cleaning up", 0, 0)
        left = self._made_model
        try:
            if self._made_model is not None:
                delete_model(self._client, self._made_model, force=True)
            elif self._deployed is not None:
                undeploy_model(self._client, self._deployed)
            left = None
            if self._made_group is not None:
                delete_empty_group(self._client, self._made_group)
        except ClusterError as second:
            self.notify(f"Cleaning up failed too: {second.message}")
        if left is not None:
            note = (
                f"The unfinished model {left} is still there: deploy again to go on, or: oskit delete {left}"
            )
            if isinstance(error, OskitError):
                error.hint = f"{error.hint}. {note}" if error.hint else note
            else:
                self.notify(note)

    def replace_others(self, plan: DeploymentPlan, deployed: DeployedModel) -> DeployedModel:
        """Delete the older models of the name, except those that pipelines use."""
        replaced: list[str] = []
        kept: list[str] = []
        for other in plan.others:
            users = pipelines_using(self._client, other.model_id)
            if users:
                kept.append(other.model_id)
                self.notify(
                    f"The older model {other.model_id} stays, because it is used by the "
                    f"{' and the '.join(users)}"
                )
            else:
                self._progress("Removing the older model", 0, 0)
                delete_model(self._client, other.model_id)
                replaced.append(other.model_id)
        return replace_fields(deployed, replaced=tuple(replaced), kept=tuple(kept))
