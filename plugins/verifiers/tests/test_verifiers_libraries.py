"""Rewards that other libraries compute: math-verify and reasoning-gym."""

from __future__ import annotations

import ast
import json
import threading
from pathlib import Path

import pytest
import reasoning_gym
from andes_verifiers.gym import ARITHMETIC, LITERAL, ReasoningGym, dataset, harmless
from andes_verifiers.mathematics import Math

from andes_sdk.errors import InputError


@pytest.mark.parametrize(
    ("right", "answer", "wanted"),
    [
        (r"\frac{1}{2}", r"<think>hm</think>It is \boxed{0.5}.", 1.0),
        ("1/2", r"$\frac{2}{4}$", 1.0),
        (r"$x^2-1$", r"\boxed{(x-1)(x+1)}", 1.0),
        (r"\{1, 2\}", r"\boxed{\{2,1\}}", 1.0),
        ("4", "5", 0.0),
        ("4", "", 0.0),
        ("4", r"<think>\boxed{4}", 0.0),
        (r"\sqrt{2}", r"first \boxed{2}, no: \boxed{2^{1/2}}", 1.0),
    ],
)
def test_mathematics_is_compared_by_value(right: str, answer: str, wanted: float) -> None:
    assert Math().score({"answer": right}, answer) == wanted


def test_a_truth_without_mathematics_is_refused() -> None:
    with pytest.raises(InputError, match="mathematical expression"):
        Math().score({"answer": ""}, "4")


def test_mathematics_outside_the_main_thread_is_refused_with_the_reason() -> None:
    caught: list[Exception] = []

    def judge() -> None:
        try:
            Math().score({"answer": "4"}, "4")
        except InputError as error:
            caught.append(error)

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert "signal" in str(caught[0])


SOME = [
    "chain_sum", "leg_counting", "countdown", "spell_backward", "n_queens", "simple_integration", "basic_arithmetic",
]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_the_score_is_the_librarys_own_and_survives_json(name: str) -> None:
    data = reasoning_gym.create_dataset(name, size=2, seed=3)
    for entry in data:
        sample = {"reasoning_gym": {"dataset": name, "entry": json.loads(json.dumps(entry, default=str))}}
        right = entry["metadata"].get("solution") if entry["answer"] is None else entry["answer"]
        assert ReasoningGym().score(sample, f"<think>…</think><answer>{right}</answer>") == 1.0
        assert ReasoningGym().score(sample, "banana") == data.score_answer("banana", entry) < 1.0


HOSTILE = [
    "__import__('os').system('true')", "[open('x','w')]", "(lambda: 1)()", "9**9**9", "(9**99)**99", "[x for x in y]",
    "f'{1}'", "1 if 1 else 2", "a.b", "5! + __import__('os')",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("name", sorted(ARITHMETIC))
def test_text_that_could_do_harm_never_reaches_sympy(name: str, answer: str) -> None:
    assert not harmless(name, answer)


@pytest.mark.parametrize("answer", [a for a in HOSTILE if not a.startswith("5!")])
@pytest.mark.parametrize("name", sorted(LITERAL))
def test_text_that_could_do_harm_never_reaches_eval(name: str, answer: str) -> None:
    assert not harmless(name, answer)


def test_a_hostile_answer_scores_nothing_and_does_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    answer = f"[open({str(target)!r}, 'w').write('x')]"
    for name in ("string_insertion", "countdown"):
        entry = reasoning_gym.create_dataset(name, size=1, seed=1)[0]
        assert ReasoningGym().score({"reasoning_gym": {"dataset": name, "entry": entry}}, answer) == 0.0
    assert not target.exists()


def test_every_verifier_that_evaluates_an_answer_is_known() -> None:
    # functions that evaluate text, called on an answer in any score_answer of the installed library
    found = set()
    names = {cls.__module__: name for name, (cls, _) in reasoning_gym.factory.DATASETS.items()}
    for module, name in names.items():
        source = Path(reasoning_gym.__file__).parent.parent / (module.replace(".", "/") + ".py")
        for function in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and function.name == "score_answer":
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in (
                        "eval", "exec", "parse_expr", "sympify", "S",
                    ):  # fmt: skip
                        found |= {name} if "answer" in ast.unparse(call.args[0]) else set()
    # its own answer only, which is the data's
    assert found - {"number_sorting"} == LITERAL | ARITHMETIC


def test_an_entry_that_does_not_fit_its_data_set_is_the_samples_fault() -> None:
    sample = {"reasoning_gym": {"dataset": "sudoku", "entry": {"question": "?", "answer": "1"}}}
    with pytest.raises(InputError, match="does not fit 'sudoku'"):
        ReasoningGym().score(sample, "1")


def test_an_unknown_data_set_or_configuration_is_refused() -> None:
    with pytest.raises(InputError, match="no data set 'chain_sums'"):
        dataset("chain_sums")
    with pytest.raises(InputError, match="configuration does not fit"):
        dataset("chain_sum", '{"colour": 1}')
    with pytest.raises(InputError, match="source_dataset"):
        dataset("composite")
    with pytest.raises(InputError, match="no task of reasoning-gym"):
        ReasoningGym().score({"answer": "4"}, "4")
