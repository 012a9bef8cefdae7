"""Faults that a reader found: samples that differ and were dropped, and boxes that nobody looked at."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from andes_curation import Curation
from andes_curation.clusters import lsa
from andes_curation.facts import Facts
from andes_curation.leak import passages
from andes_curation.score import by_rules
from andes_curation.words import normalised

from andes_sdk.errors import TrainingError

BOX = "<|box_start|>{}<|box_end|>"


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "Where?"}], "chosen": chosen, "rejected": rejected}


def dropped(name: str, *samples: dict[str, Any]) -> list[bool]:
    one = next(f for f in Curation().andes_data_filters() if f.name == name)
    return [reason is not None for _, reason in one.apply(samples)]


DIFFERENT = [
        ("7 - 0 = ?", "7 + 0 = ?"), ("-5", "5"), ("के", "की"), ("का", "क"), ("1.5", "15"), ("1.5", "1 5"),
        (".5", "5"), ("50%", "50"), ("C++", "C"), ("C#", "C"), ("5!", "5"), ("x - y", "x y"),
        ("x - y", "x + y"), ("a/b", "a b"), ("3:4", "3 4"), ("12:30", "12 30"), ("[0, 1)", "(0, 1]"),
        ("(a, b)", "[a, b]"), ("f(x)", "f x"), ("its", "it's"), ("$5", "5"), ("€5", "$5"), ("🙂", "🙁"),
        ("🙂", ""), ("?", "!"), ("10²", "10"), ("H₂O", "HO"), ("½", "¼"), ("e", "é"), ("Maße", "Masse"),
        ("can't", "cant"), ("re-sign", "resign"), ("A-", "A+"), ("A-", "A"), ("<5", ">5"), ("x_1", "x 1"),
        ("a*b", "a b"), ("f'", "f"), ("5'", '5"'), ("−5", "5"), ("7-0", "7 0"), ("7 - 0", "7 0"), ("- 5", "5"),
        ("-.5", ".5"), ("- x", "x"), ("2,5", "25"), ("#1", "1"), ("@a", "a"), ("~5", "5"), ("|x|", "x"),
        ("a=b", "a b"), ("คน", "ค น"), ("กา", "กี"), ("மி", "மீ"), ("1,2", "1 2"), ("کے", "کی"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "میخواهم"), ("-$5", "$5"), ("(5)", "5"),
        ("x^2", "x 2"), ("http://a.b/c", "http a b d"), ("b & c", "b c"),
]  # fmt: skip
SAME = [
        ("What is this?", "what is THIS"), ("A flower.", "a flower"),
        ("One, two; three FOUR", "one two three four"), ("yes!", "Yes"), ("word — word", "word word"),
        ("well - said", "well said"), ('"red"', "red"), ("“red”", "red"), ("(red)", "red"),
        ("a  b\nc", "a b c"), ("it’s", "it's"), ("e\u0301", "é"), ("你好，世界。", "你好 世界"), ("“你好”", "你好"),
        ("- red apples", "red apples"), ("soft\xadware", "software"), ("Hmm…", "hmm"), ("Hmm...", "hmm"),
        ("−5", "-5"), ("¿Qué?", "qué"), ("यह क्या है?", "यह क्या है।"), ("'red'", "red"), ("a, b", "A b"),
        ("red;", "red"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_texts_that_say_different_things_are_no_duplicates(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert dropped("duplicates", talk(one, "x"), talk(other, "x")) == [False, False]
    assert dropped("duplicates", talk("x", one), talk("x", other)) == [False, False]
    assert dropped("duplicates", pair(one, "x"), pair(other, "x")) == [False, False]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_texts_that_differ_in_case_width_of_space_and_dividing_punctuation_are_duplicates(one: str, other: str) -> None:
    assert dropped("duplicates", talk(one, "x"), talk(other, "x")) == [False, True]


def test_normalising_again_changes_nothing() -> None:
    for text in [text for both in (*DIFFERENT, *SAME) for text in both]:
        assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(
    ("key", "box"), [("chosen", "(1,2),(3,4000)"), ("rejected", "(1,2),(3,4000)"), ("chosen", "(1")]
)
def test_a_box_outside_its_picture_is_found_in_both_answers_of_a_pair(key: str, box: str) -> None:
    good = BOX.format("(1,2),(3,4)")
    both = {"chosen": good, "rejected": good}
    talks = {name: [{"role": "assistant", "content": text}] for name, text in {**both, key: BOX.format(box)}.items()}
    samples = pair(**both), pair(**{**both, key: BOX.format(box)}), pair(**talks)
    assert dropped("boxes", *samples) == [False, True, True]


def test_a_leak_is_told_by_words_whole_with_their_vowel_signs() -> None:
    words = "यह किताब मेरे दोस्त की है और बहुत अच्छी है"
    assert len(passages(words, 8)) == len(words.split()) - 7
    assert not passages(words, 8) & passages(words.replace("की", "के"), 8)
    assert passages("what is 7 - 0", 4) != passages("what is 7 + 0", 4)


def test_an_answer_of_a_symbol_is_not_empty_and_another_sign_is_another_answer() -> None:
    assert by_rules("How do you feel?", "🙂")[0] == 4.0
    assert by_rules("5", "-5")[0] == 4.0
    assert by_rules("5", "5.")[1] == "the answer is the question"
    assert by_rules("?", " ")[1] == "the answer is empty"


def test_clusters_see_words_whole_with_their_vowel_signs() -> None:
    vectors = lsa(["की", "के", "की की"])
    assert abs(float(vectors[0] @ vectors[1])) < 1e-6


def test_a_damaged_file_of_facts_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 warns of one that is not."""
    (tmp_path / "facts.sqlite").write_bytes(b"no database, but more than nothing" * 40)
    opened, connect = [], sqlite3.connect

    def noted(*arguments: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    with pytest.raises(TrainingError, match="cannot be read"):
        Facts(tmp_path / "facts.sqlite")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
