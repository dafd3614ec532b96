"""`oskit deploy`, `models`, `undeploy`, `delete`: the models of a cluster."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from oskit.cli.options import connection_options, output_options, with_options
from oskit.errors import OskitError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from rich.console import Console

    from oskit.archive.archive import Archive
    from oskit.cli.output import Output
    from oskit.cluster.client.calls import Call
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.models.connectors import Remote
    from oskit.cluster.models.deploy import DeployedModel
    from oskit.cluster.models.deployment_plan import DeploymentPlan
    from oskit.cluster.models.registry import ModelInfo
    from oskit.cluster.models.remote_plan import RemotePlan

MODEL_ID = re.compile(r"-[A-Za-z0-9_-]{19}")
"""An id that the command line would take for options."""


class _CommandOnIds(click.Command):
    """A command whose arguments are model ids, of which one in 64 begins with a hyphen."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let what looks like an id be one: it goes behind ``--``."""
        ids = [word for word in args if MODEL_ID.fullmatch(word)] if "--" not in args else []
        if ids:
            args = [*(word for word in args if word not in ids), "--", *ids]
        return super().parse_args(ctx, args)


@click.command("deploy")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...")
@click.option("--name", metavar="NAME", help="Name of the model; by default the archive's.")
@click.option("--format", "model_format", type=click.Choice(["onnx", "torchscript"]),
              help="Which encoder of an export's folder; by default onnx if it is there.")  # fmt: skip
@click.option("--group", metavar="GROUP", help="Model group, by name or id; made if there is none.")
@click.option(
    "--replace", is_flag=True, help="Put it in the place of the model that has its name and format."
)
@click.option("--remote", metavar="URL", help="Have the cluster ask `oskit serve` there for the weights.")
@click.option("--remote-token-file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="Its token, the first line.  [OSKIT_SERVE_TOKEN]")  # fmt: skip
@click.option("--role-arn", metavar="ARN", help="The role that invokes an endpoint of SageMaker.")
@click.option("--configure-cluster", is_flag=True, help="Change cluster settings that stand in the way.")
@click.option("--allow-untrained", is_flag=True, help="Deploy even a randomly initialised projection.")
@click.option("--no-compare", is_flag=True, help="Do not compare the predictions with the archive's own.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=1), default=600, show_default=True,
              metavar="SECONDS", help="Limit of the deployment, after the upload.")  # fmt: skip
@click.option("--redeploy", is_flag=True, help="Deploy it again, to bring it to nodes that lack it.")
@click.option(
    "--dry-run", is_flag=True, help="Only say what would be done, with every call that changes anything."
)
@connection_options
@output_options
def deploy(
    archives: tuple[str, ...],
    name: str | None,
    model_format: str | None,
    no_compare: bool,
    dry_run: bool,
    remote: str | None,
    remote_token_file: str | None,
    role_arn: str | None,
    connection: ConnectionSettings,
    out: Output,
    **options: Any,
) -> None:
    """Register and deploy an archive.

    ARCHIVE is a zip, its folder, or the folder that `oskit export` wrote: then the encoder is deployed and,
    for an inference-free one, the tokenizer with it. The model counts as deployed when its predictions equal
    the archive's. The same content is never deployed twice, the two formats of an encoder may be side by
    side, and of two runs at the same time one makes the model. A failed deployment leaves nothing behind
    that was not there before, and what was deployed before goes on serving.

    With --remote the cluster does not get the archive: it asks the service at URL, which `oskit serve` runs,
    by a connector. `oskit delete` takes the connector away with the model; --replace gives the model that is
    there another address or token, while it answers.

    \b
    Examples:
      oskit deploy out
      oskit deploy out --format torchscript
      oskit deploy out --replace
      oskit deploy out/onnx --configure-cluster
      oskit deploy out --redeploy
      oskit deploy out --dry-run
      oskit deploy out --remote http://10.0.0.5:8080 --configure-cluster
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.models.connectors import connector_body

    targets = _targets(archives, model_format, name)
    service = _service(remote, remote_token_file, role_arn)
    if service is not None and no_compare:
        raise UsageError("--no-compare does not go with --remote: nothing else proves what answers there")
    if service is not None:
        for archive, _ in targets:  # an address that is none is told before a cluster is asked
            connector_body(archive, service, archive.name)
    # A wrong address or password shows now, not after minutes of preparation.
    client = connect_for(connection, "deploy" if remote is None else "deploy --remote")
    if dry_run:
        _print_plans(client, targets, service, options, out)
        return
    if service is None:
        options["compare"] = not no_compare
    deployed = [_deploy_one(client, archive, chosen, service, options, out) for archive, chosen in targets]
    out.result([model.to_dict() for model in deployed], lambda console: _print_deployed(console, deployed))


def _targets(
    paths: tuple[str, ...], model_format: str | None, name: str | None
) -> list[tuple[Archive, str | None]]:
    """The archives to deploy, each with the name that was asked for."""
    from oskit.cluster.models.deployment_plan import archives_in

    if name is not None and len(paths) > 1:
        raise UsageError(
            "--name names one model, but several archives are given", hint="Deploy them one by one"
        )
    targets: list[tuple[Archive, str | None]] = []
    for path in paths:
        found = archives_in(path, model_format)
        for archive in found:
            suffix = "-tokenizer" if len(found) > 1 and archive.kind == "tokenizer" else ""
            targets.append((archive, f"{name}{suffix}" if name is not None else None))
    return targets


def _service(url: str | None, token_file: str | None, role_arn: str | None) -> Remote | None:
    """Where the archive is served; None if the cluster runs it itself."""
    from oskit.cluster.models.connectors import Remote

    if url is None:
        for option, given in (("--remote-token-file", token_file), ("--role-arn", role_arn)):
            if given is not None:
                raise UsageError(f"{option} has no effect without --remote")
        return None
    token = os.environ.get("OSKIT_SERVE_TOKEN")
    if token_file is not None:
        lines = Path(token_file).read_text(encoding="utf-8").split()
        if not lines:
            raise UsageError(f"{token_file} holds no token")
        token = lines[0]
    service = Remote(url, token, role_arn)
    if role_arn is not None and service.region is None:
        raise UsageError("--role-arn is for endpoints of SageMaker", hint="Leave it out")
    return service


def _deploy_one(
    client: OpenSearch,
    archive: Archive,
    name: str | None,
    service: Remote | None,
    options: dict[str, Any],
    out: Output,
) -> DeployedModel:
    from oskit.cluster.models.deploy import deploy_archive
    from oskit.cluster.models.remote import deploy_remote

    shown = name or archive.name
    with out.progress(shown, unit="MB") as handle:

        def progress(what: str, done: int, total: int) -> None:
            handle.update(
                f"{shown}: {what}",
                completed=round(done / 1e6, 1),
                total=round(total / 1e6, 1) if total else None,
            )

        how = {**options, "name": name, "progress": progress, "notify": out.warn}
        if service is None:
            model = deploy_archive(client, archive, **how)
        else:
            model = deploy_remote(client, archive, service, **how)
    out.note(f"{model.name}: {_how(model)}, {_proof(model)}")
    return model


def _how(model: DeployedModel) -> str:
    done = "was deployed already" if model.reused else "deployed"
    if model.shared:
        done = (
            "was deployed by another run at the same time"
            if model.reused
            else "deployed, with another run at the same time"
        )
    return f"{done}; replaced {', '.join(model.replaced)}" if model.replaced else done


def _proof(model: DeployedModel) -> str:
    if model.max_difference is None:
        return "predictions not compared"
    return (
        f"predicts what the archive does (largest difference {model.max_difference:.1e} "
        f"in {model.compared_texts} texts)"
    )


def _print_deployed(console: Console, models: list[DeployedModel]) -> None:
    header = ["name", "id", "version", "function", "format", "state", "tokens of a text"]
    rows = [
        [model.name, model.model_id, model.version, model.function_name, model.model_format, model.state,
         f"up to {model.max_length}" if model.max_length is not None else ""]
        for model in models
    ]  # fmt: skip
    _print_table(console, header, rows)
    encoder = next((m for m in models if m.function_name in ("SPARSE_ENCODING", "REMOTE")), None)
    if encoder is not None:
        console.print("\nNext: oskit ingest INDEX SOURCE, see oskit ingest --help", markup=False)


def _print_plans(
    client: OpenSearch,
    targets: list[tuple[Archive, str | None]],
    service: Remote | None,
    options: dict[str, Any],
    out: Output,
) -> None:
    tried: list[_Tried] = []
    for archive, name in targets:
        one = _tried(client, archive, name, service, options)
        before = [call for earlier in tried for call in earlier.calls]
        # What is done for the first archive, as to a setting, is not done for the second.
        calls = [call for call in one.calls if "…" in call.path or call not in before]
        tried.append(one._replace(calls=calls))

    def human(console: Console) -> None:
        for one in tried:
            lines = _plan_lines(one, options["replace"])
            for line in [*lines, *_call_lines(one.calls, one.refusal)]:
                console.print(line, markup=False, soft_wrap=True)

    out.result(
        [
            {
                **one.plan.to_dict(),
                "stays": one.stays,
                "calls": [call.to_dict() for call in one.calls],
                "refused": None if one.refusal is None else str(one.refusal),
            }
            for one in tried
        ],
        human,
    )


class _Tried(NamedTuple):
    """What a deployment would do.

    Attributes:
        archive: Of what.
        plan: What there is to do.
        stays: Why older models stay, by id.
        calls: What would be sent.
        refusal: Why it would be refused.
    """

    archive: Archive
    plan: DeploymentPlan | RemotePlan
    stays: dict[str, str]
    calls: list[Call]
    refusal: OskitError | None = None


def _tried(
    client: OpenSearch, archive: Archive, name: str | None, service: Remote | None, options: dict[str, Any]
) -> _Tried:
    from oskit.cluster.models.deployment_plan import (
        looked_at,
        plan_deployment,
        planned_calls,
        refuse,
        refuse_untrained,
    )
    from oskit.cluster.models.remote_plan import RemotePlan, plan_remote, refuse_remote, remote_calls

    replace, configure = options["replace"], options["configure_cluster"]
    group, redeploy = options["group"], options["redeploy"]
    plan: DeploymentPlan | RemotePlan
    if service is None:
        plan = plan_deployment(client, archive, name=name, group=group, redeploy=redeploy)
    else:
        plan = plan_remote(client, archive, service, name, group, replace=replace)
    try:
        if not options["allow_untrained"]:
            refuse_untrained(archive)
        if isinstance(plan, RemotePlan):
            refuse_remote(plan, replace=replace, configure_cluster=configure)
        else:
            refuse(plan, replace=replace, configure_cluster=configure)
    except OskitError as refusal:
        return _Tried(archive, plan, {}, [], refusal)
    found = looked_at(client, plan.others) if replace else []
    stays = {one.model.model_id: " and ".join(why) for one in found if (why := one.objections(drain=True))}
    leaving = [one for one in found if one.model.model_id not in stays]
    if isinstance(plan, RemotePlan):
        assert service is not None
        sent = remote_calls(
            *(client, archive, service, plan),
            redeploy=redeploy,
            configure_cluster=configure,
            leaving=leaving,
        )
    else:
        sent = planned_calls(client, archive, plan, configure_cluster=configure, leaving=leaving)
    return _Tried(archive, plan, stays, list(sent))


def _call_lines(calls: list[Call], refusal: OskitError | None) -> list[str]:
    if refusal is not None:
        return [f"  would be refused, and nothing sent: {refusal}"]
    return [f"  {call}" for call in calls] or ["  nothing would be changed"]


def _plan_lines(one: _Tried, replace: bool) -> list[str]:
    from oskit.cluster.models.remote_plan import RemotePlan

    archive, plan = one.archive, one.plan
    where = f" at {plan.url}" if isinstance(plan, RemotePlan) else ""
    function = "remote" if where else str(archive.function_name)
    what = {
        "reuse": f"is deployed already{where}",
        "await": "is being deployed right now; oskit would wait",
        "redeploy": "is deployed already and would be deployed again; the nodes that have it go on answering",
        "deploy": f"is registered already{where} and would be deployed",
        "resume": "is half uploaded; the upload would go on",
        "upload": f"would be uploaded ({archive.size:,} bytes, chunks: {archive.total_chunks}) and deployed",
        "make": f"would be asked for{where}",
        "move": f"is there already and would be asked for{where}",
    }[plan.action]
    lines = [f"{plan.name} ({function}, {archive.path}): {what}"]
    if plan.model is not None:
        lines.append(f"  model {plan.model.model_id}, {plan.model.state}")
    for other in plan.others:
        fate = "would be replaced once it is quiet" if replace else "is in the way without --replace"
        if why := one.stays.get(other.model_id):
            fate = f"stays, because it {why}"
        lines.append(f"  model {other.model_id} has the same name and other content: it {fate}")
    for problem in plan.problems:
        lines.append(f"  in the way: {problem.problem}")
        if problem.call:
            lines.append(f"    {problem.call}")
    return lines


@click.command("models")
@connection_options
@output_options
def models(connection: ConnectionSettings, out: Output) -> None:
    """List the models of a cluster.

    Of remote ones what their connectors call, and whether that answers; and connectors that a killed
    deployment left, which `oskit delete` takes away by their ids.

    \b
    Examples:
      oskit models
      oskit models --json
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.models.connectors import with_services
    from oskit.cluster.models.registry import list_models

    client = connect_for(connection, "models")
    found = with_services(client, list_models(client))

    def human(console: Console) -> None:
        if not found:
            console.print("The cluster has no models. Deploy one with: oskit deploy ARCHIVE", markup=False)
            return
        header = ["name", "id", "version", "function", "format", "state", "size", "created"]
        _print_table(console, header, [_model_row(model) for model in found])
        for model in found:
            if model.url is not None:
                line = f"{model.name} ({model.model_id}) asks {model.url}{_answers(model)}"
                console.print(line, markup=False, soft_wrap=True)

    out.result([model.to_dict() for model in found], human)


def _answers(model: ModelInfo) -> str:
    if model.function_name == "CONNECTOR":
        return "; no model uses it"
    return f", which does not answer: {model.problem}" if model.problem is not None else ""


def _model_row(model: ModelInfo) -> list[str]:
    state = model.state
    if model.is_deployed and model.current != model.planned:
        state += f" ({model.current} of {model.planned} nodes)"
    return [
        model.name,
        model.model_id,
        model.version,
        model.function_name,
        model.format or "",
        state,
        f"{model.size / 1e6:,.1f} MB" if model.size is not None else "",
        f"{model.created:%Y-%m-%d %H:%M} UTC" if model.created else "",
    ]


def _retirement_options(force: str) -> Callable[[Any], Any]:
    """What `undeploy` and `delete` have in common, with what ``--force`` does."""
    options = [
        click.option("--force", is_flag=True, help=force),
        click.option(
            "--pause-models",
            "pause",
            is_flag=True,
            help="Switch ALL local models of the cluster off for the moment that it takes.",
        ),
        click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(min=0),
            default=60,
            show_default=True,
            metavar="SECONDS",
            help="Limit for a model to become quiet, and to be out of memory.",
        ),
        click.option("--dry-run", is_flag=True, help="Only say what would be done, and what is in the way."),
        connection_options,
        output_options,
    ]

    return functools.partial(with_options, options=options)


@click.command("undeploy", cls=_CommandOnIds)
@click.argument("names", nargs=-1, required=True, metavar="NAME|ID...")
@_retirement_options("Undeploy models even if something uses them; one that encodes as ONNX is waited for.")
def undeploy(
    names: tuple[str, ...], connection: ConnectionSettings, out: Output, dry_run: bool, **options: Any
) -> None:
    """Take models out of memory.

    Those that something uses are refused. The others stay registered: `oskit deploy` of the same archive
    deploys them again without an upload. An ONNX model that encodes is never undeployed, because that kills
    its node; see docs/deploying.md.

    \b
    Examples:
      oskit undeploy my-encoder
      oskit undeploy wiaHD6IBmnDfhX8_gTXu --dry-run
      oskit undeploy my-encoder --pause-models
    """
    from oskit.cluster.models.retire import retire

    client, found = _find_all(connection, names, "undeploy")
    if dry_run:
        _print_retirement(client, found, out, delete=False, **options)
        return
    states = retire(client, found, delete=False, notify=out.warn, **options)
    out.result(
        [model.to_dict() for model in states],
        lambda console: _print_table(
            console, ["name", "id", "state"], [[model.name, model.model_id, model.state] for model in states]
        ),
    )


@click.command("delete", cls=_CommandOnIds)
@click.argument("names", nargs=-1, required=True, metavar="NAME|ID...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_retirement_options("Delete models even if something uses them; one that encodes as ONNX is waited for.")
def delete(
    names: tuple[str, ...],
    yes: bool,
    connection: ConnectionSettings,
    out: Output,
    dry_run: bool,
    **options: Any,
) -> None:
    """Undeploy and delete models.

    Those that something uses are refused. An ONNX model that encodes is never undeployed, because that kills
    its node; see docs/deploying.md.

    \b
    Examples:
      oskit delete my-encoder
      oskit delete my-encoder --dry-run
      oskit delete wiaHD6IBmnDfhX8_gTXu --yes
    """
    from oskit.cluster.models.retire import retire

    client, found = _find_all(connection, names, "delete")
    if dry_run:
        _print_retirement(client, found, out, delete=True, **options)
        return
    listed = ", ".join(f"{model.name} ({model.model_id})" for model in found)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"This would delete {listed}", hint="Say so with --yes")
        click.confirm(f"Delete {listed}?", abort=True, err=True)
    retire(client, found, delete=True, notify=out.warn, **options)
    for model in found:
        out.note(f"Deleted {model.name} ({model.model_id})")
    out.result([{"model_id": model.model_id, "name": model.name, "deleted": True} for model in found])


def _print_retirement(
    client: OpenSearch,
    models: list[ModelInfo],
    out: Output,
    *,
    delete: bool,
    force: bool,
    pause: bool,
    wait_s: float,
) -> None:
    from oskit.cluster.models.retire import look_at, planned_calls

    found, _ = look_at(client, models, delete=delete)
    calls = planned_calls(client, found, delete=delete, pause=pause)
    told = [{**one.to_dict(), "in_the_way": one.objections(force=force, pause=pause)} for one in found]
    waits = f" (waited for, up to {wait_s:g} s)" if force else ""

    def human(console: Console) -> None:
        for one, said in zip(found, told, strict=True):
            lines = [f"{one.model.name} ({one.model.model_id}, {one.model.state})"]
            lines += [f"  used by {user}" for user in one.users]
            lines += [f"  cannot see: {place}" for place in one.unseen]
            lines += [f"  {one.not_seen}"] if one.not_seen else []
            lines += [f"  it {one.doing}{waits}"] if one.doing else []
            lines += [f"  in the way: it {objection}" for objection in said["in_the_way"]]
            for line in lines:
                console.print(line, markup=False, soft_wrap=True)
        for call in calls:
            console.print(str(call), markup=False, soft_wrap=True)

    out.result({"models": told, "calls": [call.to_dict() for call in calls]}, human)


def _find_all(
    connection: ConnectionSettings, names: tuple[str, ...], command: str
) -> tuple[OpenSearch, list[ModelInfo]]:
    """All the models that are named, each once; nothing is changed before all are found."""
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.models.connectors import find_model_or_connector

    client = connect_for(connection, command)
    found = {model.model_id: model for model in (find_model_or_connector(client, name) for name in names)}
    return client, list(found.values())


def _print_table(console: Console, header: list[str], rows: list[list[str]]) -> None:
    from oskit.evaluation.reports.terminal import plain_table

    console.print(plain_table(header, rows, numeric=False))
