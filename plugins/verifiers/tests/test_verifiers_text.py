"""Rewards that compare text, places and form; expected values by hand."""

from __future__ import annotations

from typing import Any

import pytest
from andes_verifiers import Verifiers
from andes_verifiers.answers import boxed, final_answer
from andes_verifiers.numerals import numbers_of
from andes_verifiers.places import place_of

from andes_sdk.errors import InputError


def score(name: str, sample: dict[str, Any], answer: str, **options: Any) -> float:
    rewards = {r.name: r for r in Verifiers(**options).andes_rewards()}
    return rewards[name].score(sample, answer)


def test_the_plugin_brings_ten_rewards_by_name() -> None:
    assert [r.name for r in Verifiers().andes_rewards()] == [
        "exact", "numeric", "choice", "regex", "box", "iou", "format", "length", "math", "reasoning_gym",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("red", "red"),
        ("<think>blue?</think>\n red. ", "red"),
        ("<think>it is red", ""),
        ("<think>a</think> x <think>b", ""),
        ("x <answer>no</answer> <answer> red </answer> y", "red"),
        ("So the answer is: 4. Wait. The final answer is 5.", "5"),
        (r"thus \boxed{\frac{1}{2}} holds", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"<answer>The answer is \boxed{7}.</answer>", "7"),
        ("3.5", "3.5"),
        ("红。", "红"),
    ],
)
def test_the_final_answer_is_cut_as_in_the_published_evaluation(answer: str, final: str) -> None:
    assert final_answer(answer) == final


def test_an_unfinished_box_is_none() -> None:
    assert boxed(r"\boxed{1 + \boxed{2") == ""
    assert boxed(r"\boxed{{1}") == ""


@pytest.mark.parametrize(
    ("right", "answer", "wanted"),
    [
        ("Red", "red.", 1.0),
        ("red", "dark red", 0.0),
        (["red", "crimson"], "Crimson!", 1.0),
        (4, "4", 1.0),
        ("new  york", "New\nYork", 1.0),
        ("１２", "12", 1.0),
        ("?", "!", 0.0),
        ("red", "", 0.0),
        ("red", "<think>red</think>blue", 0.0),
    ],
)
def test_exact(right: object, answer: str, wanted: float) -> None:
    assert score("exact", {"answer": right}, answer) == wanted


def test_exact_may_keep_case() -> None:
    assert score("exact", {"answer": "Red"}, "red", ignore_case=False) == 0.0


def test_a_truth_under_the_rewards_own_name_goes_before_the_answer() -> None:
    assert score("exact", {"answer": "red", "exact": "blue"}, "blue") == 1.0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234.5 and -3", [1234.5, -3.0]),
        ("$1,200", [1200.0]),
        ("50%", [0.5]),
        ("1/2", [0.5]),
        ("1/0", []),
        ("6e3", [6000.0]),
        (".5", [0.5]),
        ("12 cm", [12.0]),
        ("−7", [-7.0]),
        ("1, 2, 3", [1.0, 2.0, 3.0]),
        ("version 1.2.3", []),
        ("no number", []),
        ("1e999", []),
        ("½", [0.5]),
    ],
)
def test_numbers_of_a_text(text: str, numbers: list[float]) -> None:
    assert numbers_of(text) == numbers


@pytest.mark.parametrize(
    ("sample", "answer", "wanted"),
    [
        ({"answer": "1,200"}, "The answer is 1200.", 1.0),
        ({"answer": 3}, "3 or 4", 0.0),
        ({"answer": 0}, "0.0", 1.0),
        ({"answer": 0.3}, "0.30000000000000004", 1.0),
        ({"answer": 100, "tolerance": 0.05}, "105", 1.0),
        ({"answer": 100, "tolerance": 0.05}, "105.1", 0.0),
        ({"answer": "50%"}, "0.5", 1.0),
        ({"answer": 5}, "five", 0.0),
    ],
)
def test_numeric(sample: dict[str, Any], answer: str, wanted: float) -> None:
    assert score("numeric", sample, answer) == wanted


def test_a_tolerance_of_five_per_cent_is_the_relaxed_accuracy_of_chartqa() -> None:
    assert score("numeric", {"answer": 100}, "95", tolerance=0.05) == 1.0
    assert score("numeric", {"answer": 100}, "94.9", tolerance=0.05) == 0.0


@pytest.mark.parametrize("right", ["red", "1 2", True, float("nan")])
def test_numeric_refuses_a_truth_that_is_not_one_number(right: object) -> None:
    with pytest.raises(InputError, match="truth cannot be used"):
        score("numeric", {"answer": right}, "1")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. a dog", "B"), ("B) a dog", "B"), ("**B**", "B"),
        ("The answer is B.", "B"), ("I choose option C", "C"), ("Answer: (D)", "D"), ("clearly (A)", "A"),
        ("(A) or (B)", ""), ("A dog", ""), ("a dog", "B"), ("A Dog.", "B"), ("", ""), ("the cat", "A"),
    ],
)  # fmt: skip
def test_choice_letters(answer: str, letter: str) -> None:
    for right in "ABCD":
        sample = {"answer": right, "choices": ["the cat", "a dog", "a fish", "none"]}
        expected = "B" if answer in ("A dog", "a dog", "A Dog.") else letter
        assert score("choice", sample, answer) == float(right == expected)


def test_choice_refuses_a_truth_that_is_no_letter() -> None:
    with pytest.raises(InputError, match="one letter"):
        score("choice", {"answer": "dog"}, "A")


def test_regex_looks_at_the_final_answer_alone() -> None:
    assert score("regex", {"regex": r"^\d{2}$"}, "<think>7</think>42") == 1.0
    assert score("regex", {"regex": r"^\d{2}$"}, "421") == 0.0
    with pytest.raises(InputError, match="no 'regex'"):
        score("regex", {"answer": "4"}, "4")
    with pytest.raises(InputError, match="pattern"):
        score("regex", {"regex": "("}, "4")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<|box_start|>(10,20),(30,40)<|box_end|>", (10, 20, 30, 40)),
        ("(30,40),(10,20)", (10, 20, 30, 40)),
        ("[10, 20, 30, 40]", (10, 20, 30, 40)),
        ("[[10,20],[30,40]]", (10, 20, 30, 40)),
        ("click (5, 6.5)", (5, 6.5, 5, 6.5)),
        ("(-5,6)", (-5, 6, -5, 6)),
        ("10 20 30 40", None),
        ("(1,2,3)", None),
    ],
)
def test_places_of_a_text(text: str, place: tuple[float, ...] | None) -> None:
    assert place_of(text) == place


def test_a_box_is_hit_by_a_centre_inside_it_edges_included() -> None:
    sample = {"box": [10, 10, 20, 20]}
    assert score("box", sample, "<|box_start|>(0,0),(20,20)<|box_end|>") == 1.0  # centre (10, 10)
    assert score("box", sample, "(0,0),(19,20)") == 0.0  # centre (9.5, 10)
    assert score("box", sample, "(15, 20)") == 1.0
    assert score("box", sample, "nowhere") == 0.0


def test_overlap_is_intersection_over_union() -> None:
    sample = {"box": [0, 0, 10, 10]}
    assert score("iou", sample, "(0,0),(10,10)") == 1.0
    assert score("iou", sample, "(5,0),(15,10)") == pytest.approx(50 / 150)
    assert score("iou", sample, "(20,20),(30,30)") == 0.0
    assert score("iou", sample, "(5,5)") == 0.0
    assert score("iou", {"answer": "(0,0),(10,10)"}, "(0,0),(10,5)") == 0.5


@pytest.mark.parametrize("box", [[1, 1, 1, 5], [1, 2, 3], "red"])
def test_a_true_box_without_area_is_refused(box: object) -> None:
    with pytest.raises(InputError, match="an area"):
        score("box", {"box": box}, "(1,1)")


def test_a_missing_truth_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="neither 'exact' nor 'answer'"):
        score("exact", {}, "4")


@pytest.mark.parametrize(
    ("sample", "answer", "wanted"),
    [
        ({}, "<think>why</think>red", 1.0),
        ({}, "<think></think>red", 0.0),
        ({}, "<think>why</think> ", 0.0),
        ({}, "red", 0.0),
        ({}, "first <think>why</think>red", 0.0),
        ({}, "<think>a</think><think>b</think>red", 0.0),
        ({"think": False}, "red", 1.0),
        ({"think": False}, "<think>why</think>red", 0.0),
        ({"think": False}, " ", 0.0),
    ],
)
def test_format(sample: dict[str, Any], answer: str, wanted: float) -> None:
    assert score("format", sample, answer) == wanted


@pytest.mark.parametrize(("length", "wanted"), [(0, 0.0), (80, 0.0), (90, -0.5), (95, -0.75), (100, -1.0), (500, -1.0)])
def test_length_falls_over_the_grace_to_minus_one(length: int, wanted: float) -> None:
    assert score("length", {}, "x" * length, length_limit=100, length_grace=0.2) == pytest.approx(wanted)


def test_length_without_grace_is_a_step() -> None:
    assert score("length", {}, "x" * 99, length_limit=100, length_grace=0.0) == 0.0
    assert score("length", {}, "x" * 100, length_limit=100, length_grace=0.0) == -1.0
