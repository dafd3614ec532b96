"""Recipes from YAML: places of mistakes, --set, paths, stages, the included ones."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oskit.errors import DataError, UsageError
from oskit.training.recipe.errors import RecipeError
from oskit.training.recipe.file import (
    described_recipes,
    included_recipes,
    included_text,
    load_recipe,
    recipe_schema,
    resolved_yaml,
    stages_of,
)
from oskit.training.recipe.objective import InfoNceConfig, KlConfig
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.teachers import Bm25TeacherConfig, DenseTeacherConfig, SparseTeacherConfig
from oskit.training.recipe.yaml_document import parse_yaml

SMALL: dict[str, Any] = {"name": "x", "encoder": {"name": "e"}, "data": {"train": "p.jsonl"}}


BOMB = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else '*b'] * 9)}]\n" for n in range(6))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipes" / "my.yaml"


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def problems(file: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return caught.value.problems


# --- mistakes and where they are


def test_each_mistake_has_its_line_and_key(file: Path) -> None:
    written(
        file,
        "name: x\n"
        "encoder:\n"
        "  name: e\n"
        "  max_lenght: 12\n"
        "data:\n"
        "  train:\n"
        "    - path: a.jsonl\n"
        "    - {path: b.jsonl,\n"
        "       limit: 0}\n"
        "schedule: {steps: x}\n",
    )
    assert problems(file) == (
        f"{file}:4: unknown key encoder.max_lenght; did you mean max_length?",
        f"{file}:9: data.train.1.limit: should be greater than 0, not 0",
        f"{file}:10: schedule.steps: should be a valid integer, unable to parse string as an integer, "
        "not 'x'",
    )


def test_a_missing_key_points_to_the_part_that_lacks_it(file: Path) -> None:
    written(file, "name: x\ndata: {train: p.jsonl}\nencoder:\n  max_length: 3\n")
    assert problems(file) == (f"{file}:3: encoder.name is missing; --set encoder.name=... gives it",)


def test_an_unlike_key_is_answered_with_those_that_there_are(file: Path) -> None:
    written(file, "name: x\ndata: {train: p}\nencoder: {name: e}\nevaluation: {zzz: 1}\n")
    assert problems(file) == (
        f"{file}:4: unknown key evaluation.zzz; there are: collection, split, queries, corpus, judgements, "
        "max_flops",
    )


def test_a_mistake_in_a_validator_of_ours_is_told_without_its_name(file: Path) -> None:
    written(file, "name: x\ndata: {train: p}\nencoder: {name: e}\nsparsity:\n  documents: {kind: l1}\n")
    assert problems(file) == (f"{file}:5: sparsity.documents: give a weight or a target",)


def test_mistakes_in_lists_of_kinds_have_their_place(file: Path) -> None:
    written(
        file,
        "name: x\ndata: {train: p}\nencoder: {name: e}\n"
        "loss:\n- kind: kl\n  scale: 3\n- {kind: l3}\n- weight: 2\n"
        "teachers:\n  - {kind: dense, nmae: d}\n  - kind: sparse\n",
    )
    assert problems(file) == (
        f"{file}:10: unknown key teachers.0.nmae; did you mean name?",
        f"{file}:11: teachers.1.name is missing; --set teachers.1.name=... gives it",
        f"{file}:6: unknown key loss.0.scale; there are: kind, weight, temperature, t_squared, candidates",
        f"{file}:7: loss.1 is of the unknown kind 'l3'; there are: kl, margin_mse, info_nce",
        f"{file}:8: loss.2 needs a kind; there are: kl, margin_mse, info_nce",
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"loss": []}, "loss: give at least one"),
        ({"loss": "kl"}, "loss: should be a list, not 'kl'"),
        ({"loss": {"kl": {}}}, "loss: should be a list"),
        ({"teachers": []}, "kl needs a teacher with a weight"),
        ({"teachers": [{"kind": "dense", "weight": 0}]}, "kl needs a teacher with a weight"),
        ({"teachers": [{"kind": "stored"}], "loss": [{"kind": "kl", "candidates": "batch"}]}, "stored"),
        (
            {
                "teachers": [{"kind": "dense"}, {"kind": "cross-encoder", "name": "c"}],
                "loss": [{"kind": "info_nce"}, {"kind": "margin_mse", "candidates": "batch"}],
            },
            "margin_mse over the batch cannot have the cross-encoder teacher",
        ),
        (
            {"teachers": [{"kind": "bm25"}], "data": {"train": "p", "negatives": {}}},
            "mined with a dense teacher, and there is none",
        ),
        ({"sparsity": {"documents": {"target": 9, "target_flops": 1}}}, "one of target and target_flops"),
        ({"sparsity": {"documents": {"target": 60, "top_k": 60}}}, "a target of 60 changes nothing"),
        ({"seed": 2**32}, "seed: should be less than 4294967296"),
        ({"data": {"train": "p", "negatives": {"seed": -1}}}, "seed: should be greater than or equal to 0"),
        ({"schedule": {"max_length": 2}}, "max_length: should be greater than or equal to 3"),
        ({"sparsity": {"documents": {"target": math.inf}}}, "target: should be a finite number"),
        ({"sparsity": {"documents": {"kind": "l1", "weight": 1, "over": "slot"}}}, "over: slot changes"),
        ({"sparsity": {"queries": {"weight": 1, "over": "slot"}}}, "unknown key sparsity.queries.over"),
        ({"sparsity": {"ramp": {"share": 0.6, "delay": 0.5}}}, "1.1 of the steps"),
        ({"sparsity": {"ramp": 1.5}}, "sparsity.ramp"),
        ({"sparsity": {"documents": None}}, "sparsity.documents: should be a mapping of keys to values, not"),
        ({"teachers": [{"kind": "bm25", "language": "klingon"}]}, "language: BM25 knows no stemmer for 'kl"),
        ({"loss": [3]}, "loss.0: should be a mapping of keys to values, not 3"),
        ({"data": {"train": {"path": "p", "limt": 3}}}, "unknown key data.train.limt; did you mean limit?"),
        ({"data": {"train": "p", "sampling": {"negatives": 3, "top": 4}}}, "top is 4, more than the 3"),
    ],
)
def test_what_cannot_be_right_together(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**SMALL, **parts})
    (problem,) = caught.value.problems
    assert message in problem


def test_short_forms_and_what_follows_from_a_recipe() -> None:
    recipe = load_recipe(
        {
            **SMALL,
            "data": {"train": "p", "negatives": {}, "sampling": {"negatives": 5}},
            "teachers": [{"kind": "dense", "weight": 0}, {"kind": "cross-encoder", "name": "c"}],
            "loss": [{"kind": "margin_mse"}, {"kind": "info_nce"}],
            "sparsity": {"documents": {"target": 120}, "ramp": 0.4},
        }
    )
    assert recipe.miner == DenseTeacherConfig(weight=0)
    assert recipe.labelling == recipe.teachers[1:]
    assert (recipe.labelled, recipe.data.sampling.best) == ({"own"}, 3)
    assert (recipe.sparsity.ramp.share, recipe.sparsity.ramp.end) == (0.4, 0.4)
    assert recipe.sparsity.documents.aim == ("target", 120)
    bare = load_recipe({**SMALL, "loss": [{"kind": "info_nce"}], "teachers": []})
    assert (bare.labelling, bare.labelled, bare.miner) == ((), set(), None)


def test_a_mistake_in_an_option_names_the_option(file: Path) -> None:
    written(file, "name: x\ndata: {train: p}\nencoder: {name: e}\n")
    with pytest.raises(
        UsageError, match=r"--set schedule\.steps=0: schedule\.steps: should be greater than 0"
    ):
        load_recipe(file, ["schedule.steps=0"])
    with pytest.raises(UsageError, match=r"unknown key schedul; did you mean schedule\?"):
        load_recipe(file, ["schedul.steps=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", ':4: not YAML: found duplicate key "c"'),
        ("a:\n\tb: 1\n", ":2: not YAML: found character"),
        ("a: [1\n", "not YAML"),
        ("", ": the recipe is empty"),
        ("# nothing\n", ": the recipe is empty"),
        ("- a\n", ":1: a recipe is a mapping"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML"),
        ("a: !!python/object:os.system x\n", ":1: not YAML: could not determine a constructor for the tag"),
        ("a: &x\n  b: *x\n", "contains itself"),
        ("[" * 2000, "nested too deeply"),
        ("a: \x07\n", "not YAML"),
        ("? [1, 2]\n: 3\n", ":1: unknown key (1, 2)"),
        ("a: &a [1, 2, 3]\nb: &b [*a, *a]\n" + BOMB, "too many values by aliases of aliases"),
    ],
)
def test_what_is_no_recipe_is_one_line(file: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_recipe(written(file, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\ndescription: \xe4\n")
    with pytest.raises(DataError, match=r"latin\.yaml:2: not UTF-8"):
        load_recipe(latin)
    with pytest.raises(DataError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(UsageError, match=r"no recipe is called 'quik'. Did you mean quick\?"):
        load_recipe("quik")


# --- values


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "a: 1e-5\nb: no\nc: 010\nd: 2024-01-01\ne: '5'\nf: !!str 5\ng: 1:30\nh:\ni: 0x1f\nj: .5\nk: true\n"
    assert parse_yaml(text, "x") == {
        "a": 1e-5,
        "b": "no",
        "c": 10,
        "d": "2024-01-01",
        "e": "5",
        "f": "5",
        "g": "1:30",
        "h": None,
        "i": 31,
        "j": 0.5,
        "k": True,
    }


def test_a_number_that_is_written_as_text_is_a_number(file: Path) -> None:
    written(file, "name: x\ndata: {train: p}\nencoder: {name: e}\nschedule: {learning_rate: '1e-5'}\n")
    assert load_recipe(file).schedule.learning_rate == 1e-5


def test_anchors_and_merge_keys(file: Path) -> None:
    written(
        file,
        "name: x\nencoder: {name: e}\ndata: {train: p}\n"
        "sparsity:\n  documents: &side {weight: 0.1, threshold: 7}\n"
        "  queries:\n    <<: *side\n    weight: 0.2\n",
    )
    sparsity = load_recipe(file).sparsity
    assert sparsity.queries is not None
    assert (sparsity.queries.weight, sparsity.queries.threshold, sparsity.documents.weight) == (0.2, 7, 0.1)


# --- --set


def test_options_reach_into_lists_and_make_what_is_missing(file: Path) -> None:
    written(file, "name: x\nencoder: {name: e}\ndata: {train: p.jsonl}\n")
    recipe = load_recipe(
        file,
        [
            "data.train.0.limit=5",
            "data.train.1.path=/q.csv",
            "data.train.1.columns={query: search}",
            "loss.info_nce.weight=0.5",
            "teachers.dense.name=org/other",
            "schedule.learning_rate=1e-4",
            "encoder.revision='2024'",
            "evaluation.collection=null",
        ],
    )
    first, second = recipe.data.train
    assert (first.limit, second.path, second.columns.query) == (5, "/q.csv", "search")
    assert first.path == str(file.parent / "p.jsonl")
    assert recipe.loss == (KlConfig(), InfoNceConfig(weight=0.5)), "beside the one that is there anyway"
    assert recipe.teachers == (DenseTeacherConfig(name="org/other"),)
    assert (recipe.schedule.learning_rate, recipe.encoder.revision) == (1e-4, "2024")


def test_a_later_option_wins(file: Path) -> None:
    written(file, "name: x\nencoder: {name: e}\ndata: {train: p}\n")
    assert load_recipe(file, ["schedule.steps=1", "schedule={steps: 2}"]).schedule.steps == 2


@pytest.mark.parametrize(
    "option",
    [
        *("schedule.steps", "=3", "a..b=3", "data.train.7.path=x", "name.x=1", "a=[1"),
        *("loss.l3.weight=1", "loss.kl.weight=2", "data.train.pairs.limit=1", "loss.info_nce=null"),
    ],
)
def test_options_that_cannot_be(file: Path, option: str) -> None:
    twice = "loss: [{kind: kl}, {kind: kl}]\n"
    written(file, f"name: x\nencoder: {{name: e}}\ndata: {{train: [p]}}\n{twice}")
    with pytest.raises(UsageError) as caught:
        load_recipe(file, [option])
    assert f"--set {option}" in str(caught.value)


# --- paths


def test_paths_are_those_of_the_file_or_of_the_working_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        file,
        "name: x\n"
        "encoder: {name: model, idf: idf.json}\n"
        "data: {train: [a.jsonl, {path: ../b.jsonl}, {path: '-'}, {hub: some/thing}]}\n"
        "teachers: [{kind: dense, name: some/teacher, texts: en.jsonl}, {kind: sparse, name: ./not-there}]\n"
        "evaluation: {collection: faq}\n",
    )
    (file.parent / "model").mkdir()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    options = ["data.train.4.path=c.jsonl", "evaluation.collection=other", "teachers.bm25.texts=there.jsonl"]
    recipe = load_recipe(file, options)
    assert [source.path for source in recipe.data.train] == [
        *(str(file.parent / "a.jsonl"), str(tmp_path / "b.jsonl"), "-", None, str(here / "c.jsonl"))
    ]
    assert recipe.evaluation.collection == here / "other"
    assert (recipe.encoder.name, recipe.encoder.idf) == (str(file.parent / "model"), file.parent / "idf.json")
    dense, sparse, bm25 = recipe.teachers
    assert isinstance(dense, DenseTeacherConfig) and isinstance(sparse, SparseTeacherConfig)
    assert dense.name == "some/teacher", "a repository, for there is no such folder"
    assert sparse.name == str(file.parent / "not-there"), "a dot means a folder"
    assert isinstance(bm25, Bm25TeacherConfig)
    assert (dense.texts, bm25.texts) == (file.parent / "en.jsonl", here / "there.jsonl")


def test_one_source_alone_has_its_path_resolved_and_nothing_else(file: Path) -> None:
    written(file, "name: x\nencoder: {name: e}\ndata: {train: {path: a.jsonl, kind: documents}}\n")
    (source,) = load_recipe(file).data.train
    assert (source.path, source.kind) == (str(file.parent / "a.jsonl"), "documents")


# --- stages


def staged(**change: Any) -> dict[str, Any]:
    return {**SMALL, "stages": [{}, change]}


def test_a_stage_changes_only_what_it_says() -> None:
    sparse = {"name": "{stage:1}", "weight": 0.5}
    loss = [{"kind": "kl"}, {"kind": "info_nce", "weight": 0.3}]
    removed = {"info_nce": None, "margin_mse": None}  # of which one is there
    change = {"teachers": {"dense": {"weight": 0.5}, "sparse": sparse}, "loss": removed}
    recipe = load_recipe({**staged(**change, schedule={"steps": 7}), "loss": loss})
    first, second = stages_of(recipe)
    assert (first.teachers, first.schedule.steps) == ((DenseTeacherConfig(),), None)
    assert first.loss == (KlConfig(), InfoNceConfig(weight=0.3))
    assert second.teachers == (
        DenseTeacherConfig(weight=0.5),
        SparseTeacherConfig(name="{stage:1}", weight=0.5),
    )
    assert second.loss == (KlConfig(),)
    assert (second.schedule.steps, second.schedule.batch_size) == (7, 32)
    assert first.stages == second.stages == ()
    assert stages_of(first) == (first,)


def test_a_mistake_in_a_stage_has_its_line(file: Path) -> None:
    written(
        file,
        "name: x\nencoder: {name: e}\ndata: {train: p}\nstages:\n- {}\n"
        "- schedule:\n    steps: -1\n  teachers:\n    sparse: {weight: 1}\n",
    )
    assert problems(file) == (
        f"{file}:9: teachers.1.name is missing; --set teachers.1.name=... gives it",
        f"{file}:7: schedule.steps: should be greater than 0, not -1",
    )


@pytest.mark.parametrize("reference", ["{stage:2}", "{stage:0}"])
def test_a_stage_uses_earlier_ones_only(reference: str) -> None:
    with pytest.raises(RecipeError, match="is not before stage 2"):
        load_recipe(staged(encoder={"name": reference}))


def test_stages_have_no_stages() -> None:
    with pytest.raises(RecipeError, match="no stages of its own"):
        load_recipe(staged(stages=[{}]))


# --- the resolved recipe, the schema, the included recipes


def test_the_resolved_recipe_reads_back_to_the_same(file: Path) -> None:
    recipe = load_recipe(
        {**staged(schedule={"learning_rate": 2e-5}), "description": "no: 'yes' # 1e5", "name": "1e5"},
        ["encoder.revision='2024'", "schedule.learning_rate=1e-7", "data.train.0.columns.query=null"],
    )
    assert load_recipe(written(file, resolved_yaml(recipe))) == recipe


def test_the_reference_of_keys_is_up_to_date_and_explains_each() -> None:
    docs = Path(__file__).parents[3] / "docs"
    spec = importlib.util.spec_from_file_location(
        "write_recipe_reference", docs / "write_recipe_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(key.meaning for key in module.recipe_keys())
    written = (docs / "recipe-keys.md").read_text(encoding="utf-8")
    assert written == module.reference(), "docs/recipe-keys.md is out of date: make docs"
    for name in ("schedule.steps", "data.train[].path", "sparsity.documents.weight", "teachers.sparse.name"):
        assert f"| `{name}` |" in written


def test_the_schema_describes_what_it_accepts() -> None:
    schema = recipe_schema()
    json.dumps(schema)
    assert schema["required"] == ["name", "encoder", "data"]
    parts = schema["$defs"]
    assert parts["SchedulePart"]["properties"]["batch_size"]["description"].startswith(
        "Examples of one optimizer"
    )
    for part in (schema, *parts.values()):
        for name, key in part.get("properties", {}).items():
            assert key.get("description") or "$ref" in json.dumps(key), name


def test_the_included_recipes_say_what_they_are_for() -> None:
    assert included_recipes() == ["quick", "stage-1", "inference-free-v3", "multilingual"]
    assert all(described_recipes().values())


@pytest.mark.parametrize("name", included_recipes())
def test_an_included_recipe_asks_for_what_is_the_users(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    given = []
    for problem in caught.value.problems:
        assert problem.startswith(f"{name}.yaml:")
        given.append(problem.rpartition("--set ")[2].replace("...", "mine"))
    recipe = load_recipe(name, given)
    assert recipe.name == name
    assert recipe.data.train[0].path == str(Path.cwd() / "mine")
    assert stages_of(recipe) == (recipe,)
    assert "<" not in included_text(name).replace("<your", "").replace("<folder", "")


def test_reading_a_recipe_loads_no_torch() -> None:
    script = (
        "import sys\n"
        "from oskit.training.recipe.file import load_recipe\n"
        "load_recipe('quick', ['data.train=x'])\n"
        "print(sorted({'torch', 'datasets', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_values_of_python_are_left_as_they_are() -> None:
    values = {**SMALL, "evaluation": {"collection": Path("faq")}}
    recipe = load_recipe(values, ["schedule.steps=3"])
    assert isinstance(recipe, Recipe)
    assert recipe.evaluation.collection == Path.cwd() / "faq"
    assert values == {**SMALL, "evaluation": {"collection": Path("faq")}}
