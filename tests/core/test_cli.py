import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from rich.text import Text
from typer.testing import CliRunner

from andes_sdk import Pipeline, __version__
from andes_sdk.cli import added, app
from andes_sdk.cli.loading import open_pipeline, with_options
from andes_sdk.errors import ConfigError
from andes_sdk.hookspecs import COMMANDS
from andes_sdk.runtime.generation import GenerationOptions

TINY = """\
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]
image = { min_size = 28 }
seed = 3
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def recipe(tmp_path):
    data = [
        {"messages": [{"role": "user", "content": f"{i} plus 1?"}, {"role": "assistant", "content": str(i + 1)}]}
        for i in range(6)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(d) + "\n" for d in data))
    body = TINY.replace("seed", "# seed").replace("\n", "\n", 1)
    stage = 'stage = "sft"\nsteps = 3\nmax_tokens = 64\ncheckpoint_every = 2\ndata = [{ path = "data.jsonl" }]\n'
    (tmp_path / "recipe.toml").write_text(f'name = "tiny"\nthreads = 1\n[pipeline]\n{body}[[stages]]\n{stage}')
    return str(tmp_path / "recipe.toml")


def andes(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def app_names():
    group = typer.main.get_command(app)
    return group.list_commands(typer.Context(group))


def loads(*arguments, **options):
    return json.loads(andes(*arguments, **options).stdout)


# ---------------------------------------------------------------- starting


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plugins"], ["plugins", "--json"], ["plugins", "check", "--help"], ["new", "--help"]],
)
def test_starting_and_listing_import_neither_torch_nor_transformers_nor_plugins(arguments):
    code = f"""
import sys
from andes_sdk.cli import main
sys.argv = ["andes", *{arguments!r}]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
loaded = {{m.partition(".")[0] for m in sys.modules}}
heavy = loaded & {{"torch", "transformers", "numpy", "PIL"}} | sys.modules.keys() & {{"andes_sdk.testing"}}
plugins = {{m for m in loaded if m.startswith("andes_") and m != "andes_sdk"}}
every = sorted(heavy | plugins)
print("loaded:", *every, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # the help shows what commands of other distributions do, which their modules say
    added = [
        "andes_adapters",
        "andes_andesui",
        "andes_andesvl",
        "andes_chat",
        "andes_compression",
        "andes_curation",
        "andes_dimensity",
        "andes_evaluation",
        "andes_numba",
        "andes_okv",
        "andes_qalft",
        "andes_serve",
        "andes_speculative",
        "andes_training",
    ]
    added = added if arguments == ["--help"] else []
    assert done.stderr.split() == ["loaded:", *added]


def test_the_version_is_printed():
    assert andes("--version").stdout == f"andes_sdk {__version__} (contract 1.1)\n"


def test_help_lists_all_commands_in_one_order():
    names = app_names()
    assert names == sorted(names)
    assert {"chat", "explain", "generate", "new", "plugins", "train"} <= {*names}


def helps(command, path):
    """(where, text) of a command, its options and its subcommands."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from helps(command.get_command(context, name), f"{path} {name}")


def test_no_help_text_has_brackets_that_the_terminal_takes_for_markup():
    found = dict(helps(typer.main.get_command(app), "andes"))
    assert "andes plugins show name" in found
    assert {where: text for where, text in found.items() if Text.from_markup(text).plain != text} == {}


def test_a_command_of_ours_that_is_not_installed_names_its_distribution(monkeypatch):
    monkeypatch.setattr(added, "extensions", lambda group: [])
    told = andes("chat", "hello", "--model", "x", code=1).stderr
    assert told == (
        "error chat: andes-chat, which brings this command, is not installed\n  do this: pip install andes-chat\n"
    )
    assert "No such command" in andes("nonsense", code=2).output


def test_the_distributions_of_ours_bring_what_the_core_says_of_them():
    brought = {}
    for path in (Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        if commands := project.get("entry-points", {}).get(COMMANDS):
            brought[project["name"]] = tuple(sorted(commands))
    del brought["andes-andesvl"]  # the core names no family
    assert brought == added.OURS


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plugins", "--json", "check"],
        ["batch", "a"],
        ["batch", "a", "b", "--image", "c"],
        ["explain", "a", "--model", "b", "--config", "c"],
        ["train", "recipe.toml"],
        ["new", "a", "--kind", "b"],
    ],
)
def test_wrong_usage_exits_with_two(arguments):
    assert "Usage: " in andes(*arguments, code=2).output


# ---------------------------------------------------------------- plugins, models, explain


def test_plugins_lists_what_is_installed():
    rows = {row["name"]: row for row in loads("plugins", "--json")}
    assert list(rows["mlp"]) == ["name", "kind", "distribution", "version", "contract", "status"]
    assert list(rows["mlp"].values()) == ["mlp", "projector", "andes-mlp", rows["mlp"]["version"], "1.1", "ok"]
    assert "andes-mlp" in andes("plugins").stdout


def test_plugins_show_prints_options_with_their_help_and_hooks():
    facts = loads("plugins", "show", "qwen3", "--json")
    options = {o["name"]: o for o in facts["options"]}
    assert options["preset"]["default"] == "0.6b"
    assert options["thinking"] == {
        "name": "thinking", "type": "bool", "default": False,
        "help": "whether a chat starts with <think> unless told otherwise",
    }  # fmt: skip
    assert {"andes_language_model", "andes_tokenizer"} <= {h["name"] for h in facts["hooks"]}
    assert "whether a chat starts with <think>" in andes("plugins", "show", "qwen3").stdout


def test_our_errors_are_printed_without_a_traceback_and_exit_with_one():
    result = andes("plugins", "show", "qwen4", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error qwen4: no installed plugin is named 'qwen4'\n  do this: did you mean '")


def test_with_json_errors_are_an_object_on_stderr_and_all_of_them_are_there():
    result = andes("explain", "aimv2", "nope", "--option", "aimv2.prset=tiny", "--json", code=1)
    assert result.stdout == ""
    errors = json.loads(result.stderr)["errors"]
    assert [e["error"] for e in errors] == ["ConfigError", "PluginNotFound"]
    assert errors[0] | {"why": ""} == {
        "error": "ConfigError", "what": "unknown option 'prset'", "who": "aimv2", "why": "",
        "fix": "did you mean 'preset'?",
    }  # fmt: skip


def test_plugins_check_runs_the_conformance_kit_and_counts():
    (report,) = loads("plugins", "check", "mlp", "--json")
    assert report["name"] == "mlp"
    assert report["failed"] == 0
    assert report["run"] == report["passed"] >= 20
    assert len(report["checks"]) == report["run"] + report["not_applicable"]
    assert {"id", "kind", "status", "reason", "seconds"} == set(report["checks"][0])


def test_plugins_check_exits_with_one_when_a_plugin_breaks_the_contract(tmp_path):
    andes("new", "broken", "--kind", "cache-policy")
    folder = tmp_path / "andes-broken"
    policy = folder / "andes_broken" / "policy.py"
    policy.write_text(policy.read_text().replace("return held > (", "return held > 10**9 + ("))
    info = folder / "andes_broken-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: andes-broken\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[andes_sdk.v1.plugins]\nbroken = andes_broken:Broken\n")
    # a process of its own: entry points are read once per process
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from andes_sdk.cli import main; main()"
    command = [sys.executable, "-c", code, "plugins", "check", "broken", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (report,) = json.loads(done.stdout)
    failed = [c["reason"] for c in report["checks"] if c["status"] == "failed"]
    assert len(failed) == report["failed"] >= 1
    assert any("budget" in reason for reason in failed)


def test_models_counts_the_family():
    rows = loads("models", "--json")
    assert [r["name"] for r in rows] == ["andesvl-0.6b", "andesvl-1b", "andesvl-2b", "andesvl-4b"]
    assert all(type(r["parameters"]) is int and r["status"] == "ok" for r in rows)
    assert rows[1]["supported"] == ["load", "save", "generate", "train"]


def test_explain_takes_plugins_members_options_and_files(config):
    tiny = ["-o", "siglip2.preset=tiny", "--option", "qwen3.preset=tiny"]
    from_member = loads("explain", "andesvl-0.6b", *tiny, "--json")
    assert from_member["parameters"] < 1_000_000
    assert ["vision_encoder", "siglip2"] in [[r["part"], r["owner"]] for r in from_member["rows"]]
    from_file = loads("explain", "pretraining", "--config", config, "--dtype", "bfloat16", "--json")
    said = {(r["part"], r["value"]) for r in from_file["rows"]}
    assert ("backend", "torch on cpu, bfloat16") in said
    assert ("training_stages", "alignment") in said
    assert "AimV2" in andes("explain", "--config", config).stdout.replace("AIMv2", "AimV2")


def test_values_of_options_are_toml_and_plain_text_otherwise():
    items = with_options([{"a": {"x": 1}}, "b"], ["a.x=2.5", "b.deep.er=[1, 2]", "b.flag=true", "b.word=red apple"])
    assert items == [{"a": {"x": 2.5}}, {"b": {"deep": {"er": [1, 2]}, "flag": True, "word": "red apple"}}]
    for wrong in ("a.x", "x=1", "c.x=1", "a.x.y=1"):
        with pytest.raises(ConfigError):
            with_options([{"a": {"x": 1}}], [wrong])


# ---------------------------------------------------------------- what --model and --config open


def test_a_saved_model_is_loaded_with_more_plugins(config, tmp_path):
    Pipeline.from_config(config).save_pretrained(tmp_path / "model")
    options = GenerationOptions(max_tokens=3)
    plain = open_pipeline(None, Path(config)).generate("hello", options)
    saved = open_pipeline("model", None, plugins=["pretraining"]).generate("hello", options)
    assert saved.tokens == plain.tokens
    rows = loads("explain", "pretraining", "-o", "pretraining.encoder_rate=0.1", "--model", "model", "--json")["rows"]
    assert any(r["part"] == "plugin" and "encoder_rate=0.1" in r["value"] for r in rows)


# ---------------------------------------------------------------- train and new


def test_a_dry_run_says_what_would_train_and_how_much_memory_it_takes(recipe, tmp_path):
    facts = loads("train", recipe, "--dry-run", "--set", "stages.0.steps=20", "--json")
    (stage,) = facts["stages"]
    assert (stage["stage"], stage["steps"], stage["samples"]) == ("sft", 20, 6)
    pipeline = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    parts = {n: sum(p.numel() for p in m.parameters()) for n, m in pipeline.meta_model().parts().items()}
    learnt = {n: parts[n] if n in stage["rates"] else 0 for n in parts}
    assert stage["trainable"] == learnt
    # float32: 4 bytes a weight, 4 a gradient, 8 for two moments
    weights, trained = sum(parts.values()), sum(learnt.values())
    memory = stage["memory_bytes"]
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (4 * weights, 4 * trained, 8 * trained)
    assert memory["activations"] > 0
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert "samples" in andes("train", recipe, "--dry-run").stdout
    assert {p.name for p in tmp_path.iterdir()} == {"data.jsonl", "recipe.toml"}


def test_training_writes_metrics_and_a_model_that_a_next_recipe_starts_from(recipe, tmp_path):
    done = loads("train", recipe, "--out", tmp_path / "run", "--json")
    assert done["steps"] == 3
    assert done["last"]["step"] == 3
    assert done["model"] == str(tmp_path / "run" / "model")
    again = andes("train", recipe, "--out", tmp_path / "run", "--no-resume", code=1)
    assert "the folder holds a run" in again.stderr
    shown = andes("train", recipe, "--out", tmp_path / "next", "--set", "start=run/model", "--set", "stages.0.steps=1")
    assert "sft 1/1" in shown.stdout
    assert "trained model:" in shown.stdout


def test_new_writes_a_distribution_and_says_what_to_do_next(tmp_path):
    made = loads("new", "my-policy", "--kind", "cache-policy", "--folder", "plugins", "--json")
    assert made["distribution"] == "andes-my-policy"
    assert made["package"] == "andes_my_policy"
    assert all((tmp_path / made["folder"] / path).is_file() for path in made["files"])
    assert "andes plugins check other" in andes("new", "other", "--kind", "reward").stdout
    assert "exists already" in andes("new", "other", "--kind", "reward", code=1).stderr


@pytest.fixture
def artefact(config, tmp_path):
    from andes_compression.pack import pack_model
    from andes_compression.recipe import default_recipe

    pipe = Pipeline.from_config(config)
    return pack_model(pipe.model, default_recipe(pipe.model, "w8"), tmp_path / "tiny.andes", plan=pipe.plan).path


def test_a_packed_model_answers_as_its_pipeline_does(artefact, config):
    opened = (
        open_pipeline(str(artefact), None),
        open_pipeline(str(artefact), None, backend="torch", dtype="float32"),
        Pipeline.from_pretrained(artefact),
    )
    rows = [pipe.generate("hello", GenerationOptions(max_tokens=4)).tokens for pipe in opened]
    assert rows[0] == rows[1] == rows[2]
    said = loads("explain", "--model", artefact, "--json")["rows"]
    assert next(r["value"] for r in said if r["part"] == "weights") == str(artefact)
