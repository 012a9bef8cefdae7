"""Faults that a reader found: right answers that were refused, and wrong ones that were taken."""

from __future__ import annotations

from typing import Any

import pytest
from andes_verifiers import Verifiers

from andes_sdk.errors import InputError


def score(name: str, sample: dict[str, Any], answer: str, **options: Any) -> float:
    rewards = {r.name: r for r in Verifiers(**options).andes_rewards()}
    return rewards[name].score(sample, answer)


@pytest.mark.parametrize("think", ["false", "no", "true", "", 0, 1, [], {}])
def test_format_refuses_a_think_that_is_no_truth_value(think: object) -> None:
    with pytest.raises(InputError, match="`think` is"):
        score("format", {"think": think}, "4")


def test_format_takes_null_for_its_default() -> None:
    assert score("format", {"think": None}, "<think>so</think>4") == score("format", {}, "<think>so</think>4") == 1.0
    assert score("format", {"think": None}, "4") == score("format", {}, "4") == 0.0


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        # fractions of one sign, and whole numbers before fractions
        ("1½", 1.5, 5.5), ("½", 0.5, 2), ("-½", -0.5, 0.5), ("2¾ cups", 2.75, 0.75), ("1 ½", 1.5, 0.5),
        ("3 1/2", 3.5, 0.5), ("-3 1/2", -3.5, -2.5), ("11/2", 5.5, 1.5), ("1¹⁄₂", 1.5, 5.5), ("1⁄2", 0.5, 2),
        (r"\frac{1}{2}", 0.5, 2), (r"3\frac{1}{2}", 3.5, 0.5), (r"\frac12", 0.5, 12),
        # powers, and factors of powers of ten
        ("10²", 100, 102), ("10^2", 100, 2), ("2**3", 8, 3), ("10⁻²", 0.01, 2), ("10²³", 1e23, 1023),
        ("6.02×10²³", 6.02e23, 1023), ("6 x 10^3", 6000, 3), (r"3 \times 10^{8}", 3e8, 8), ("2*10^3", 2000, 10),
        # units keep their exponent to themselves
        ("5 m²", 5, 2), ("12 m^2", 12, 2), ("9.81 m/s^2", 9.81, 2), ("CO₂: 4", 4, 2), ("-5°C", -5, 5),
        ("70 km/h", 70, 0),
        # signs and currencies
        ("–5", -5, 5), ("−5", -5, 5), ("x = - 5", -5, 5), ("x=-5", -5, 5), ("-$5", -5, 5), ("-₹5", -5, 5),
        ("US$5", 5, -5), ("是-5", -5, 5), ("答案是5", 5, 0),
        # separators
        ("1 000 000", 1e6, 0), ("1'000", 1000, 0), ("1_000", 1000, 1), ("1{,}000", 1000, 0), (r"1\,000", 1000, 0),
        # shares
        ("50 percent", 0.5, 50), ("50 per cent", 0.5, 50), (r"50\%", 0.5, 50), ("５０％", 0.5, 50), ("5‰", 0.005, 5),
        # what stands around
        ("**5**", 5, 0), ("_5_", 5, 0), ("$5$", 5, 0), ("It is 5!", 5, 120), ("Step 1: 5", 5, 1), ("1. 5", 5, 1.5),
        ("8 - 3 = 5", 5, 3), ("5, not 6", 5, 6), ("6 rather than 7", 6, 7), ("It isn't 6 but 7", 7, 6),
    ],
)  # fmt: skip
def test_numeric_reads_numbers_as_people_write_them(answer: str, right: float, wrong: float) -> None:
    assert score("numeric", {"answer": right}, answer) == 1.0
    assert score("numeric", {"answer": str(right)}, answer) == 1.0
    assert score("numeric", {"answer": wrong}, answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "tempting"),
    [
        ("5-3", [5, 3, -3, 2]), ("8 - 3", [8, 3, -3, 5]), ("5 = 8 - 3", [3, -3]), ("2 + 3", [2, 3]), ("5 x 3", [5, 3]),
        ("3 or 4", [3, 4]), ("3-4", [3, 4]), ("2020-12-31", [2020, 31, -31]), ("12/31/2020", [2020, 31]),
        ("12:30", [12, 30]), ("3,14", [3, 14, 3.14]), ("1,2,3", [1, 3, 123]), ("12,345,67", [67, 1234567]),
        ("1.2.3", [1.2, 3]), ("192.168.1.1", [192.168, 1]), ("5 ± 1", [5, 1, 6]), ("±5", [5, -5]), ("√2", [2]),
        (r"\sqrt{2}", [2]), (r"2\sqrt{3}", [2, 3]), ("2π", [2]), (r"2\pi", [2]), (r"\frac{\pi}{2}", [2]), ("x/2", [2]),
        ("(1/2)^2", [2, 0.5]), ("2^x", [2]), ("101₂", [101, 1012]), ("0x1F", [0, 1]), ("5'10", [5, 10]),
        ("Total - 5", [5, -5]), ("Result:\n- 5", [5, -5]), ("x-5", [5, -5]), ("--5", [5, -5]), ("1-1/2", [0.5, 1.5]),
        ("1 11/2", [5.5, 6.5]), ("it is not 6", [6]), ("H₂O", [2]), ("x²", [2]), ("v1.2", [1.2, 2]),
        ("2^3^2", [2, 9, 64]), ("5 and then 1e999", [5]),
    ],
)  # fmt: skip
def test_numeric_takes_no_part_of_what_is_not_one_number(answer: str, tempting: list[float]) -> None:
    assert [score("numeric", {"answer": right}, answer) for right in tempting] == [0.0] * len(tempting)


@pytest.mark.parametrize("right", ["2020-12-31", "3 or 4", "2π", "1 2", 10**400])
def test_numeric_refuses_a_truth_that_is_part_of_something_larger(right: object) -> None:
    with pytest.raises(InputError, match="truth cannot be used"):
        score("numeric", {"answer": right}, "1")


@pytest.mark.parametrize("tolerance", ["wide", "0.1", -1, float("nan"), float("inf"), True, [0.1]])
def test_numeric_refuses_a_tolerance_that_is_no_share(tolerance: object) -> None:
    with pytest.raises(InputError, match="tolerance is"):
        score("numeric", {"answer": 1, "tolerance": tolerance}, "1")


def test_numeric_takes_no_tolerance_for_the_plugins_own() -> None:
    assert score("numeric", {"answer": 100, "tolerance": None}, "104", tolerance=0.05) == 1.0


@pytest.mark.parametrize("text", ["1 ", "1-", "1,", "- ", "1/", "10^", "√", r"\frac{", "x1", "^{", "_", "."])
def test_numeric_reads_long_nonsense_in_time(text: str) -> None:
    assert score("numeric", {"answer": 7}, text * (20_000 // len(text))) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"), (".5", "5"), ("50%", "50"), ("C++", "C"), ("C#", "C"), ("A+", "A"), ("A-", "A"), ("A*", "A"),
        ("O-", "O+"), ("Na+", "Na"), ("$5", "5"), ("#5", "5"), ("5!", "5"), ("f'", "f"), ("5'", "5"), ('5"', "5"),
        ("<5", "5"), (">5", "<5"), ("~5", "5"), ("10²", "102"), ("1½", "11⁄2"), ("H₂O", "H2O"), ("(0,1)", "[0,1]"),
        ("(0, 1]", "[0, 1)"), ("__init__", "init"), ("*args", "args"), ("**kwargs", "kwargs"), ("@user", "user"),
        ("/path", "path"), (".NET", "NET"), ("\\alpha", "alpha"), ("|5|", "5"), ("|-5|", "5"), ("-x", "x"),
        ("-5", "- 5"), ("5", "- 5"), ("+5", "5"), ("?", "!"), ("", "."), ("&", "and"), ("~/a", "/a"), ("a/", "a"),
        ("x_", "x"), ("(a)(b)", "a)(b"), ("5!", "5."), ("(1,2)", "1,2"), ("[1, 2]", "1, 2"), ("-5", "5."),
        ("−5", "5"), ("5°", "5"), ("5€", "5"), ("∞", "-∞"), ("==", "="), ("a;b", "a"), ("{1,2}", "(1,2)"),
        ("का", "क"), ("किताब", "कताब"), ("é", "e"), ("5‰", "5%"), ("x'", "x''"), ('"', "'"), ("dark red", "red"),
    ],
)  # fmt: skip
def test_exact_tells_apart_what_differs_in_a_sign_that_is_meant(one: str, other: str) -> None:
    assert score("exact", {"answer": one}, other) == score("exact", {"answer": other}, one) == 0.0


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("red", "red."), ("red", "Red!"), ("red", '"red"'), ("red", "“red”"), ("red", "(red)"), ("red", "**red**"),
        ("red", "*red*"), ("red", "`red`"), ("red", "_red_"), ("5", "$5$"), ("5", "\\(5\\)"), ("5", "\\[ 5 \\]"),
        ("red", "- red"), ("red", "* red"), ("red", ": red"), ("red", "**The answer is: red**"),
        ("red", "**The answer is:** red"), ("red", "The answer is **red**."), ("red", "(The answer is red)"),
        ("red", 'He said "the answer is red"'), ("red", "red..."), ("red", "red…"), ("it's", "it’s"), ("-5", "−5"),
        ("-5", "–5"), ("-5", "**-5**"), ("-5", "-5."), (".5", ".5."), ("50%", "50%."), ("C++", "**C++**"),
        ("C++", "C++."), ("50%", "５０％"), ("$5", "$5."), ("(0, 1]", "(0, 1]."), ("[1, 2]", "[1, 2]"), ("5", "= 5"),
        ("5", "(5)"), ("5", "[5]"), ("5!", "5!"), ("f(x)", "f(x)."), ("f(x)", "f(x)"), ("(a)(b)", "(a)(b)"),
        ("new york", "new\n york"), ("red.", "red"), ("U.S.", "U.S"), ("ﬁne", "fine"), ("红", "红。"), ("红", "“红”"),
        ("红", "（红）"), ("红", "《红》"), ("__init__", "`__init__`"), ("what?", "what"), ("10²", "10²"), ("½", "½"),
        ("A*", "A*"), ("?", "?"), ("5", "\n5\n"), ("5", "\\boxed{5}"), ("e.g.", "e.g."), ("Crimson", "crimson!"),
        ("12", "１２"), ("1–2", "1-2"), ("5'", "5’"), ("rock 'n' roll", "rock ’n’ roll"), ("'tis", "’tis"),
        ("'a' and 'b'", "'a' and 'b'"), ("A", "**A**"), ("(a, b)", "**(a, b)**"), ("C++", "The answer is C++"),
        ("कि", "कि।"),
    ],
)  # fmt: skip
def test_exact_takes_the_same_text_in_other_surroundings(right: str, answer: str) -> None:
    assert score("exact", {"answer": right}, answer) == 1.0


def test_exact_gives_nothing_for_no_answer() -> None:
    assert score("exact", {"answer": ""}, "<think>so") == score("exact", {"answer": ["", "4"]}, " ") == 0.0


@pytest.mark.parametrize("text", ["(", "[", "*", ". ", "- ", "(a)", "**a**", "= ", "a!", " **", "??", "\\("])
def test_exact_reads_long_nonsense_in_time(text: str) -> None:
    assert score("exact", {"answer": "red"}, text * (100_000 // len(text))) == 0.0


CHOICES = ["the cat", "a dog", "a fish", "none"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("I will answer a tricky question: (C)", "C"), ("Answer: a dog (B)", "B"),
        ("The choice a person makes is C", "C"), ("I, for one, think it is B", "B"), ("option B, not option A", "B"),
        ("not option A but option B", "B"), ("not A but B", "B"), ("B", "B"), ("b", "B"), ("(b)", "B"), ("b)", "B"),
        ("[B]", "B"), ('"B"', "B"), ("'B'", "B"), ("B.", "B"), ("**B.** a dog", "B"), ("**(B)** a dog", "B"),
        ("B. a dog", "B"), ("B) a dog", "B"), ("(B) a dog", "B"), ("B: a dog", "B"), ("B - a dog", "B"),
        ("B – a dog", "B"), ("b. a dog", "B"), ("B\n\nBecause it barks.", "B"), ("It barks.\n\nB", "B"),
        ("It barks.\n\n**(B)**", "B"), ("B because it barks", "B"), ("B, because it barks", "B"),
        ("B is correct", "B"), ("(B) is the answer", "B"), ("A is correct", "A"), ("Option A is right", "A"),
        ("I choose B", "B"), ("I pick option C.", "C"), ("I would go with D.", "D"), ("It must be D.", "D"),
        ("It's C", "C"), ("answer: b", "B"), ("option b", "B"), ("Answer: A", "A"), ("Answer: A, as it purrs", "A"),
        ("Answer: A (the cat)", "A"), ("Answer: (D)", "D"), ("Answer: option C", "C"), ("Answer is B", "B"),
        ("The correct answer would be B.", "B"), ("clearly (A)", "A"), ("（Ｂ）", "B"), ("选B", "B"), ("答案：B", "B"),
        ("答案是B。", "B"), ("选项B", "B"), ("\\text{B}", "B"), ("The options (A) and (B) are close. Answer: B", "B"),
        ("(A) is wrong, so (B)", "B"), ("Option A is wrong. I choose option B.", "B"), ("(B), not (A)", "B"),
        ("all but not (A): (B)", "B"), ("A is incorrect; B is correct", "B"), ("Answer: a dog", "B"),
        ("Answer: A dog", "B"), ("a dog", "B"), ("A dog.", "B"), ("The answer is a dog", "B"), ("the cat", "A"),
        ("none", "D"), ("I think the dog, option B, is right", "B"), ("My choice: C", "C"),
        ("Answer: I think (C)", "C"), ("Choice A makes sense", "A"), ("B?", "B"), ("Final answer: B", "B"),
        ("Answer: **B**", "B"), ("I'd say (B).", "B"), ("It is (B)", "B"), ("a", "A"),
        ("B\n\nA is wrong: it purrs.", "B"), ("B. a dog, not (A)", "B"),
        ("A dog is shown, so B.", "B"), ("It barks; therefore, (B).", "B"), ("Option b is correct", "B"),
        ("I see a fish. So the correct option is C.", "C"), ("The answer is option B: a dog", "B"),
    ],
)  # fmt: skip
def test_choice_finds_the_one_letter_that_is_chosen(answer: str, letter: str) -> None:
    scores = {right: score("choice", {"answer": right, "choices": CHOICES}, answer) for right in "ABCD"}
    assert scores == {right: float(right == letter) for right in "ABCD"}


@pytest.mark.parametrize(
    "answer",
    [
        "B/c", "(A) or (B)", "A or B", "A and B", "B or C", "B/C", "B, C", "B and C", "Answer: B or C",
        "option B or C", "option B or option C", "Options A, B and C", "(A) the cat (B) a dog",
        "A. the cat\nB. a dog", "Option B? No, option C.", "Answer: B. Wait, answer: C", "A. a dog", "a dog (A)",
        "Answer: a dog (A)", "(A) a fish", "not B", "Not (B)", "It is not option B", "It isn't (B)", "all except (B)",
        "anything other than (B)", "(B) is wrong", "Option B is not right", "B is wrong", "B is incorrect",
        "I think so", "I am a fish", "A person", "I", "I'm sure", "The best is C++", "grade E", "f(A)", "P(A) = 1",
        "A dog or a fish", "", "A cat", "U.S.", "e.g. a bird", "Vitamin C", "C++", "B-52", "Neither A nor B",
        "I cannot answer a question", "The answer I give", "an option I like", "a choice a man makes",
        "What is A dog?", "Is it A? No.", "E", "Answer: E", "(I) think", "both (A) and B",
        "So A dog or I", "option a man has", "either option A or (B)",
        "rule out (A)", "AB", "A B", "A, B", "A. B.", "It is B or C", "Answer: B and C", "B. C.", "A+", "(B)\n(C)",
    ],
)  # fmt: skip
def test_choice_finds_none_where_there_is_none_or_more_than_one(answer: str) -> None:
    assert [score("choice", {"answer": right, "choices": CHOICES}, answer) for right in "ABCD"] == [0.0] * 4


@pytest.mark.parametrize("answer", ["I, for one, think so", "I think so", "A person", "I am", "Answer: I think so"])
def test_choice_takes_no_word_for_a_letter_where_no_choices_are_listed(answer: str) -> None:
    assert [score("choice", {"answer": right}, answer) for right in "AI"] == [0.0, 0.0]


def test_choice_knows_the_text_of_an_option_with_and_without_its_label() -> None:
    sample = {"answer": "B", "choices": ["A. the cat", "B. a dog"]}
    assert [score("choice", sample, text) for text in ("a dog", "B. a dog", "the cat", "A. the cat")] == [1, 1, 0, 0]


@pytest.mark.parametrize("choices", ["abc", 3, {"A": "x"}, ["x"] * 27])
def test_choice_refuses_choices_that_are_no_list_of_options(choices: object) -> None:
    with pytest.raises(InputError, match="choices cannot be used"):
        score("choice", {"answer": "A", "choices": choices}, "A")


def test_choice_refuses_a_truth_that_is_none_of_the_choices() -> None:
    with pytest.raises(InputError, match="truth cannot be used") as caught:
        score("choice", {"answer": "C", "choices": ["x", "y"]}, "C")
    assert "from A to B" in caught.value.why


@pytest.mark.parametrize("text", ["(", "A ", "(A", "is ", "B or ", "answer: ", "A, ", "not ", "B.", "' ", "A\n"])
def test_choice_reads_long_nonsense_in_time(text: str) -> None:
    assert score("choice", {"answer": "C"}, text * (20_000 // len(text))) == 0.0
