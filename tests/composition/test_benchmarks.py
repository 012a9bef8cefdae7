"""Every script of `benchmarks/` can be imported, in one process; without an optional library it is skipped."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from andes_sdk import Pipeline

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
IMPORT = """
import importlib, json, sys, traceback
sys.path.insert(0, sys.argv[1])
said = {}
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        said[name] = [error.name, traceback.format_exc()]
    except BaseException:
        said[name] = ["", traceback.format_exc()]
print(json.dumps(said))
"""


def optional(missing: str) -> bool:
    """Whether a module that is missing is a whole library, or a plugin of the repository that is not installed."""
    if missing.startswith("andes_"):
        return any(ROOT.glob(f"plugins/*/{missing}/__init__.py"))
    return bool(missing) and not any([*FOLDER.glob(f"{missing}.py"), *ROOT.glob(f"examples/*/{missing}.py")])


@pytest.fixture(scope="module")
def failed() -> dict[str, tuple[str, str]]:
    """Script -> the module that it misses, or "", and the traceback."""
    command = [sys.executable, "-c", IMPORT, str(FOLDER), *SCRIPTS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "MPLBACKEND": "agg"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: tuple(one) for name, one in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name: str, failed: dict[str, tuple[str, str]]) -> None:
    missing, told = failed.get(name, ("", ""))
    if optional(missing):
        pytest.skip(f"{missing} is not installed")
    assert not told, told


def opened(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"andes_benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    paths = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = paths  # a script's folder would hide packages of examples from other tests
    return module


def test_rows_of_another_rate_or_other_data_are_told_apart(tmp_path: Path) -> None:
    module = opened("compression")
    (tmp_path / "mix.toml").write_text(
        'name = "x"\n[[stages]]\nstage = "sft"\nsteps = 1\n'
        'data = [{ path = "data/train/easy.jsonl", weight = 2, questions = 3 }, { path = "data/train/line.jsonl" }]\n'
    )
    for name in ("a", "b", "questions"):
        (tmp_path / name / "train").mkdir(parents=True)
        for part in module.TASKS:
            (tmp_path / name / "train" / f"{part}.jsonl").write_text("{}\n")
            (tmp_path / name / f"{part}.jsonl").write_text("{}\n")
    (tmp_path / "m.safetensors").write_bytes(b"x")
    given = {
        "model": tmp_path, "data": tmp_path / "a", "mix": tmp_path / "mix.toml", "questions": tmp_path / "questions",
        "rate": None, "limit": 3, "tokens": 640,
    }  # fmt: skip
    mixture = module.mixture(Namespace(**given))
    assert [Path(one["path"]).name for one in mixture] == ["easy.jsonl", "line.jsonl"]
    assert [(one["weight"], one["questions"]) for one in mixture] == [(2, 3), (0, 8)]
    own = module.setting_of(Namespace(**given))
    assert module.setting_of(Namespace(**{**given, "data": tmp_path / "b"})) == own  # the same lines elsewhere
    (tmp_path / "b" / "train" / "easy.jsonl").write_text("{} \n")
    for change in ({"data": tmp_path / "b"}, {"rate": 1e-4}, {"limit": 4}, {"tokens": 320}):
        assert module.setting_of(Namespace(**{**given, **change})) != own


def test_the_page_of_compression_names_the_calls_that_made_its_rows() -> None:
    pytest.importorskip("matplotlib")
    found = json.loads((ROOT / "docs" / "results" / "compression.json").read_text(encoding="utf-8"))
    said = opened("compression_report").commands(found)
    assert said in (ROOT / "docs" / "results" / "compression.md").read_text(encoding="utf-8")
    asked = [shlex.split(text) for text in said.replace("\\\n", "").splitlines() if "benchmarks/compression.py" in text]
    names = {"--tokens-only" in call: call[call.index("--only") + 1 : call.index("--out")] for call in asked}
    rows = found["rows"]["rows"]
    assert sorted(names.get(False, []) + names.get(True, [])) == sorted(rows)
    assert all("score" in rows[name] for name in names.get(False, []))
    assert ("benchmarks/qalft.py" in said) == bool(found.get("adapters"))


def test_the_page_of_compression_leaves_out_what_was_not_asked_of_adapters() -> None:
    pytest.importorskip("matplotlib")
    module = opened("compression_report")
    found = json.loads((ROOT / "docs" / "results" / "compression.json").read_text(encoding="utf-8"))
    whole = found["adapters"]
    parts = ("vs_float_lora", "vs_lora_then_ptq", "vs_qlora", "switch_ms", "base_unchanged")
    only = {
        **{k: v for k, v in whole.items() if k not in parts},
        "means": {"qlora": 0.4}, "scores": {"digits": {"qlora": 0.4}}, "rate": 1e-3, "float_rate": 2e-3,
        "validate": True,
    }  # fmt: skip
    page = module.adapters(only)
    assert page.splitlines()[2:4] == ["| trained on the packed base, inputs in floats | 40.0 | 40.0 |", ""]
    assert not any(word in page for word in ("against", "A switch", "Bytes of the base", "too few steps"))
    assert "LoRA on floats itself reaches" in module.adapters({**only, "scores": {"digits": {"float_lora": 0.4}}})
    assert all(part in module.adapters(whole) for part in ("QALFT against", "A switch", "Bytes of the base"))
    call = shlex.split(module.commands({**found, "adapters": only}).replace("\\\n", "").split("qalft.py ")[1])
    for flag, value in (("--rate", "0.001"), ("--float-rate", "0.002"), ("--scenarios", "digits"), ("--ways", "qlora")):
        assert call[call.index(flag) + 1] == value
    assert "--validate" in call
    usual = module.commands(found).split("qalft.py ")[1].partition("--out")[0]
    given = {"rate": 3e-3, "float_rate": 3e-3, "validate": False, "scores": whole["scores"]}
    assert {key: whole[key] for key in given} == given
    assert not any(flag in usual for flag in ("rate", "--validate", "--scenarios", "--ways"))


def test_scatter_over_tasks_is_told_for_as_many_tasks_as_its_factor_is_of() -> None:
    pytest.importorskip("matplotlib")
    module = opened("compression_report")

    def row(step: float, count: int) -> dict[str, Any]:
        tasks = {f"t{n}": 0.5 + step * n for n in range(count)}
        return {"tasks": tasks, "forced": {t: {"tokens": v} for t, v in tasks.items()}, "tokens": 0.5, "score": 0.5}

    one, other = row(0.02, 16), row(0.0, 16)
    assert module.against(one, other, other) == ["+30.0 ± 10.1"] * 2  # 2.131 * 4 * sqrt(22.667) / 4
    with pytest.raises(SystemExit, match=r"rows of 15 tasks, but STUDENT = 2\.13 is of 16"):
        module.against(row(0.02, 15), row(0.0, 15), row(0.0, 15))
    rows = {"bf16": {**other, "body_bpw": 16.0, "retention": 1.0, "kinds": dict.fromkeys(other["tasks"], 0.5)}}
    rows["qat w4_g32@9"] = {**rows["bf16"], "body_bpw": 4.5}
    floats, fewer = module.formats(rows, 16).splitlines()[2:]
    assert "| 100.0 |  |" in floats
    assert "| 100.0 | 12.2 |" in fewer


def test_quick_and_full_figures_of_the_server_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("andes_serve")
    pytest.importorskip("jsonschema")
    monkeypatch.syspath_prepend(str(FOLDER))
    module, out = opened("serve"), tmp_path / "serve.json"
    assert module.earlier(None, ["speed"], quick=True) == module.earlier(out, ["speed"], quick=True) == {}
    full = ROOT / "docs" / "results" / "serve.json"
    assert module.earlier(full, ["peer"], quick=False) == json.loads(full.read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match=r"figures of speed.* are full, these would be quick"):
        module.earlier(full, ["peer"], quick=True)
    out.write_text('{"schemas": 40, "quick": {"schemas": true}}')
    assert module.earlier(out, ["schemas"], quick=False)["schemas"] == 40  # all of it is measured again
    with pytest.raises(SystemExit, match="figures of schemas are quick, these would be full"):
        module.earlier(out, ["peer"], quick=False)
    out.write_text('{"schemas": 40}')
    with pytest.raises(SystemExit, match="does not say"):
        module.earlier(out, ["schemas"], quick=False)


def test_rows_of_a_text_model_are_compared_at_equal_bits() -> None:
    module = opened("compression_text")
    score = {"perplexity": 9.0, "interval": 0.05}
    rows = {
        "bf16": {"body_bpw": 16.0, "choice": 0.75, **score},
        "rtn w4_g32": {"body_bpw": 4.5, "choice": 0.7, **score},  # of more bits: not what training is measured by
        "gptq 34+o": {"body_bpw": 1.7, "choice": 0.3, **score, "perplexity": 80.0},
        "blockwise nm14_w4": {"body_bpw": 1.8, "choice": 0.4, **score, "perplexity": 60.0},
        "qat 34+o@400": {"body_bpw": 1.7, "choice": 0.65, **score, "perplexity": 20.0},
    }
    told = module.summary(rows)
    assert (told["best"], told["best_without_training"]) == ("qat 34+o@400", "blockwise nm14_w4")
    assert (told["gain_over_ptq"], told["retention"], told["perplexity_over_ptq"]) == (50.0, 0.8, 3.0)
    assert rows["gptq 34+o"]["retention"] == 0.1
    padded = {**rows, "qat 34+o@400": {**rows["qat 34+o@400"], "body_bpw": 1.9}}  # the file's bytes, not the name
    assert module.summary(padded)["gain_over_ptq"] is None
    low = {**rows, "rtn w4_g32": {**rows["rtn w4_g32"], "body_bpw": 1.8}}
    assert module.summary(low)["gain_over_ptq"] == -10.0
    assert [module.spread(range(273), n) for n in (1, 3)] == [[0], [0, 136, 272]]
    assert all(module.spread(range(273), n) == [*range(273)] for n in (273, 1000))
    assert len(set(module.spread(range(273), 200))) == 200
    with pytest.raises(SystemExit, match="no row 'qat w9@4'"):
        module.known(["bf16", "qat 34+o@4", "qat 34+o@4+8", "qat w9@4"])
    with pytest.raises(SystemExit, match="no row 'qat 34"):
        module.known(["qat 34+o@4+"])
    pytest.importorskip("matplotlib")
    page = opened("compression_report").text_model({**told, "rows": rows, "places": 120, "chunks": 10})
    assert "| qat 34+o@400 | 1.70 |" in page
    assert "Not measured" in opened("compression_report").text_model(None)


TOLD = {
    "keys": lambda said, key: [value for name, value in said if name == key][:1],
    "values": lambda said, key: [value for name, value in said if name == key],
    "tracking": lambda said, key: [dict(said).get(dict(said)[key], dict(said)[key])],
    "common": lambda said, key: [max(said, key=said.count)[0]],
}
"""Task -> the answer, read from the facts of a text."""


@pytest.mark.parametrize("task", ["codes", *TOLD])
def test_what_is_asked_of_a_text_stands_in_it(task: str) -> None:
    texts = opened("kv_texts")
    pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    for seed in range(5):
        case = texts.fitting(pipe, random.Random(seed), 600, 9, task)
        assert case == texts.fitting(pipe, random.Random(seed), 600, 9, task)
        heads = {tuple(case.split(pipe, question)[0]) for question in case.questions}
        assert len(heads) == 1  # the questions share their text, and it is about as long as wanted
        (tokens,) = heads
        assert abs(len(tokens) - 600) < 60
        assert pipe.tokenizer.decode(list(tokens)).endswith(case.text)
        for question in case.questions:
            said = pipe.tokenizer.decode(case.split(pipe, question)[1])
            assert said.endswith(question.begun)
            if task == "codes":
                assert f"{question.begun}{question.answer}." in case.text
                assert question.added in said
                continue
            sentences = [s.split() for s in case.text.split(": ", 1)[1].rstrip(".").split(". ")]
            facts = [s for s in sentences if len(s) < 3]
            assert len(facts) == 9
            assert sum(map(len, facts)) < 0.2 * sum(map(len, sentences))  # most of the text is nobody's question
            assert question.answer.split() == TOLD[task](facts, question.begun.split()[1])
