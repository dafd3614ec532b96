"""Models that run elsewhere: an archive that a service answers for, reached by a connector.

As of local models, the same content by one name is one model, and of runs at the same time one makes it:
each registers, looks, and yields to an earlier one (:mod:`oskit.cluster.models.rivals`). A model whose
service moved, or whose token changed, is given another connector while it answers, once a second model behind
that connector has proven it; that second model is also what other moves at the same time wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from functools import partial
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import Archive
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import impatient, is_transient, policy_of, with_retries
from oskit.cluster.models.configuration import Configuration
from oskit.cluster.models.connectors import (
    Remote,
    connector_body,
    delete_connector,
    list_connectors,
    unused_connectors,
)
from oskit.cluster.models.deploy import OWNER_WAIT_S, ROUNDS, SETTLE_S, DeployedModel, without_others
from oskit.cluster.models.deployment_plan import refuse_untrained
from oskit.cluster.models.prediction_parity import Expectation, compare_predictions, expectation
from oskit.cluster.models.registry import (
    ModelInfo,
    delete_empty_group,
    get_model,
    list_models,
    quoted,
    request,
    search,
    wait_until,
)
from oskit.cluster.models.remote_plan import (
    MOVING,
    RemotePlan,
    plan_remote,
    refuse_remote,
    registration,
    usable_models,
)
from oskit.cluster.models.retire import delete_own, retire, undeploy_model
from oskit.cluster.models.rivals import STANDS_STILL_S
from oskit.cluster.models.trust import have_trusted
from oskit.cluster.models.upload import Notify, Progress, beside_others, resolve_group
from oskit.errors import (
    ClusterError,
    ClusterSettingsError,
    ModelError,
    OskitError,
    PredictionMismatchError,
    with_more,
)

ANSWERS_FOR_S = 5.0
"""How long a service that does not answer is asked again: its address is probably wrong."""

DEPLOYMENTS = 4
"""A first question at the same moment makes a deployment fail, and another one comes through."""


def deploy_remote(
    client: OpenSearch,
    archive: Archive,
    remote: Remote,
    *,
    name: str | None = None,
    group: str | None = None,
    replace: bool = False,
    redeploy: bool = False,
    configure_cluster: bool = False,
    allow_untrained: bool = False,
    wait_s: float = 60.0,
    progress: Progress | None = None,
    notify: Notify = lambda _: None,
) -> DeployedModel:
    """Have the cluster ask a service for an archive's weights, and prove that it gets them.

    Args:
        archive: What the service answers for; its predictions are compared.
        remote: Where.
        name: Of the model; None takes the archive's, and any model of this content at this address.
        group: Name or id of the model group; one of this name is made if there is none.
        replace: Give the model that is there this address and token, without a moment in which it does not
            answer; delete those of the name that have other content and that nobody uses.
        redeploy: Deploy it again where it is deployed, as to bring it to nodes that lack it.
        configure_cluster: Trust the address, and private ones, where the cluster does not yet; put back if
            the deployment fails.
        allow_untrained: Accept an archive whose projection is random.
        wait_s: Limit of the deployment.
        progress: Told what happens.
        notify: Told what a person should know.

    Raises:
        UsageError: The URL is none.
        UntrainedEncoderError: The archive's projection is random.
        ClusterSettingsError: The cluster does not trust the address; the hint has the call that helps.
        PredictionMismatchError: The service computes something else than the archive.
        ModelError: Another model has the name, or anything else. What this run made is removed again.
    """
    if not allow_untrained:
        refuse_untrained(archive)
    tell = progress or (lambda *_: None)
    tell("Running the archive here", 0, 0)
    expected = expectation(archive)
    if expected is None:
        raise ModelError(
            f"{archive.path} cannot run here and has no probes: nothing proves what {remote.url} is"
        )
    tell(f"Asking {remote.url}", 0, 0)
    run = _Run(
        client, archive, remote, name, group, replace, redeploy, wait_s, notify, expected, configure_cluster
    )
    return run.execute()


@dataclass
class _Run:
    """One run: what it made, so that a failure takes that back and leaves the rest."""

    _client: OpenSearch
    _archive: Archive
    _remote: Remote
    _name: str | None
    _group: str | None
    _replace: bool
    _redeploy: bool
    _wait_s: float
    _notify: Notify
    _expected: Expectation
    _configures: bool
    _models: list[str] = field(default_factory=list)
    _connectors: list[str] = field(default_factory=list)
    _made_group: str | None = None
    _undeployed: str | None = None  # was there, and in nobody's memory
    _shared: bool = False
    _moved: tuple[str, str] | None = None  # a model, and the connector that it had
    _pending: tuple[list[str], Callable[[], set[str]]] | None = None  # what was asked for, and not answered
    _asked: bool = False  # whether the service was asked for anything

    def plan(self) -> RemotePlan:
        return plan_remote(
            self._client, self._archive, self._remote, self._name, self._group, replace=self._replace
        )

    def _refuse(self, plan: RemotePlan) -> None:
        refuse_remote(plan, replace=self._replace, configure_cluster=self._configures)

    def execute(self) -> DeployedModel:
        configuration = Configuration(self._client, self._notify)
        try:
            plan = self.plan()
            self._refuse(plan)
            deployed = self._until_it_stays(plan, configuration if self._configures else None)
        except BaseException as error:
            self._take_back(error)
            configuration.put_back()
            self._advise(error)
            raise
        self._sweep(deployed.name)
        others = plan.others if self._replace else ()
        return without_others(self._client, deployed, others, self._wait_s, notify=self._notify)

    def _advise(self, error: BaseException) -> None:
        if isinstance(error, PredictionMismatchError):
            error.hint = f"Does {self._remote.url} serve this archive? Its /info says which"
        elif self._asked and isinstance(error, ClusterError):
            more = f"Is {self._remote.url} up, and can the cluster's nodes reach it?"
            if not self._replace:
                more += " If its token has changed, give the cluster the new one with --replace"
            error.hint = with_more(error.hint, more)

    def _until_it_stays(self, plan: RemotePlan, configuration: Configuration | None) -> DeployedModel:
        """Begin again where what another run made was taken back, and taken away from this one."""
        for rounds_left in reversed(range(ROUNDS)):
            try:
                return self._round(plan, configuration)
            except ClusterError as error:
                missing = not self._asked and getattr(error.__cause__, "status_code", None) == 404
                if not rounds_left or not (missing or isinstance(error, _GoneError)):
                    raise
                self._notify(f"{error.message}: beginning again")
            self._take_back(None)
            plan = self.plan()
            self._refuse(plan)
        raise AssertionError("a round returns or raises")

    def _round(self, plan: RemotePlan, configuration: Configuration | None) -> DeployedModel:
        while plan.action == "make":
            model_id = self._registered(plan, configuration)
            if model_id is not None:
                plan = replace_fields(plan, action="deploy", model=self._now(model_id))
            else:
                plan = self.plan()
                self._refuse(plan)
        model = plan.model
        assert model is not None  # it was found, or made
        reused = not self._models and model.is_deployed and plan.action == "reuse"
        if plan.action == "move":
            difference = self._move(plan, model, configuration)
            model = self._now(model.model_id)
        else:
            if not model.is_deployed and not self._models:
                self._undeployed = model.model_id
            if not model.is_deployed or self._redeploy:
                model = self._deployed(model.model_id, again=self._redeploy)
            difference = self._compared(model.model_id)
        if self._shared:  # the other run may fail and take the model back
            time.sleep(SETTLE_S)
            model = self._now(model.model_id)
        return DeployedModel.of(
            model, self._archive, self._expected, difference=difference, reused=reused, shared=self._shared
        )

    # --- a model of our own

    def _registered(self, plan: RemotePlan, configuration: Configuration | None) -> str | None:
        """The id of a new model; None where another run's takes its place."""
        group_id = None
        if self._group is not None:
            group_id, made = resolve_group(self._client, self._group, self._archive.description)
            self._made_group = group_id if made else None
        connector_id = self._connector(plan.name, configuration)
        own, ticket = self._register(plan.name, connector_id, group_id)
        usable = usable_models(self._client, self._archive, plan.name, self._group)
        would_do = {model.model_id for model, _ in usable}
        for other, order in self._rivals(plan.name):
            if other.model_id in would_do - {own} and (other.state != "REGISTERED" or order < ticket):
                self._notify(
                    f"Another run deploys this archive at the same time: its model {other.model_id} is used"
                )
                self._shared = True
                self._take_back(None)
                wait_until(lambda: self._now(other.model_id).is_deployed, wait_s=OWNER_WAIT_S)  # noqa: B023
                return None
        return own

    def _connector(self, name: str, configuration: Configuration | None) -> str:
        """The id of a new connector, once the cluster trusts the address."""
        body = connector_body(self._archive, self._remote, name)
        url = body["actions"][0]["url"]
        for again in (True, True, False):
            have_trusted(self._client, url, configuration)
            try:
                with cluster_errors("create the connector", ModelError):
                    return self._create(
                        "/connectors/_create",
                        body,
                        "connector_id",
                        lambda: set(list_connectors(self._client, name)),
                    )
            except ClusterSettingsError:  # another run wrote the list at the same moment, and not ours
                if configuration is None or not again:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _register(self, name: str, connector_id: str, group_id: str | None) -> tuple[str, int]:
        """A new model, and its place in the order of all."""
        body = registration(self._archive, name, connector_id, group_id)
        with cluster_errors("register the remote model", ModelError, "deployment"):
            own = self._create("/models/_register", body, "model_id", lambda: self._registered_only(name))
        return own, next((order for model, order in self._rivals(name) if model.model_id == own), 0)

    def _registered_only(self, name: str) -> set[str]:
        return {model.model_id for model, _ in self._rivals(name) if model.state == "REGISTERED"}

    def _create(self, path: str, body: dict[str, Any], key: str, there: Callable[[], set[str]]) -> str:
        """The id of something new; what a lost answer spoke of is found, not made again."""
        made = self._connectors if key == "connector_id" else self._models
        before, was_lost = there(), False

        def attempt() -> str:
            nonlocal was_lost
            try:
                return str(request(self._client, "POST", path, body)[key])
            except TransportError as failure:
                was_lost |= is_transient(failure)
                if was_lost and (found := there() - before):
                    return min(found)
                raise

        self._pending = made, lambda: there() - before
        try:
            made.append(beside_others(lambda: with_retries(attempt, policy_of(self._client))))
        except TransportError:
            self._pending = self._pending if was_lost else None
            raise
        self._pending = None
        return made[-1]

    def _rivals(self, name: str) -> list[tuple[ModelInfo, int]]:
        """Models of this name and content, and the order of the last writes to them."""
        hits = search(
            self._client,
            "models",
            query={"term": {"name.keyword": name}},
            _source=False,
            seq_no_primary_term=True,
        )
        order = {hit["_id"]: int(hit["_seq_no"]) for hit in hits}
        models = list_models(self._client, {"term": {"name.keyword": name}})
        return [
            (model, order[model.model_id])
            for model in models
            if model.is_remote and model.sha256 == self._archive.sha256 and model.model_id in order
        ]

    def _deployed(self, model_id: str, *, again: bool = False) -> ModelInfo:
        """The model once it is deployed; a prediction before that would leave it as failed."""
        end = time.monotonic() + self._wait_s
        if self._settled(model_id) is None:  # another run, or the cluster, is at it
            wait_until(lambda: self._settled(model_id), wait_s=min(OWNER_WAIT_S, self._wait_s))
        for _ in range(DEPLOYMENTS):
            if again or not self._now(model_id).is_deployed:
                try:
                    with cluster_errors(f"deploy the remote model {model_id}", ModelError, "deployment"):
                        request(self._client, "POST", f"/models/{quoted(model_id)}/_deploy")
                except ModelError as error:
                    known = heard(error.__cause__, "deployment")
                    if known is None or known.passes != "soon":
                        raise
            found = wait_until(lambda: self._settled(model_id), wait_s=max(0.1, end - time.monotonic()))
            if found is None:
                break
            if found.is_deployed:
                return found
            time.sleep(1)
        raise ModelError(f"The remote model {model_id} was not deployed within {self._wait_s:g} s")

    def _compared(self, model_id: str) -> float:
        self._asked = True
        with impatient(self._client, ANSWERS_FOR_S):
            difference = compare_predictions(self._client, self._now(model_id), self._expected)
        self._asked = False
        return difference

    def _settled(self, model_id: str) -> ModelInfo | None:
        model = self._now(model_id)
        return None if model.state == "DEPLOYING" else model

    def _now(self, model_id: str) -> ModelInfo:
        model = get_model(self._client, model_id)
        if model is None:
            raise _GoneError(
                f"The model {model_id} was deleted during its deployment", hint="Deploy it again"
            )
        return model

    # --- a model that is there, and is to be reached in another way

    def _move(self, plan: RemotePlan, model: ModelInfo, configuration: Configuration | None) -> float:
        """Give a model another connector, which a second model has proven; the largest difference."""
        name = f"{plan.name}{MOVING}"
        connector_id = self._connector(plan.name, configuration)
        trial, ticket = self._register(name, connector_id, model.group_id)
        self._wait_for_earlier(name, trial, ticket)
        self._deployed(trial)
        difference = self._compared(trial)
        now = self._now(model.model_id)
        self._moved = (now.model_id, str(now.connector_id))
        self._reach_by(now.model_id, connector_id)
        if not now.is_deployed:
            self._deployed(now.model_id)
        difference = max(difference, self._compared(now.model_id))
        self._moved = None
        self._connectors.remove(connector_id)
        delete_own(self._client, trial)
        self._models.remove(trial)
        delete_connector(self._client, str(now.connector_id))
        self._notify(f"The model {plan.name!r} ({now.model_id}) asks {plan.url} from now on")
        return difference

    def _reach_by(self, model_id: str, connector_id: str) -> None:
        with cluster_errors(f"give the model {model_id} another connector", ModelError):
            request(self._client, "PUT", f"/models/{quoted(model_id)}", {"connector_id": connector_id})

    def _wait_for_earlier(self, name: str, own: str, ticket: int) -> None:
        """Until no earlier move of this model is under way; what stands still was left by a killed run."""

        def earlier() -> list[ModelInfo]:
            rivals = [
                m
                for m, order in self._rivals(name)
                if m.model_id != own and (m.state != "REGISTERED" or order < ticket)
            ]
            return [now for model in rivals if (now := get_model(self._client, model.model_id))]

        if found := earlier():
            self._notify(
                f"Another run gives the model another address: waiting up to {STANDS_STILL_S:g} s for it"
            )
            wait_until(lambda: not earlier(), wait_s=STANDS_STILL_S)
            found = [model for model in earlier() if model.model_id in {one.model_id for one in found}]
            retire(self._client, found, delete=True, own=True)

    # --- the end

    def _take_back(self, error: BaseException | None) -> None:
        """Remove what this run made; say what is left."""
        left: list[str] = []

        def tried(what: str, undo: Callable[[], object]) -> None:
            try:
                undo()
            except OskitError as second:
                left.append(f"{what} ({second.message})")

        if self._pending is not None:
            kind, new = self._pending
            tried("what was being made", lambda: kind.extend(new()))
        if self._moved is not None:
            model_id, before = self._moved
            tried(f"another connector of the model {model_id}", lambda: self._reach_by(model_id, before))
        for made in self._models:
            tried(f"the model {made}", partial(delete_own, self._client, made))
        for made in self._connectors:
            tried(f"the connector {made}", lambda made=made: delete_connector(self._client, made))  # type: ignore[misc]
        if self._made_group is not None:
            group = self._made_group
            tried(f"the model group {group}", lambda: delete_empty_group(self._client, group))
        if error is not None and self._undeployed is not None and not self._shared:
            there = self._undeployed
            tried(f"the model {there} in memory", lambda: undeploy_model(self._client, there, own=True))
        self._models, self._connectors = [], []
        self._made_group = self._moved = self._pending = None
        for one in left:
            self._notify(f"Cleaning up failed too; left is {one}")

    def _sweep(self, name: str) -> None:
        """Remove connectors of the name that no model calls: a run left them that was killed."""
        try:
            for connector in unused_connectors(self._client, name):
                if delete_connector(self._client, connector.connector_id):
                    self._notify(f"Deleted the connector {connector.connector_id}, which no model used")
        except OskitError as error:
            self._notify(f"Connectors that no model uses were not looked for: {error.message}")


class _GoneError(ModelError):
    """A model that was there a moment ago."""
