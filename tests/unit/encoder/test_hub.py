"""The Hub tier over real HTTP."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from oskit.cli import main
from oskit.encoder.loader import hub
from oskit.encoder.loader.report import CachedCopyWarning, UntrainedProjectionWarning
from oskit.encoder.model import NeuralSparseEncoder
from oskit.errors import BrokenEncoderError, EncoderError, EncoderNotFoundError, HubAccessError
from tests import tiny
from tests.hub_server import Fault, HubServer

TEXT = "a concrete bridge over the water"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny.build("bert", tmp_path_factory.mktemp("served") / "bert")
    (path / "README.md").write_text("# tiny\n")
    (path / "modeling_custom.py").write_text("raise SystemExit('this code must not run')\n")
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(b"not needed")
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    for name in (
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HOME",
        "SENTENCE_TRANSFORMERS_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub, "WAIT", 0.01)
        # huggingface_hub waits a second before it resumes a download.
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
        yield server


@pytest.fixture
def base(folder: Path) -> str:
    return str(folder)


def weights(encoder: NeuralSparseEncoder) -> dict[str, float]:
    return encoder.document_weights([TEXT])[0]


def test_found(server: HubServer, folder: Path) -> None:
    commit = server.add("team/tiny", folder)
    encoder = NeuralSparseEncoder.from_pretrained("team/tiny")
    report = encoder.load_report
    assert (report.tier, report.source, report.revision, report.head) == (
        "hub", "team/tiny", commit, "pretrained",
    )  # fmt: skip
    assert [attempt.outcome for attempt in report.attempts] == ["missing", "loaded"]
    assert weights(encoder) == weights(NeuralSparseEncoder.from_pretrained(folder))


def test_only_the_files_needed_are_downloaded(server: HubServer, folder: Path) -> None:
    server.add("team/tiny", folder)
    NeuralSparseEncoder.from_pretrained("team/tiny")
    files = {line.rpartition("/")[2] for line in server.downloads("team/tiny")}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_older_weights_are_downloaded_for_want_of_safetensors(server: HubServer, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    old = tiny.build("bert", tmp_path / "old")
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    expected = weights(NeuralSparseEncoder.from_pretrained(old))
    (old / "model.safetensors").unlink()
    server.add("team/old", old)
    assert weights(NeuralSparseEncoder.from_pretrained("team/old")) == expected

    assert weights(NeuralSparseEncoder.from_pretrained("team/old", local_files_only=True)) == expected


def test_a_revision_is_a_branch_a_tag_or_a_commit(server: HubServer, folder: Path, tmp_path: Path) -> None:
    commit = server.add("team/tiny", folder)
    server.repositories["team/tiny"].revisions["v1"] = commit
    assert NeuralSparseEncoder.from_pretrained("team/tiny", revision="v1").load_report.revision == commit
    assert NeuralSparseEncoder.from_pretrained("team/tiny", revision=commit).load_report.revision == commit
    with pytest.raises(EncoderNotFoundError, match="team/tiny has no revision 'v9'"):
        NeuralSparseEncoder.from_pretrained("team/tiny", revision="v9", base=str(folder))


def test_not_found_leads_to_the_base(server: HubServer, base: str) -> None:
    with pytest.warns(UntrainedProjectionWarning) as caught:
        encoder = NeuralSparseEncoder.from_pretrained("team/missing", base=base)
    assert len(caught) == 1
    report = encoder.load_report
    assert (report.tier, report.head, report.source) == ("base", "random", base)
    assert [(a.tier, a.outcome) for a in report.attempts] == [
        ("local", "missing"), ("hub", "missing"), ("base", "loaded"),
    ]  # fmt: skip
    text = str(caught[0].message)
    assert "team/missing: the Hub has no such repository (404)" in " ".join(text.replace("!!", "").split())
    assert "Train it before" in text


def test_the_base_comes_from_the_hub_too(server: HubServer, folder: Path) -> None:
    commit = server.add("team/base", folder)
    with pytest.warns(UntrainedProjectionWarning):
        encoder = NeuralSparseEncoder.from_pretrained("team/missing", base="team/base", revision="v3")
    assert encoder.load_report.revision == commit


def test_without_fallback_not_found_is_an_error(server: HubServer) -> None:
    with pytest.raises(EncoderNotFoundError, match=r"team/missing.*no such folder.*no such repository"):
        NeuralSparseEncoder.from_pretrained("team/missing", fallback=False)


def test_nothing_found_names_every_attempt(server: HubServer) -> None:
    with pytest.raises(EncoderNotFoundError, match=r"team/missing: the Hub has no.*nobase: the Hub has no"):
        NeuralSparseEncoder.from_pretrained("team/missing", base="team/nobase")


def test_a_private_repository_needs_a_token(
    server: HubServer, folder: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("team/private", folder, token="hf_secret")
    with pytest.raises(HubAccessError, match="refused team/private") as raised:
        NeuralSparseEncoder.from_pretrained("team/private", base=base)
    assert "hf auth login" in str(raised.value)
    with pytest.raises(HubAccessError) as raised:
        NeuralSparseEncoder.from_pretrained("team/private", base=base, token="hf_wrong")
    assert "hf_wrong" not in str(raised.value)
    assert NeuralSparseEncoder.from_pretrained("team/private", token="hf_secret").load_report.tier == "hub"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert NeuralSparseEncoder.from_pretrained("team/private").load_report.tier == "hub"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_without_the_hubs_headers_is_refused_too(
    server: HubServer, folder: Path, base: str, status: int
) -> None:
    server.add("team/tiny", folder)
    server.fail("/api/models/team/tiny", status, times=99)
    with pytest.raises(HubAccessError, match=f"refused team/tiny \\({status}\\)"):
        NeuralSparseEncoder.from_pretrained("team/tiny", base=base)


def test_a_gated_repository_needs_consent(server: HubServer, folder: Path, base: str) -> None:
    server.add("team/gated", folder, gated=True)
    with pytest.raises(HubAccessError, match=r"team/gated is gated.*Ask for access at http"):
        NeuralSparseEncoder.from_pretrained("team/gated", base=base)


def test_a_failing_hub_is_asked_again(server: HubServer, folder: Path) -> None:
    server.add("team/tiny", folder)
    server.fail("/api/models/team/tiny", 500, times=2)
    server.fail("model.safetensors", 503, times=1)
    encoder = NeuralSparseEncoder.from_pretrained("team/tiny")
    assert encoder.load_report.tier == "hub"
    assert weights(encoder) == weights(NeuralSparseEncoder.from_pretrained(folder))


def test_a_hub_that_keeps_failing_leads_to_the_base(server: HubServer, folder: Path, base: str) -> None:
    server.add("team/tiny", folder)
    server.fail("/api/models/team/tiny", 500, times=99)
    with pytest.warns(UntrainedProjectionWarning):
        report = NeuralSparseEncoder.from_pretrained("team/tiny", base=base).load_report
    assert report.attempts[1].outcome == "unreachable"
    assert "500" in report.attempts[1].reason
    assert sum("/api/models/team/tiny" in line for line in server.requests) == hub.ATTEMPTS


def test_a_download_that_is_cut_off_goes_on_where_it_was(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("team/tiny", folder)
    server.cut("model.safetensors", 1000)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    encoder = NeuralSparseEncoder.from_pretrained("team/tiny")
    assert weights(encoder) == weights(NeuralSparseEncoder.from_pretrained(folder))
    assert any("bytes=1000-" in line for line in server.requests)


def test_a_download_that_is_always_cut_off_is_an_error_and_goes_on_next_time(
    server: HubServer, folder: Path, base: str
) -> None:
    server.add("team/tiny", folder)
    server.cut("model.safetensors", 0, times=99)
    with pytest.raises(BrokenEncoderError, match=r"download of team/tiny .* failed"):
        NeuralSparseEncoder.from_pretrained("team/tiny", base=base)
    server.faults.clear()
    encoder = NeuralSparseEncoder.from_pretrained("team/tiny", base=base)
    assert weights(encoder) == weights(NeuralSparseEncoder.from_pretrained(folder))


@pytest.mark.parametrize("how", ["environment", "argument", "unreachable", "refused"])
def test_a_filled_cache_works_offline(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    commit = server.add("team/tiny", folder)
    expected = weights(NeuralSparseEncoder.from_pretrained("team/tiny"))
    asked = len(server.requests)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif how == "refused":
        server.repositories["team/tiny"].token = "hf_other"
    with pytest.warns(CachedCopyWarning) if how in ("unreachable", "refused") else nullcontext():
        encoder = NeuralSparseEncoder.from_pretrained("team/tiny", local_files_only=how == "argument")
    assert weights(encoder) == expected
    assert encoder.load_report.revision == commit
    assert "cached" in encoder.load_report.attempts[-1].reason
    assert how == "refused" or len(server.requests) == asked


@pytest.mark.parametrize("how", ["environment", "argument", "unreachable"])
def test_an_empty_cache_offline_leads_to_the_base(
    server: HubServer, folder: Path, base: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    server.add("team/tiny", folder)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UntrainedProjectionWarning):
        encoder = NeuralSparseEncoder.from_pretrained(
            "team/tiny", base=base, local_files_only=how == "argument"
        )
    assert encoder.load_report.attempts[1].outcome == "unreachable"
    assert server.requests == []


def test_a_cache_that_cannot_be_written(server: HubServer, folder: Path, base: str, tmp_path: Path) -> None:
    server.add("team/tiny", folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="cannot be written to the Hub's cache"):
        NeuralSparseEncoder.from_pretrained("team/tiny", base=base, cache_folder=tmp_path / "file" / "cache")


def test_code_is_only_downloaded_when_it_may_run(server: HubServer, folder: Path) -> None:
    server.add("team/tiny", folder)
    NeuralSparseEncoder.from_pretrained("team/tiny", trust_remote_code=True)
    assert any(line.endswith("modeling_custom.py") for line in server.downloads("team/tiny"))


# Updates that are cut


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of an encoder of many files, all of which differ."""
    old = tiny.build_inference_free(tmp_path_factory.mktemp("versions") / "old")
    (old / "idf.json").write_text('{"bridge": 1.0}')
    new = old.with_name("new")
    shutil.copytree(old, new)
    for path in (path for path in new.rglob("*") if path.is_file()):
        if path.suffix == ".safetensors":
            save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
        else:
            path.write_text(path.read_text() + "\n")
    return old, new


def needed(folder: Path) -> list[str]:
    unread = ("README.md", ".gitattributes")
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if file not in unread)


def content(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in needed(folder)}


def copied_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """A cache of its own, as the first one is; returns the repository's folder in it."""
    shutil.copytree(tmp_path / "cache", tmp_path / name, symlinks=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / name))
    return tmp_path / name / "models--team--many"


def fetch_warned(*, offline: bool) -> hub.Snapshot:
    snapshot = hub.fetch("team/many", hub.HubOptions(local_files_only=offline))
    assert snapshot.warning is not None and snapshot.revision[:12] in snapshot.warning
    return snapshot


def test_an_update_cut_at_any_file_leaves_the_commit_before_it(
    server: HubServer, versions: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online and in the next call offline; one that succeeds mends it."""
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    old = server.add("team/many", versions[0])
    hub.fetch("team/many", hub.HubOptions())
    new = server.add("team/many", versions[1])
    files = needed(versions[1])
    assert len(files) > 10
    for number, file in enumerate(files):
        copied_cache(tmp_path, monkeypatch, f"cut-{number}")
        server.faults = [Fault(f"resolve/{new}/{file}", 99, status=503)]
        snapshot = fetch_warned(offline=False)
        assert (snapshot.revision, content(snapshot.folder)) == (old, content(versions[0])), file
        assert "503" in str(snapshot.warning)
        snapshot = fetch_warned(offline=True)
        assert (snapshot.revision, content(snapshot.folder)) == (old, content(versions[0])), file
        assert new[:12] in str(snapshot.warning) and "lacks" in str(snapshot.warning)
    server.faults.clear()
    for offline in (False, True):
        snapshot = hub.fetch("team/many", hub.HubOptions(local_files_only=offline))
        assert (snapshot.revision, snapshot.warning) == (new, None)
        assert content(snapshot.folder) == content(versions[1])


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not listed"])
def test_whatever_another_program_left_of_an_update_is_not_used(
    server: HubServer,
    versions: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: bool,
) -> None:
    """Any files of it may be there, with or without a list of all; its branch points to it."""
    from huggingface_hub import snapshot_download

    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    old = server.add("team/many", versions[0])
    hub.fetch("team/many", hub.HubOptions())
    new = server.add("team/many", versions[1])
    snapshot_download("team/many", cache_dir=tmp_path / "cache", endpoint=server.url)
    files = needed(versions[1])
    draw = random.Random(3)
    subsets = [[file] for file in files] + [draw.sample(files, draw.randint(2, len(files))) for _ in range(6)]
    for number, lost in enumerate(subsets):
        repository = copied_cache(tmp_path, monkeypatch, f"left-{number}")
        assert (repository / "refs" / "main").read_text() == new
        for file in lost:
            (repository / "snapshots" / new / file).unlink()
        if not listed:
            shutil.rmtree(repository / "trees")
        server.faults = [Fault(f"resolve/{new}/{draw.choice(lost)}", 99, status=503)]
        for offline in (True, False)[: 1 + number % 2]:
            snapshot = fetch_warned(offline=offline)
            assert (snapshot.revision, content(snapshot.folder)) == (old, content(versions[0])), lost
        if listed:  # and without an older one nothing is
            shutil.rmtree(repository / "snapshots" / old)
            with pytest.raises(BrokenEncoderError, match=f"no complete copy of team/many .*{new[:12]}"):
                hub.fetch("team/many", hub.HubOptions(local_files_only=True))


@pytest.mark.parametrize("how", ["offline", "unreachable", "not found", "cut again"])
def test_half_a_download_is_never_replaced_by_a_random_encoder(
    server: HubServer, folder: Path, base: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    server.add("team/tiny", folder)
    server.cut("model.safetensors", 0, times=99)
    with pytest.raises(BrokenEncoderError):
        NeuralSparseEncoder.from_pretrained("team/tiny", base=base)
    if how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif how == "not found":
        server.repositories.clear()
    message = "download of" if how == "cut again" else r"no complete copy of team/tiny .* lacks model\.saf"
    with pytest.raises(BrokenEncoderError, match=message):
        NeuralSparseEncoder.from_pretrained("team/tiny", base=base, local_files_only=how == "offline")


def test_after_a_cut_update_the_older_encoder_is_loaded_with_a_warning(
    server: HubServer, folder: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = server.add("team/tiny", folder)
    expected = weights(NeuralSparseEncoder.from_pretrained("team/tiny"))
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    tensors = load_file(newer / "model.safetensors")
    bias = "cls.predictions.bias"
    save_file(tensors | {bias: tensors[bias] + 1}, newer / "model.safetensors", metadata={"format": "pt"})
    (newer / "config.json").write_text((newer / "config.json").read_text() + "\n")
    server.add("team/tiny", newer)
    server.fail("model.safetensors", 503, times=99)
    for offline in (False, True):
        with pytest.warns(CachedCopyWarning, match=f"team/tiny: cached commit {old[:12]} used: ") as caught:
            encoder = NeuralSparseEncoder.from_pretrained("team/tiny", base=base, local_files_only=offline)
        assert [warning.filename for warning in caught] == [__file__]
        assert (encoder.load_report.tier, encoder.load_report.revision) == ("hub", old)
        assert weights(encoder) == expected
    assert main(["load", "team/tiny", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["revision"] == old
    assert f"team/tiny: cached commit {old[:12]} used: " in printed.err
    server.faults.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights(NeuralSparseEncoder.from_pretrained("team/tiny")) != expected


def test_a_revision_that_was_named_stands_for_itself_alone(
    server: HubServer, folder: Path, base: str, tmp_path: Path
) -> None:
    server.add("team/tiny", folder)
    NeuralSparseEncoder.from_pretrained("team/tiny")
    with pytest.raises(BrokenEncoderError, match="no revision 'v2'"):
        NeuralSparseEncoder.from_pretrained("team/tiny", revision="v2", base=base, local_files_only=True)
    # Nor does a branch that was named stand for the newest, however new it is.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    main = server.repositories["team/tiny"].revisions["main"]
    server.add("team/tiny", other)
    server.repositories["team/tiny"].revisions["trial"] = server.repositories["team/tiny"].revisions["main"]
    NeuralSparseEncoder.from_pretrained("team/tiny", revision="trial")
    (tmp_path / "cache" / "models--team--tiny" / "refs" / "main").unlink()
    with pytest.warns(CachedCopyWarning, match="no revision 'main'"):
        encoder = NeuralSparseEncoder.from_pretrained("team/tiny", local_files_only=True)
    assert encoder.load_report.revision == main


def test_an_answer_that_is_not_the_hubs_is_unreachable(server: HubServer, folder: Path, base: str) -> None:
    """A captive portal answers 200 to everything, with a page of its own."""
    server.add("team/tiny", folder)
    server.fail("/", 200, times=99)
    with pytest.warns(UntrainedProjectionWarning):
        report = NeuralSparseEncoder.from_pretrained("team/tiny", base=base).load_report
    assert report.attempts[1].outcome == "unreachable"


def test_what_looks_like_a_path_is_not_asked_for(server: HubServer, tmp_path: Path, base: str) -> None:
    for name in (
        str(tmp_path / "typo"),
        "./typo",
        "out/model/final",
        "typo/",
        "~/typo",
        "C:\\typo",
        "a..b/c",
    ):
        with pytest.raises(EncoderNotFoundError, match="not the name of a repository"):
            NeuralSparseEncoder.from_pretrained(name, fallback=False)
    assert server.requests == []
