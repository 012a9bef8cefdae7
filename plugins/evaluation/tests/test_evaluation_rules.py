"""Answer rules, on answers whose scores follow from the rules' own definitions."""

from __future__ import annotations

import pytest
from andes_evaluation.rules import choice, maths, opened, places, text, yes_no

ANIMALS = {"A": "a cat", "B": "a dog", "C": "a horse"}


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B) a dog", "B"), ("B: a dog", "B"), ("The answer is C", "C"),
        ("Not (A), rather (C)", "C"), ("答案是B", "B"), ("", ""), ("none of these", ""), ("A, then B", "A"),
    ],
)  # fmt: skip
def test_the_letter_in_the_most_telling_place_is_taken(said: str, letter: str) -> None:
    assert choice.ranked_letter(said, "ABC") == letter


@pytest.mark.parametrize(
    ("said", "letter"),
    [("(A) or (B)", "B"), ("it is A then", "A"), ("A.", "A"), ("B.", "B"), ("well it must be a horse I think", "C"),
     ("a horse", ""), ("I do not know what that is", "")],
)  # fmt: skip
def test_mmmu_takes_a_bracketed_letter_a_letter_or_the_text_of_an_option(said: str, letter: str) -> None:
    assert choice.mentioned_letter(said, ANIMALS) == letter  # "A." loses its full stop and is padded by spaces


def test_each_way_of_reading_a_letter() -> None:
    assert choice.spaced_letter("A B", "AB") == "B"
    assert choice.spaced_letter("because", "AB") == ""
    assert choice.stated_letter("The correct answer is (B).", "ABC") == "B"
    assert choice.stated_letter("The sky", "ABC") == ""  # not the T of "The", which is no option
    assert choice.leading_letter(" C. a horse") == "C"
    assert choice.leading_letter("C a horse") == "C a horse"
    assert choice.first_letter("dog") == "D"
    assert choice.matched_letter("it is a dog", ANIMALS) == "B"
    assert choice.matched_letter("A dog is seen there", ANIMALS) == "B"  # "A" of four words or more may be an article
    assert choice.written_option("It is a horse!", ANIMALS) == "C"
    assert choice.written_option("(b)", ANIMALS) == "b"


def test_yes_and_no() -> None:
    assert [yes_no.opening(said) for said in ("Yes.", "no", "y", "n", "maybe", "Well, yes")] == [
        "yes", "no", "yes", "no", "", "",
    ]  # fmt: skip
    assert [yes_no.word(said) for said in ("Yes, there is", "No", "yes or no", "nothing", "")] == [
        "yes", "no", "", "", "",
    ]  # fmt: skip


def test_relaxed_accuracy_lets_five_per_cent_pass() -> None:
    assert text.relaxed("105", "100") == 1.0
    assert text.relaxed("105.1", "100") == 0.0
    assert text.relaxed("12%", "0.12") == 1.0
    assert text.relaxed("Blue", "blue") == 1.0
    assert text.relaxed("0.0", "0") == 0.0  # beside zero there is no relative error: the texts are compared


def test_anls_is_one_less_the_normalised_distance_and_nothing_below_a_half() -> None:
    assert text.edit_distance("kitten", "sitting") == text.edit_distance("sitting", "kitten") == 3
    assert (text.edit_distance("", "ab"), text.edit_distance("", ""), text.edit_distance(["a b"], ["c"])) == (2, 0, 1)
    assert text.anls("hallo", ["hello"]) == pytest.approx(0.8)  # one of five
    assert text.anls("abc", ["xyz", "abc"]) == 1.0
    assert text.anls("ab", ["xb"]) == 0.5
    assert text.anls("ab", ["xbc"]) == 0.0  # two of three
    assert text.anls("  A  B ", ["a b"]) == 1.0


def test_vqa_accuracy_is_full_where_three_others_agree() -> None:
    ten = ["two"] * 4 + ["3"] * 6
    assert text.vqa_accuracy("2", ten) == pytest.approx((4 * 1 + 6 * 1) / 10)  # each of the four has three others
    assert text.vqa_accuracy("2", ["2"] * 3 + ["3"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert text.vqa_text("The dont's, a 1,000!") == "don't 's 1000"


def test_containment_of_ocr_and_of_languages() -> None:
    assert text.ocr_contains("it says ＨＥＬＬＯ", ["hello"]) == 1.0
    assert text.ocr_contains("x ^ 2", ["x^2"], formula=True) == 1.0
    assert text.ocr_contains("X^2", ["x^2"], formula=True) == 0.0
    assert text.contains("C'est U.S.A", "usa") == 1.0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert text.rouge_l("a b c d", "a c d") == pytest.approx(2 * 3 / 7)
    assert text.rouge_l("", "") == 1.0
    assert text.rouge_l("a", "") == 0.0
    assert text.rouge_l("Open, the door!", "open the Door") == 1.0
    assert text.rouge_l("打开设置", "打开Wi-Fi设置") == pytest.approx(2 * 4 / (4 + 6))  # 打 开 wi fi 设 置
    assert (text.rouge_l("!", "!"), text.rouge_l("!", "?")) == (1.0, 0.0)


def test_open_answers_of_mmmu() -> None:
    assert opened.open_match("So the value is 1,250.004", ["1250"])
    assert opened.open_match("therefore it is the mitral valve", ["Mitral valve"])
    assert not opened.open_match("12", ["2"])
    assert opened.values("x") == [" x", "x "]


def test_mathematics_is_compared_as_text_number_and_expression() -> None:
    assert maths.same_mathematics(r"\frac{1}{2}", "0.5") == 1.0
    assert maths.same_mathematics("3", "4") == 0.0
    assert maths.close_number("about 3.1410", 3.1415, 0.001) == 1.0
    assert maths.close_number("3.15", 3.1415, 0.001) == 0.0
    assert maths.as_mathvista("(b)", ["ten", "twenty"], "text", 0) == "twenty"
    assert maths.as_mathvista("twenti", ["ten", "twenty"], "text", 0) == "twenty"
    assert maths.as_mathvista("3.0", [], "integer", 0) == "3"
    assert maths.as_mathvista("1.26", [], "float", 1) == "1.3"
    assert maths.as_mathvista("some", [], "integer", 0) is None


def test_places_are_read_in_thousandths_or_fractions() -> None:
    box = places.said_place("<|box_start|>(100,200),(300,400)<|box_end|>")
    assert box == (0.1, 0.2, 0.3, 0.4)
    assert places.said_place("[0.1, 0.2, 0.3, 0.4]") == (0.1, 0.2, 0.3, 0.4)
    assert places.said_place("nowhere") is None
    assert places.hits([0.1, 0.2, 0.3, 0.4], box)
    assert places.hits([0.2, 0.3, 0.9, 0.9], box)  # the centre lies on the corner
    assert not places.hits([0.21, 0.3, 0.9, 0.9], box)
    assert places.overlap([0.0, 0.0, 0.2, 0.2], [0.1, 0.0, 0.3, 0.2]) == pytest.approx(1 / 3)
    assert places.overlap([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]) == 0.0
    assert places.thousandths([0.1, 0.2, 0.3, 0.4]) == "<|box_start|>(100,200),(300,400)<|box_end|>"
