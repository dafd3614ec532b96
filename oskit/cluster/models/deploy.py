"""From an archive to a deployed model that predicts what the archive does.

The same content is one model: it is found by its sha256 and reused, finished or deployed, whatever state an
earlier run left it in, and of runs at the same time one makes it (:mod:`oskit.cluster.models.rivals`). A run
that fails removes what it made itself, and nothing else: what was deployed before it goes on serving.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_fields
from typing import Any, NamedTuple, Self

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import Archive
from oskit.cluster.client.failures import cluster_errors, error_class, heard
from oskit.cluster.client.retry import is_transient, policy_of, with_retries
from oskit.cluster.client.server_words import UNDER_WAY, Meaning, meaning
from oskit.cluster.models.chunks import chunks_present
from oskit.cluster.models.configuration import Configuration
from oskit.cluster.models.deployment_plan import DeploymentPlan, plan_deployment, refuse, refuse_untrained
from oskit.cluster.models.pause import until_not_paused
from oskit.cluster.models.predict import is_ready
from oskit.cluster.models.prediction_parity import Expectation, compare_predictions, expectation
from oskit.cluster.models.preflight import all_settings
from oskit.cluster.models.registry import (
    DEPLOYED_STATES,
    IN_MEMORY_STATES,
    ModelInfo,
    delete_empty_group,
    existing_model,
    get_model,
    groups_called,
    has_own_group,
    placement,
    request,
    wait_until,
)
from oskit.cluster.models.retire import delete_model, delete_own, undeploy_model
from oskit.cluster.models.rivals import earlier_model, follow_upload, models_of_content
from oskit.cluster.models.upload import (
    Notify,
    Progress,
    register,
    register_body,
    resolve_group,
    sequence_numbers,
    upload,
)
from oskit.errors import ClusterError, ModelError, OskitError, with_more

DEPLOY_ATTEMPTS = 4
DEPLOY_PAUSE_S = 5.0
"""A memory breaker that opened because of the upload closes once the garbage of it is collected."""

DRAIN_S = 60.0
"""How long an older model may go on answering before it is kept instead of replaced."""

PAUSE_WAIT_S = 60.0
"""How long another run may keep all local models paused."""

LOST_AFTER_S = 5.0
"""An unfinished task that no node has known for so long is lost with the node that ran it."""

ALL_NODES_WAIT_S = 30.0
"""The cluster counts the nodes of a model anew every 10 s."""

COUNTED_AGAIN_S = 15.0
"""After a failed deployment the cluster calls a model that nodes still hold DEPLOYED again by then."""

OWNER_WAIT_S = 3.0
"""How long the run that uploaded a model has to deploy it before another one does."""

SETTLE_S = 2.0
"""A run that fails and takes its model back has begun with it by then."""

ROUNDS = 3
"""How often to begin again where another run took back the model that this one waited for."""

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
        reused: Whether the cluster had it deployed already, or another run deployed it.
        max_difference: Largest difference of a weight between the cluster and the archive; None if they were
            not compared.
        compared_texts: How many texts were compared.
        replaced: Ids of older models of this name that were deleted.
        kept: Ids of older models of this name that stay: something refers to them, or they go on encoding.
        max_length: Tokens that it reads of a text; None where the archive has no manifest.
        shared: Whether another run, or the cluster after a restart, was at the model at the same time.
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
    shared: bool = False

    @classmethod
    def of(
        cls,
        model: ModelInfo,
        archive: Archive,
        expected: Expectation | None,
        *,
        difference: float | None,
        reused: bool,
        shared: bool = False,
    ) -> Self:
        """A model that answers for an archive, as it is now, and what comparing them gave."""
        return cls(
            model_id=model.model_id,
            name=model.name,
            version=model.version,
            state=model.state,
            function_name=model.function_name,
            model_format=archive.model_format,
            sha256=archive.sha256,
            reused=reused,
            max_difference=difference,
            compared_texts=len(expected.texts) if expected is not None else 0,
            max_length=archive.manifest.max_length if archive.manifest is not None else None,
            shared=shared,
        )

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
            right. Those are kept that a pipeline, an index or anything else refers to, and those that go on
            answering requests.
        configure_cluster: Change the settings that stand in the way; put back if the deployment fails.
        allow_untrained: Accept an archive whose projection is random.
        redeploy: Deploy the model again if it is deployed already, as to bring it to nodes that lack it. The
            nodes that have it go on answering, also if that fails.
        wait_s: Limit of the deployment, after the upload, in seconds.
        progress: Told what happens, bytes done and bytes in all (0 if it has no size).
        notify: Told what a person should know: changed settings, nodes that lack the model, models that stay.
        compare: Compare the predictions with the archive's own on a handful of texts.

    Raises:
        UntrainedEncoderError: The archive's projection is random.
        ClusterSettingsError: A setting or a breaker stands in the way; the hint has the call that changes it.
        PredictionMismatchError: The model predicts something else than its archive.
        ModelError: Another model has the name, or the model cannot be uploaded or deployed. What this run
            made is removed again; a model that was deployed before stays deployed.
    """
    if not allow_untrained:
        refuse_untrained(archive)
    run = _Deployment(client, archive, name, group, redeploy, wait_s, progress or _silent, notify or _silent)
    expected = run.expectation() if compare else None
    until_not_paused(client, wait_s=min(PAUSE_WAIT_S, wait_s), notify=run.notify)
    plan = run.plan()
    refuse(plan, replace=replace, configure_cluster=configure_cluster)
    if plan.name != (name or archive.name):
        run.notify(f"The cluster has this archive as {plan.name!r}; --name makes another model of it")
    deployed = run.execute(plan, expected, configure_cluster)
    others = plan.others if replace else ()
    return without_others(client, deployed, others, wait_s, notify=run.notify, progress=progress or _silent)


class _Failure(NamedTuple):
    """Why a deployment failed, in the cluster's words and in ours, and whether some nodes have the model."""

    reason: str
    cause: Meaning
    partial: bool = False


_NODE_IS_GONE = Meaning(
    "", "deployment", "soon", "cluster", "the node that was loading it is gone or was restarted", "Try again"
)

_ANSWER_IS_LOST = Meaning(
    "",
    "deployment",
    "soon",
    "cluster",
    "the answer to the deployment was lost",
    "Try again",
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
    """One run: what it made and what it met, so that a failure takes back the one and leaves the other."""

    _client: OpenSearch
    _archive: Archive
    _name: str | None
    _group: str | None
    _redeploy: bool
    _wait_s: float
    _progress: Progress
    notify: Notify
    _made_model: str | None = None
    _made_group: str | None = None
    _maybe_made: frozenset[str] = frozenset()  # by a registration whose answer was lost
    _model_id: str | None = None  # the model of this run, whoever made it
    _before: ModelInfo | None = None  # as it was, if it was there before this run
    _shared: bool = False
    _deployed_itself: bool = False
    _disproven: bool = False  # the model, not the cluster, is what is wrong
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

    def plan(self) -> DeploymentPlan:
        """What there is to do, as the cluster is now."""
        return plan_deployment(
            self._client, self._archive, name=self._name, group=self._group, redeploy=self._redeploy
        )

    def execute(
        self, plan: DeploymentPlan, expected: Expectation | None, configure_cluster: bool
    ) -> DeployedModel:
        """Upload, deploy and compare what the plan says; on a failure take back what was made and changed."""
        configuration = Configuration(self._client, self.notify)
        try:
            if configure_cluster:
                configuration.change(plan.problems)
            return self._until_it_stays(plan, expected)
        except Exception as error:
            self._take_back(error)
            configuration.put_back()
            raise
        except BaseException:  # Ctrl-C or a signal: quickly
            self._tell_what_is_left()
            configuration.put_back()
            raise

    def _until_it_stays(self, plan: DeploymentPlan, expected: Expectation | None) -> DeployedModel:
        """Begin again where the model vanishes, which another run may have made and taken back."""
        for rounds_left in reversed(range(ROUNDS)):
            try:
                return self._round(plan, expected)
            except ClusterError:
                if not rounds_left or not self._is_gone():
                    raise
            self.notify(f"The model {self._model_id} was deleted meanwhile: beginning again")
            self._made_model = self._before = None
            plan = self.plan()
        raise AssertionError("a round returns or raises")

    def _is_gone(self) -> bool:
        try:
            return self._model_id is not None and get_model(self._client, self._model_id) is None
        except ClusterError:
            return False

    def _round(self, plan: DeploymentPlan, expected: Expectation | None) -> DeployedModel:
        plan = self._whole(plan)
        model = self._deployed_model(plan)
        difference = self._compared(model, expected)
        if self._shared:  # the other run may fail in its comparison and take the model back
            time.sleep(SETTLE_S)
        now = self._now(model.model_id)
        if not now.is_deployed or (self._shared and not is_ready(self._client, now)):
            self.notify(f"The model {now.model_id} became {now.state} meanwhile: deploying it again")
            now = self._deployed_model(replace_fields(plan, action="deploy", model=now))
            difference = self._compared(now, expected)
        self._sweep()
        return DeployedModel.of(
            now,
            self._archive,
            expected,
            difference=difference,
            reused=not self._deployed_itself,
            shared=self._shared,
        )

    def _compared(self, model: ModelInfo, expected: Expectation | None) -> float | None:
        if expected is None:
            return None
        self._progress("Comparing predictions", 0, 0)
        try:
            return compare_predictions(self._client, model, expected)
        except ModelError as error:
            known = heard(error.__cause__)
            self._disproven = known is None or known.passes == "never"
            raise

    # --- a model that is whole

    def _whole(self, plan: DeploymentPlan) -> DeploymentPlan:
        """The plan for a model that is uploaded whole, by this run or by another at the same time."""
        while True:
            if plan.action == "upload":
                model_id = self._uploaded(plan)
            elif plan.action == "resume" and plan.model is not None:
                model_id = self._resumed(plan.model.model_id)
            else:
                if self._made_model is None and self._before is None and not self._shared:
                    self._before = plan.model
                return plan
            if model_id is not None:
                return replace_fields(plan, action="deploy", model=self._now(model_id))
            plan = self.plan()

    def _uploaded(self, plan: DeploymentPlan) -> str | None:
        """The id of a new model; None where another run's takes its place."""
        group_id = None  # lets the cluster make one of the model's name
        if self._group is not None:
            group_id, made = resolve_group(self._client, self._group, self._archive.description)
            self._made_group = group_id if made else None
        body = register_body(self._archive, plan.name, group_id)
        self._made_model, self._maybe_made = register(self._client, body)
        model_id = self._model_id = self._made_model
        ticket = sequence_numbers(self._client, self._archive.sha256).get(model_id)

        def yields() -> bool:
            return self._yields(model_id, ticket)

        whole = not yields() and upload(self._client, self._archive, model_id, self._progress, yields=yields)
        return model_id if whole else None

    def _yields(self, own: str, ticket: int | None) -> bool:
        """Whether an earlier model of the content is there: then our own goes."""
        groups = None if self._group is None else groups_called(self._client, self._group)
        others = models_of_content(self._client, self._archive, self._name, groups)
        earlier = earlier_model(self._client, self._archive, own, ticket, others)
        if earlier is None:
            return False
        self._follows(earlier.model_id)
        delete_model(self._client, own, own=True)
        self._made_model = None
        if self._made_group is not None and self._made_group != earlier.group_id:
            delete_empty_group(self._client, self._made_group)
        return True

    def _follows(self, model_id: str) -> None:
        if not self._shared or self._model_id != model_id:
            self.notify(f"Another run deploys this archive at the same time: its model {model_id} is used")
        self._shared, self._model_id = True, model_id

    def _resumed(self, model_id: str) -> str | None:
        """Send what is missing of an interrupted upload; None where another run goes on with it itself."""
        self._model_id = model_id
        told = self._shared
        model = follow_upload(self._client, self._archive, model_id, self._progress)
        if model is None or model.state != "REGISTERING":
            if not told:
                self._follows(model_id)
            return None
        self._made_model = model_id
        self.notify(f"Going on with the interrupted upload of {model_id}")
        present = chunks_present(self._client, model_id)
        upload(self._client, self._archive, model_id, self._progress, present)
        return model_id

    def _sweep(self) -> None:
        """Remove what a registration may have left whose answer was lost."""
        for model_id in self._maybe_made - {self._model_id}:
            delete_own(self._client, model_id, "REGISTERING")

    # --- a model in memory

    def _deployed_model(self, plan: DeploymentPlan) -> ModelInfo:
        """The model once it answers."""
        found = plan.model
        assert found is not None  # it is whole
        model_id = self._model_id = found.model_id
        end = time.monotonic() + self._wait_s
        action = plan.action
        if action == "reuse":
            if is_ready(self._client, found):
                self._tell_missing_nodes(found)
                return found
            self.notify(f"The model {model_id} is called DEPLOYED but does not answer: deploying it again")
        if self._shared and self._made_model is None and action == "deploy":
            # Whoever uploaded it deploys it now, unless that run is gone.
            wait_until(lambda: self._now(model_id).state != found.state, wait_s=OWNER_WAIT_S)
            action = "await" if self._now(model_id).state in IN_MEMORY_STATES else action
        if action != "await":
            self._deploy_with_patience(model_id, end)
        elif not self._shared:
            self._shared = True
            self.notify(
                f"The model {model_id} is being deployed by another run, or by the cluster: waiting for it"
            )
        model = self._answering_model(model_id, end)
        if self._redeploy and action == "await" and not model.is_on_all_nodes:
            self._deploy_with_patience(model_id, end)
        if not model.is_on_all_nodes:
            wait_s = min(ALL_NODES_WAIT_S, end - time.monotonic())
            wait_until(lambda: self._now(model_id).is_on_all_nodes, wait_s=wait_s)
            model = self._now(model_id)
        self._tell_missing_nodes(model)
        return model

    def _answering_model(self, model_id: str, end: float) -> ModelInfo:
        """The model once it answers, deployed again where the cluster gives it up."""
        for _ in range(2):
            wait_s = max(10.0, end - time.monotonic())
            model = wait_until(lambda: self._settled(model_id), wait_s=wait_s, max_pause_s=1.0)
            if model is None:
                self._disproven = True
                raise ModelError(
                    f"The model {model_id} answers nothing once it is deployed",
                    hint="Deploy it again to see why",
                )
            if model.is_deployed:
                return model
            # The cluster's own check can call it so after a restart, whatever the task said.
            self.notify(f"The cluster calls the model {model_id} {model.state}: deploying it again")
            self._deploy_with_patience(model_id, end)
        model = wait_until(lambda: self._settled(model_id), wait_s=10.0, max_pause_s=1.0)
        if model is None or not model.is_deployed:
            raise ModelError(f"The model {model_id} could not be deployed", hint="Deploy it again to see why")
        return model

    def _settled(self, model_id: str) -> ModelInfo | None:
        """The model, once it answers or nobody deploys it any more."""
        model = self._now(model_id)
        self._progress(f"Deploying: {model.state}", 0, 0)
        if model.is_deployed:
            return model if is_ready(self._client, model) else None
        return None if model.state in IN_MEMORY_STATES else model

    def _now(self, model_id: str) -> ModelInfo:
        return existing_model(self._client, model_id, "deployment")

    def _tell_missing_nodes(self, model: ModelInfo) -> None:
        if not model.is_on_all_nodes:
            self.notify(
                f"The model {model.model_id} is {placement(self._client, model)}. "
                "Bring it to all with: oskit deploy ARCHIVE --redeploy"
            )

    @property
    def _was_deployed(self) -> bool:
        return self._before is not None and self._before.is_deployed

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
                if partial and not (self._redeploy and self._was_deployed):
                    self.notify(f"Some nodes cannot load the model: {cause.means} ({reason})")
                    return
                where = " on all nodes" if partial else ""
                raise error_class(cause, ModelError)(
                    f"The model {self._archive.name!r} cannot be deployed{where}: {cause.means} ({reason})",
                    hint=self._advice(cause),
                )
            where = "on all nodes " if partial else ""
            self.notify(f"Not deployed {where}yet, trying again in {DEPLOY_PAUSE_S:g} s: {cause.means}")
            time.sleep(DEPLOY_PAUSE_S)

    def _advice(self, cause: Meaning) -> str:
        """What to do; a setting that is set transiently has to be changed there."""
        try:
            transient = all_settings(self._client)["transient"]
        except ClusterError:
            return cause.do
        if '"transient"' not in cause.do and any(f'"{name}"' in cause.do for name in transient):
            return cause.do.replace('{"persistent": ', '{"transient": ')
        return cause.do

    def _deploy_once(self, model_id: str, end: float) -> _Failure | None:
        """Deploy and wait; None if all nodes have the model."""
        self._unknown_since, self._deployed_itself = None, True
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
            lost = _ANSWER_IS_LOST if task_id is None else _NODE_IS_GONE
            return _Failure(str(task["error"]), lost)
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
                    # A second deployment beside the first would make both fail with a version conflict. One
                    # over a deployed model leaves the nodes that have it alone, so that is sent again.
                    state = self._now(model_id).state
                    if state in IN_MEMORY_STATES and not (self._was_deployed and state in DEPLOYED_STATES):
                        return None
                raise

        with cluster_errors(f"deploy {self._archive.name!r}", ModelError, "deployment"):
            return with_retries(attempt, policy_of(self._client))

    def _finished(self, task_id: str | None, model_id: str) -> dict[str, Any] | None:
        """The task once it is finished; the model's state stands in for a task that we do not know."""
        if task_id is None:
            model = self._settled(model_id)
            if model is None:
                return None
            if model.state == "DEPLOYED":
                return {"state": "COMPLETED"}
            return {"state": "LOST", "error": f"the cluster calls it {model.state}"}
        with cluster_errors("watch the deployment", ModelError):
            task: dict[str, Any] = request(self._client, "GET", f"/tasks/{task_id}")
        self._progress(f"Deploying: {task['state']}", 0, 0)
        if task["state"] in FINISHED_TASKS:
            return task
        is_lost = self._is_lost(task_id)
        return {"state": "LOST", "error": f"the task {task_id} is lost"} if is_lost else None

    def _is_lost(self, task_id: str) -> bool:
        """Whether the task's node was restarted: the record of such a task stays unfinished for ever."""
        try:
            known = request(self._client, "GET", f"/profile/tasks/{task_id}").get("nodes")
        except TransportError:  # such as a user who may not see profiles
            known = True
        now = time.monotonic()
        self._unknown_since = None if known else self._unknown_since or now
        return self._unknown_since is not None and now - self._unknown_since > LOST_AFTER_S

    # --- a failure

    def _take_back(self, error: Exception) -> None:
        """Remove what this run made, unless somebody may rely on it by now; say what is left."""
        self._progress("Cleaning up", 0, 0)
        note = None
        try:
            if self._made_model is not None:
                note = self._take_back_model(self._made_model)
            elif self._before is not None:
                note = self._as_before(self._before)
            if self._made_group is not None:
                delete_empty_group(self._client, self._made_group)
        except ClusterError as second:
            self.notify(f"Cleaning up failed too: {second.message}")
            if self._made_model is not None:
                note = (
                    f"The unfinished model {self._made_model} is still there: deploy again to go on, or: "
                    f"oskit delete {self._made_model}"
                )
        if note is None:
            return
        if isinstance(error, OskitError):
            error.hint = with_more(error.hint, note)
        else:
            self.notify(note)

    def _take_back_model(self, model_id: str) -> str | None:
        model = get_model(self._client, model_id)
        if model is not None and model.is_deployed and not self._disproven:
            # Another run may have found it good, and traffic may have begun.
            return (
                f"The model {model_id} is deployed, but not proven: the same command again proves it, "
                f"`oskit delete {model_id}` removes it"
            )
        if model is not None:
            delete_model(self._client, model_id, own=True)
            group_id, said = model.group_id, self._archive.description
            if group_id and has_own_group(self._client, group_id, model.name, said):
                delete_empty_group(self._client, group_id)
        self._sweep()
        return None

    def _as_before(self, before: ModelInfo) -> str | None:
        """Undo our deployment of a model that was there but not deployed; one that was deployed is let be."""
        if before.is_deployed:
            return self._what_serves(before.model_id)
        model = get_model(self._client, before.model_id)
        if model is None or before.state in IN_MEMORY_STATES:
            return None
        if model.is_deployed and not self._disproven:
            return f"The model {model.model_id} is deployed, but not proven: the same command again proves it"
        if model.state in IN_MEMORY_STATES | {"DEPLOY_FAILED"}:
            undeploy_model(self._client, model.model_id, own=True)
        return None

    def _what_serves(self, model_id: str) -> str:
        """The truth about a model that was deployed before a deployment of it failed."""

        def counted_again() -> ModelInfo | None:
            model = existing_model(self._client, model_id)
            return model if model.is_deployed else None

        try:
            model = wait_until(counted_again, wait_s=COUNTED_AGAIN_S) or self._now(model_id)
            answers = is_ready(self._client, model)
        except ClusterError:
            return f"The model {model_id} was left as it was"
        how = "goes on answering" if answers else "does not answer"
        return f"The model {model_id} {how}, and is {model.state} {placement(self._client, model)}"

    def _tell_what_is_left(self) -> None:
        if self._made_model is not None:
            self.notify(
                f"The model {self._made_model} is unfinished: the same command goes on with it, "
                f"`oskit delete {self._made_model}` removes it"
            )
        elif self._was_deployed and self._before is not None:
            self.notify(f"The model {self._before.model_id} is left as it is: its nodes go on answering")


def without_others(
    client: OpenSearch,
    deployed: DeployedModel,
    others: Iterable[ModelInfo],
    wait_s: float,
    *,
    notify: Notify,
    progress: Progress = lambda *_: None,
) -> DeployedModel:
    """Delete the models in whose place one was deployed; those that are used stay, which is told.

    Returns:
        The one that was deployed, with the ids of those that went and of those that stayed.
    """
    replaced: list[str] = []
    kept: list[str] = []
    for other in others:
        progress("Removing the older model", 0, 0)
        try:
            limit_s = min(DRAIN_S, wait_s)
            delete_model(client, other.model_id, drain=True, wait_s=limit_s, notify=notify)
            replaced.append(other.model_id)
        except ClusterError as error:
            kept.append(other.model_id)
            notify(f"The older model {other.model_id} stays: {error.message}")
    return replace_fields(deployed, replaced=tuple(replaced), kept=tuple(kept))
