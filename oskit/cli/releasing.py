"""Options of `oskit ingest --release`, and what it does beside loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from oskit.errors import UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from rich.console import Console

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cli.output import Output
    from oskit.cluster.client.calls import Call
    from oskit.cluster.ingest.accounting import IngestReport
    from oskit.cluster.ingest.building import Proof
    from oskit.cluster.ingest.plan import LoadPlan
    from oskit.cluster.ingest.release import ReleaseReport
    from oskit.evaluation.live.release_proof import Sample

# fmt: off
RELEASE_OPTIONS = [
    click.option("--release", is_flag=True,
                 help="INDEX is an alias: build a new index beside the one that it stands for, verify it, "
                 "and move the alias in one call."),
    click.option("--judgements", metavar="COLLECTION", type=click.Path(file_okay=False),
                 help="With --release: its nDCG@10 on these judged queries must not be below the living "
                 "one's."),
    click.option("--judgements-split", metavar="NAME", help="Which of their judgements.  [test]"),
    click.option("--margin", type=click.FloatRange(0, 1), metavar="X",
                 help="How much of the nDCG@10 may be lost.  [0.01]"),
    click.option("--living-archive", metavar="DIR",
                 help="Archive that encodes queries for the living one, where no deployed model does."),
    click.option("--no-verify", is_flag=True, help="With --release: do not compare with exact scores."),
    click.option("--max-refused", type=click.FloatRange(0, 1), metavar="SHARE",
                 help="With --release: share of the records that may be refused.  [0.01]"),
    click.option("--keep", type=click.IntRange(2), metavar="N",
                 help="Then delete older releases but N, the living one included, and models that nobody "
                 "uses any more.  [all stay]"),
]
# fmt: on

_WITHOUT_EFFECT = ("recreate", "reencode", "delete_missing", "part")


def check_options(options: dict[str, Any]) -> None:
    """Refuse what has no effect with ``--release``, or without it.

    Raises:
        UsageError: There is such an option.
    """
    own = [option.name for option in _parameters() if option.name != "release"]
    given = [name for name in own if options[name] not in (None, False)]
    if not options["release"]:
        if given:
            raise UsageError(f"{_named(given)} has no effect without --release")
        return
    if useless := [name for name in _WITHOUT_EFFECT if options[name]]:
        raise UsageError(
            f"{_named(useless)} has no effect with --release, which loads everything into a new index"
        )
    for name in ("margin", "living_archive", "judgements_split"):
        if options[name] is not None and options["judgements"] is None:
            raise UsageError(f"{_named([name])} has no effect without --judgements")
    if options["no_verify"]:
        return
    if options["archive"] is None:
        raise UsageError(
            "a release is compared with exact scores, which needs the encoder",
            hint="Give --archive DIR, also where the cluster encodes, or --no-verify",
        )
    if options["runtime"].precision in ("auto", "bf16"):
        raise UsageError(
            f"--precision {options['runtime'].precision} is not exact, and a release is compared with exact "
            "scores",
            hint="Leave it out, or give --no-verify",
        )


def _parameters() -> list[click.Parameter]:
    command = click.Command("of a release")
    for option in RELEASE_OPTIONS:
        option(command)
    return command.params


def _named(names: list[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


class Releasing:
    """What a release does beside loading, told to :func:`oskit.cluster.ingest.release.release`.

    Args:
        client: Of the cluster.
        name: The alias.
        encoder: The one that is opened, if any.
        options: Of the command.
        sample: Has seen the documents.
    """

    def __init__(
        self,
        client: OpenSearch,
        name: str,
        encoder: TextEncoder | None,
        options: dict[str, Any],
        sample: Sample,
        out: Output,
    ) -> None:
        from oskit.data.collection import Collection

        self._client, self._name, self._encoder, self._options = client, name, encoder, options
        self._sample, self._out = sample, out
        self._judged = None
        if options["judgements"]:
            self._judged = Collection.open(options["judgements"], options["judgements_split"] or "test")

    @property
    def _model_id(self) -> str | None:
        """The model that encodes the queries on the cluster, where documents are encoded there as well."""
        options = self._options
        by_model = options["encode"] == "cluster" or (options["archive"] is None and options["model"])
        if options["query_model"] or not by_model:
            return str(options["query_model"]) if options["query_model"] else None
        free = self._encoder is not None and self._encoder.architecture == "inference-free"
        return None if free else str(options["model"])

    def run(
        self, plan: Callable[[str], LoadPlan], load: Callable[[str], IngestReport], called: str | None
    ) -> ReleaseReport:
        """Make the release."""
        from oskit.cluster.ingest.release import MOST_REFUSED, release

        self._measure_living()
        most = self._options["max_refused"]
        return release(
            self._client,
            self._name,
            plan=plan,
            load=load,
            prove=self._prove,
            encoder_name=called,
            keep=self._options["keep"],
            most_refused=MOST_REFUSED if most is None else most,
            force=self._options["yes"],
            notify=self._out.note,
        )

    def _measure_living(self) -> None:
        """Before the work begins, so that what cannot be compared is known at once."""
        from oskit.cluster.index.releases import read_alias
        from oskit.encoder.opening import open_encoder
        from oskit.evaluation.live.release_proof import Asked, measure

        self._living = None
        if (
            self._judged is None
            or (index := read_alias(self._client, self._name, releasing=True).index) is None
        ):
            return
        archive = self._options["living_archive"]
        encoder = archive and open_encoder(
            archive, self._options["runtime"], fallback=False, notify=self._out.note
        )
        self._out.note(f"Asking {index}, which is living, {len(self._judged.queries):,} judged queries")
        self._living = measure(self._client, index, self._judged, Asked(encoder))

    def _prove(self, index: str, _living: str | None, report: IngestReport) -> Proof:
        from oskit.cluster.ingest.building import Proof
        from oskit.evaluation.live.release_proof import MARGIN, Asked, check_release, compare_quality, measure

        proof, note, judged = Proof(), self._out.note, self._judged
        if not self._options["no_verify"] and self._encoder is not None:
            note(f"Verifying {index}")
            proof = check_release(
                self._client,
                index,
                report,
                self._sample,
                self._encoder,
                model_id=self._model_id,
                queries=judged.queries if judged else None,
                on_step=note,
            )
        if judged is not None:
            note(f"Asking {index} {len(judged.queries):,} judged queries")
            model_id = self._model_id
            figures = measure(
                self._client, index, judged, Asked(None if model_id else self._encoder, model_id)
            )
            margin = MARGIN if self._options["margin"] is None else self._options["margin"]
            proof.quality, why = compare_quality(figures, self._living, judged, margin)
            proof.failures += [why] if why else []
        return proof


def released_name(client: OpenSearch, alias: str, encoder: str | None) -> str:
    """What a release that begins now would be called, if the name can be an alias."""
    from oskit.cluster.index.releases import read_alias, release_name

    return release_name(read_alias(client, alias, releasing=True).name, encoder)


def release_calls(
    client: OpenSearch, calls: list[Call], plan: LoadPlan, name: str, keep: int | None
) -> list[Call]:
    """The calls of a load, as a release makes them."""
    from oskit.cluster.client.calls import Call
    from oskit.cluster.index.pruning import older
    from oskit.cluster.index.releases import list_releases, read_alias, release_body

    alias = read_alias(client, name, releasing=True)
    body = release_body(plan.info, plan.settings, {"of": name, "state": "building"})
    moved = alias.move_call(plan.info.name)
    move = Call(moved.method, moved.path, moved.body, "only once it was verified")
    # What is living now is the first of those that stay beside the new one.
    leaving = older(list_releases(client, alias), keep - 2) if keep is not None else []
    pruned = [
        Call("DELETE", one.name, note="with its pipeline, and models that nobody uses") for one in leaving
    ]
    return [Call("PUT", plan.info.name, body), *calls[1:], move, *pruned]


def print_release(console: Console, done: ReleaseReport) -> None:
    """What a person should know of it."""
    before = f", in the place of {done.before}" if done.before else ", the first one"
    lines = [f"{done.alias} is {done.index} now{before}"]
    lines.append(f"  {verified_words(done.proof.verified)}")
    if done.proof.quality:
        lines.append(f"  {quality_words(done.proof.quality)}")
    pruned = [*done.pruned.indexes, *(f"the model {model_id}" for model_id in done.pruned.models)]
    lines += [f"  deleted: {', '.join(pruned)}"] if pruned else []
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def verified_words(found: dict[str, Any] | None) -> str:
    """What was verified, as it is recorded."""
    if found is None:
        return "not verified"
    return f"verified: {found['documents']:,} documents, {found['queries']:,} queries, {found['hits']:,} hits"


def quality_words(found: dict[str, Any]) -> str:
    """The retrieval quality, as it is recorded."""
    told = f"{found['measure']} {found['value']:.3f} on {found['collection']}"
    if "difference" not in found:
        return told
    beside = f"{found['difference']:+.3f} beside {found['living']}, p = {found['p_value']:.3f}"
    return f"{told} ({beside}, {found['queries']:,} queries)"
