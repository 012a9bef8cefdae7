"""Each task on a tiny file in the layout that its authors publish: what is asked, what is right, what is not."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from andes_evaluation.fields import Reader
from andes_evaluation.figures import figures_of
from andes_evaluation.items import Item
from andes_evaluation.rows import find
from andes_evaluation.tasks.base import Task
from andes_evaluation.tasks.catalogue import LANGUAGES, TASKS
from PIL import Image

from andes_sdk.errors import InputError

Rows = Sequence[Mapping[str, Any]]


def picture(colour: str = "teal", size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


P = base64.b64encode(picture()).decode()


def write(path: Path, rows: Rows) -> None:
    """A TSV or JSON Lines file, by its suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        made = csv.DictWriter(file, list(dict.fromkeys(k for row in rows for k in row)), delimiter="\t")
        made.writeheader()
        made.writerows(rows)


def items_of(task: Task, folder: Path, *, think: bool = False) -> list[Item]:
    rows = find(task.place, folder)
    found = []
    for number, row in enumerate(rows):
        found += task.items(Reader(row, f"row {number}", rows.folder), number, think=think)
    return found


CHOICE = {"index": 7, "image": P, "question": "Which animal?", "A": "cat", "B": "dog", "C": "horse", "answer": "B",
          "category": "animals", "hint": "It barks."}  # fmt: skip
PIXELS = {"index": 0, "image": P, "question": "open it", "bbox": "[4, 2, 16, 10]", "data_type": "text"}
CORNERS = {"id": "0", "image": "a.png", "width": 40, "height": 20, "instruction": "open it", "box": [4, 2, 20, 12],
           "text": "Open", "kind": "button", "size": "small"}  # fmt: skip
BOX = "<|box_start|>(110,120),(480,560)<|box_end|>"
VISTA = {"index": 1, "image": P, "question": "How many?", "query": "Hint: count.\nQuestion: How many?", "answer": "3",
         "question_type": "free_form", "answer_type": "integer", "precision": "0.0", "task": "counting"}  # fmt: skip

LAYOUTS: dict[str, tuple[Rows, str, str, str]] = {
    **{f"screenspot-{v}{part}": ([PIXELS], "open it", BOX, "<|box_start|>(600,1),(700,9)<|box_end|>")
       for v in ("", "v2-") for part in ("mobile", "desktop", "web")},
    "screenspot": ([{"file_name": "a.png", "bbox": [0.1, 0.1, 0.5, 0.6], "instruction": "open it", "data_type": "icon",
                     "data_source": "ios", "image": "a.png"}], "open it", "(300,300)", "here"),
    "screenspot-v2": ([{"image": "a.png", "bbox": [4, 2, 16, 10], "instruction": "open it", "data_type": "text"}],
                      "open it", BOX, "(900,900)"),
    "screenspot-pro": ([{"image": "a.png", "bbox": [4, 2, 20, 12], "instruction": "open it", "ui_type": "icon",
                         "img_size": [40, 20], "group": "CAD"}], "open it", BOX, "[0.9, 0.9, 1.0, 1.0]"),
    "andesui-grounding": ([CORNERS], "open it", BOX, "(900,900),(990,990)"),
    "andesui-qa": ([{**CORNERS, "instruction": "Where do I open it?"}], "Where do I open it?", BOX, ""),
    "andesui-referring": ([{**CORNERS, "instruction": "What is {box}?"}],
                          "What is <|box_start|>(100,100),(500,600)<|box_end|>?", "the Open button", ""),
    "andesui-description": ([{"id": "0", "image": "a.png", "instruction": "Describe it.", "text": "设置，Wi-Fi 开"}],
                            "Describe it.", "设置 wi-fi 开。", "nothing"),
    "chartqa": ([{"index": 0, "image": P, "question": "How much?", "answer": "100", "split": "test_human"}],
                "How much?\nAnswer the question using a single number or phrase.", "The answer is 104.", "106"),
    "docvqa": ([{"index": 0, "image": P, "question": "Who?", "answer": "['Ann Lee', 'A. Lee']"}],
               "Who?\nAnswer the question using a single word or phrase.", "ann lee", "Bob"),
    "infovqa": ([{"index": 0, "image": P, "question": "Who?", "answer": "Ann"}], "Who?", "Ann", "Bob"),
    "textvqa": ([{"index": 0, "image": P, "question": "what brand?", "answer": str(["coke"] * 10)}],
                "Give the final answer directly without any explanation.", "The Coke", "fanta"),
    "ocrbench": ([{"index": 0, "image": P, "question": "what is written in the image?", "answer": "['CENTRE']",
                   "category": "Regular Text Recognition"}],
                 "Answer this question based on the text in the image directly.", "It says centre.", "center"),
    "mtvqa": ([{"index": 0, "image": P, "question": "这是什么?", "answer": "北京", "category": "zh"}], "这是什么?",
              "这是北京。", "上海"),
    "ai2d": ([CHOICE], "Options:\nA. cat\nB. dog\nC. horse\nAnswer with the option’s letter", "B. dog", "dog"),
    "mmmu": ([{**CHOICE, "question": "Which of <image 1>?"}], "Answer with the option’s letter", "(B)", "A"),
    "mmmu-pro": ([{**CHOICE, "J": "newt", "answer": "J"}], "J. newt", "(J)", "(A)"),
    "mmbench-en": ([CHOICE], "Hint: It barks.\nQuestion: Which animal?", "B", "C"),
    "mmbench-cn": ([CHOICE], "Hint: It barks.", "it is a dog", "cat"),
    "ccbench": ([CHOICE], "Please select the correct answer from the options above.", "B", "C"),
    "mmstar": ([CHOICE], "reason step by step", "I see a cat and a dog. The answer is B", "The answer is C"),
    "blink": ([CHOICE], "Answer with the option’s letter", "The answer is (B).", "The dog"),
    "mmt-bench": ([CHOICE], "Which animal?", "I say B then", "A"),
    "mmt-bench-mi": ([{**CHOICE, "image": str([P, P])}], "Which animal?", "B.", "A"),
    "muirbench": ([{**CHOICE, "image": str([P, P]), "question": "Is <image> like <image>?"}],
                  "Answer with the option's letter from the given choices directly.", "B. dog", "C"),
    "realworldqa": ([CHOICE], "Please select the correct answer", "B", "A"),
    "seed-2-plus": ([CHOICE], "Answer with the option’s letter", "B because", "It is B"),
    "crpe-relation": ([{"index": 0, "image": P, "question": "What?\nA. cat\nB. dog\nAnswer with the letter.",
                        "answer": "B", "category": "subject"}], "B. dog", "(b)", "cat"),
    "crpe-exist": ([{"index": 0, "image": P, "question": "What?\nA. cat\nB. dog", "answer": "B", "category": "exist"}],
                   "A. cat", "a dog", "A"),
    "q-bench": ([CHOICE], "Which animal?", "(B)", "(C)"),
    "r-bench": ([CHOICE], "Which animal?", "B", "C"),
    **{f"{family}-{language}": ([CHOICE], "Which animal?", "B", "C")
       for family in ("mmmb", "mtl-mmbench") for language in LANGUAGES},
    "wemath": ([{**CHOICE, "ID": "12", "key": "2steps_1"}, {**CHOICE, "ID": "12", "key": "2steps_2"},
                {**CHOICE, "ID": "12", "key": "2steps_multi", "requirement": "Think."}], "Which animal?", "B", "C"),
    "logicvista": ([{"index": 0, "image": P, "question": "Which ones?", "answer": "B, D", "skill": "spatial"}],
                   "Which ones?", "B and D", "B"),
    "pope": ([{"index": 0, "image": P, "question": "Is there a dog?", "answer": "Yes", "category": "random,popular"}],
             'Conclude with "The answer is yes"', "The answer is yes, a dog.", "No"),
    "mme": ([{"index": i, "image": P, "question": "Is it a dog? Please answer yes or no.", "answer": "Yes",
              "category": "existence", "image_path": "a.jpg"} for i in range(2)], "Give a very brief answer.", "Yes",
            "No"),
    "hallusionbench": ([{"index": "VD_figure_x_0_1_0", "image": P, "question": "Is it round?", "answer": "No",
                         "category": "VD", "l2-category": "figure"}], "give a brief explanation", "The answer is no",
                       "Yes"),
    "mathvista": ([VISTA], "Context: count.", "the answer is 3.", "4"),
    "mathverse": ([{"index": 0, "image": P, "question": "Find x.\nChoices:\n(A) 1\n(B) 2", "answer": "B",
                    "problem_version": "Text Lite"}], "Options:\nA. 1\nB. 2", r"\boxed{B}", "A"),
    "mathverse-vision-only": ([{"index": 0, "image": P, "question": "Find x.", "answer": "12"}], "Find x.",
                              r"so \boxed{12}", "13"),
    "mathvision": ([{"index": 0, "image": P, "question": "Find x.", "answer": r"\frac{1}{2}"}],
                   "answer the question with a number directly", "0.5", "1"),
    "mathvision-mini": ([{"index": 0, "image": P, "question": "Which?", "options": "['1', '2']", "answer": "B"}],
                        "Options:\nA. 1\nB. 2", "The answer is B", "A"),
    "dynamath": ([{"index": 0, "image": P, "question": "Slope?", "answer": "1.5", "answer_type": "float", "qid": 4,
                   "varid": 1, "subject": "algebra"}], "## Question\n Slope?", "the answer is 1.5004", "1.6"),
    "mmvet": ([{"index": 0, "image": P, "question": "What is x?", "answer": "3", "category": "math"}], "What is x?",
              "3", ""),
}  # fmt: skip
"""Task -> rows, what the prompt holds, a right answer, a wrong one."""


class Grader:
    """Grades by whether the prompt's answer is its truth; a judge as `Judge` describes it."""

    def ask(self, prompt: str) -> str:
        truth, _, said = prompt.rpartition("Ground truth: ")[2].removesuffix("\nScore:").partition("\nAnswer: ")
        return "1.0" if truth == said else "0.2"


def test_every_task_has_a_layout() -> None:
    assert set(LAYOUTS) == set(TASKS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_task_reads_its_layout_and_scores_an_answer(name: str, tmp_path: Path) -> None:
    from attrs import evolve

    task, (rows, asked, right, wrong) = TASKS[name], LAYOUTS[name]
    if task.needs_judge:
        task = evolve(task, judge=Grader())
    suffix = "tsv" if all("index" in row or "ID" in row for row in rows) else "jsonl"
    write(tmp_path / f"{task.place.names[0]}.{suffix}", rows)
    (tmp_path / "a.png").write_bytes(picture())
    items = items_of(task, tmp_path)
    assert len(items) == len(rows)
    assert asked in "\n".join(part for part in items[0].parts if isinstance(part, str))
    assert {Image.open(io.BytesIO(one)).size for one in items[0].pictures} == {(40, 20)}
    for said, score in ((right, 1.0), (wrong, 0.0)):
        answered = [answer(task, item, said) for item in items]
        assert {row["score"] for row in answered} == {score}, [row["read"] for row in answered]
        main = figures_of(task, json.loads(json.dumps(answered)))[task.measure]
        whole = 200.0 if name == "mme" else 1.0
        # saying no to everything that is there has no F1 above 0, and all that are wrong have no score
        assert main.value == pytest.approx(whole * score)
        assert main.low <= main.value <= main.high


def answer(task: Task, item: Item, said: str) -> dict[str, Any]:
    """What `run.py` writes of an answer, as far as figures need it."""
    counts = task.cut(said)
    rated = task.rate(counts, item.truth, item.facts)
    return {
        "key": item.key, "cluster": item.cluster or item.key, "truth": item.truth, "facts": dict(item.facts),
        "read": rated.read, "score": rated.score, "marks": dict(rated.marks),
    }  # fmt: skip


def test_answers_are_cut_as_published() -> None:
    task = TASKS["mmbench-en"]
    assert task.cut("<think>A or B?</think><answer>The answer is B.</answer>") == "B"
    assert task.cut(r"so \boxed{C}.") == "C"
    assert task.cut("<think>it never ends: A") == ""


def test_instruct_is_greedy_and_thinking_samples_for_mathematics_only() -> None:
    maths, other = TASKS["mathvista"], TASKS["docvqa"]
    assert (maths.generation(False).temperature, other.generation(False).temperature) == (0.0, 0.0)
    thinking = maths.generation(True)
    assert (thinking.temperature, thinking.top_p, thinking.top_k, thinking.presence_penalty) == (0.6, 0.95, 20, 1.0)
    assert other.generation(True).temperature == 0.0
    assert other.generation(True, max_tokens=9, seed=3).max_tokens == 9
    assert thinking.think is True


def test_thinking_models_are_not_made_to_begin_with_a_box(tmp_path: Path) -> None:
    task = TASKS["andesui-grounding"]
    write(tmp_path / "grounding.jsonl", [CORNERS])
    (tmp_path / "a.png").write_bytes(picture())
    assert [item.start for item in items_of(task, tmp_path)] == ["<|box_start|>("]
    assert [item.start for item in items_of(task, tmp_path, think=True)] == [""]
    write(tmp_path / "POPE.tsv", LAYOUTS["pope"][0])
    assert "/think" in items_of(TASKS["pope"], tmp_path, think=True)[0].parts[-1]  # type: ignore[operator]


def test_a_referring_row_without_a_place_gets_the_box_behind_its_question(tmp_path: Path) -> None:
    write(tmp_path / "referring.jsonl", [{**CORNERS, "instruction": "Name this:"}, {**CORNERS, "instruction": None},
                                         {**CORNERS, "instruction": "Name (1,2),(3,4):"}])  # fmt: skip
    (tmp_path / "a.png").write_bytes(picture())
    asked = [item.parts[-1] for item in items_of(TASKS["andesui-referring"], tmp_path)]
    box = "<|box_start|>(100,100),(500,600)<|box_end|>"
    assert asked == [f"Name this: {box}", f"请给出坐标为{box}的控件名称。", "Name (1,2),(3,4):"]


def test_the_published_part_of_andesui_is_read_as_it_lies(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture())
    row = {"imgpath": "images/a.jpg", "bbox": [0.1, 0.1, 0.5, 0.6]}
    asked = {"question": "open"}
    for kind, more in (("Grounding", asked), ("QA", asked), ("Referring", {"description": "x"})):
        (tmp_path / f"AndesUI_Test_{kind}_sub.json").write_text(json.dumps([{**row, **more}]))
    (item,) = items_of(TASKS["andesui-grounding"], tmp_path)
    assert (item.truth, item.parts[-1], len(item.pictures)) == ([0.1, 0.1, 0.5, 0.6], "open", 1)
    assert items_of(TASKS["andesui-qa"], tmp_path)[0].truth == item.truth
    (item,) = items_of(TASKS["andesui-referring"], tmp_path)
    assert (item.truth, len(item.pictures)) == ("x", 1)
    write(tmp_path / "AndesUI_test_QA_data.tsv", [{"index": 0, **row, "question": "open"}])
    assert items_of(TASKS["andesui-qa"], tmp_path)[0].truth == [0.1, 0.1, 0.5, 0.6]


@pytest.mark.parametrize(
    ("said", "score", "exact"),
    [("Open", 1.0, 1.0), ("open.", 0.0, 1.0), (" “Ｏpen” ", 0.0, 1.0), ("the Open button", 1.0, 0.0), ("", 0.0, 0.0)],
)
def test_a_name_is_right_by_what_it_holds_and_exact_by_what_it_says(said: str, score: float, exact: float) -> None:
    task = TASKS["andesui-referring"]
    rated = task.rate(task.cut(said), "Open", {})
    assert (rated.score, rated.marks["exact"]) == (score, exact)


def test_pictures_stand_where_the_question_says(tmp_path: Path) -> None:
    row = {"id": "val_Art_1", "question": "Is <image 2> before <image 1>?", "options": "['yes', 'no']", "answer": "A",
           "image_1": {"bytes": picture("red")}, "image_2": {"bytes": picture("blue")}}  # fmt: skip
    (item,) = TASKS["mmmu"].items(Reader(row, "row", tmp_path), 0)
    kinds = [part if isinstance(part, str) else Image.open(io.BytesIO(part)).getpixel((0, 0)) for part in item.parts]
    assert kinds[0] == "Question: Is"
    assert kinds[1] == (0, 0, 255)
    assert kinds[2:4] == ["before", (255, 0, 0)]
    assert item.facts["groups"]["subject"] == "Art"
    content = item.messages()[0]["content"]
    assert [part["type"] for part in content] == ["text", "image", "text", "image", "text"]
    assert content[2]["text"] == "\nbefore\n"


def test_pictures_are_enlarged_where_the_evaluation_says_so(tmp_path: Path) -> None:
    write(tmp_path / "AI2D_TEST.tsv", [CHOICE])
    (item,) = items_of(TASKS["ai2d"], tmp_path)
    assert TASKS["ai2d"].scale == 2.0
    assert item.messages(scale=2.0)[0]["content"][0]["image"].size == (80, 40)


def test_mmbench_counts_a_circle_once_and_only_if_all_of_it_is_right(tmp_path: Path) -> None:
    task = TASKS["mmbench-en"]
    write(
        tmp_path / "MMBench_DEV_EN_V11.tsv",
        [CHOICE, {**CHOICE, "index": 1_000_007, "answer": "C"}, {**CHOICE, "index": 8}],
    )
    items = items_of(task, tmp_path)
    rows = [answer(task, item, "B") for item in items]
    figures = figures_of(task, rows)
    assert [row["score"] for row in rows] == [1.0, 0.0, 1.0]
    assert figures["accuracy"].value == 0.5
    assert figures["category: animals"].value == 0.5


def test_pope_gives_f1_and_its_kinds(tmp_path: Path) -> None:
    task = TASKS["pope"]
    rows = [{"index": i, "image": P, "question": "?", "answer": a, "category": "random"} for i, a in enumerate("YYNN")]
    write(tmp_path / "POPE.tsv", [{**r, "answer": {"Y": "Yes", "N": "No"}[r["answer"]]} for r in rows])
    said = ["yes", "no", "yes", "no"]
    items = items_of(task, tmp_path)
    figures = figures_of(task, [answer(task, item, text) for item, text in zip(items, said, strict=True)])
    assert figures["f1"].value == pytest.approx(2 * 1 / (2 + 2))
    assert (figures["accuracy"].value, figures["precision"].value, figures["recall"].value) == (0.5, 0.5, 0.5)
    assert figures["random f1"].value == pytest.approx(0.5)


def test_mme_adds_accuracy_and_pictures_with_both_right(tmp_path: Path) -> None:
    task = TASKS["mme"]
    rows = [{"index": i, "image": P, "question": "?", "answer": "Yes", "category": c, "image_path": f"{i // 2}.jpg"}
            for i, c in enumerate(["count"] * 4 + ["code_reasoning"] * 2)]  # fmt: skip
    write(tmp_path / "MME.tsv", rows)
    said = ["yes", "yes", "yes", "no", "no", "no"]
    items = items_of(task, tmp_path)
    figures = figures_of(task, [answer(task, item, text) for item, text in zip(items, said, strict=True)])
    assert figures["count"].value == pytest.approx(75 + 50)
    assert (figures["perception"].value, figures["cognition"].value) == (125.0, 0.0)
    assert figures["total"].value == 125.0


def test_hallusionbench_counts_questions_figures_and_questions_over_figures(tmp_path: Path) -> None:
    task = TASKS["hallusionbench"]
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]  # figure, question
    rows = [{"index": f"VD_figure_x_0_{f}_{q}", "image": P, "question": "?", "answer": "Yes", "category": "VD",
             "l2-category": "figure"} for f, q in places]  # fmt: skip
    write(tmp_path / "HallusionBench.tsv", rows)
    said = ["yes", "yes", "yes", "no"]  # figure 0 is whole, question 0 is right about both figures
    items = items_of(task, tmp_path)
    figures = figures_of(task, [answer(task, item, text) for item, text in zip(items, said, strict=True)])
    assert (figures["aAcc"].value, figures["fAcc"].value, figures["qAcc"].value) == (0.75, 0.5, 0.5)
    assert figures["mean"].value == pytest.approx(1.75 / 3)


@pytest.mark.parametrize(
    ("said", "strict", "loose"),
    [("BBB", 1.0, 1.0), ("BCB", 0.0, 1.0), ("CCB", 0.0, 0.0), ("BBC", 0.5, 0.5), ("BCC", 0.0, 0.0)],
)
def test_wemath_tells_mastery_from_rote_and_from_what_is_not_generalised(
    said: str, strict: float, loose: float, tmp_path: Path
) -> None:
    task = TASKS["wemath"]
    write(tmp_path / "WeMath.tsv", LAYOUTS["wemath"][0])
    rows = [answer(task, item, text) for item, text in zip(items_of(task, tmp_path), said, strict=True)]
    figures = figures_of(task, rows)
    assert (figures["strict"].value, figures["loose"].value) == (strict, loose)


def test_dynamath_counts_a_problem_by_its_worst_variant(tmp_path: Path) -> None:
    task = TASKS["dynamath"]
    row = LAYOUTS["dynamath"][0][0]
    write(tmp_path / "DynaMath.tsv", [row, {**row, "index": 1, "varid": 2, "answer": "2.5"}])
    figures = figures_of(task, [answer(task, item, "1.5") for item in items_of(task, tmp_path)])
    assert (figures["accuracy"].value, figures["worst case"].value) == (0.5, 0.0)


def test_mtvqa_asks_every_pair_of_a_row(tmp_path: Path) -> None:
    row = {"id": "9", "lang": "FR", "image": {"bytes": picture()},
           "qa_pairs": str([{"question": "Quoi?", "answer": "un"}, {"question": "Qui?", "answer": "Ann"}])}  # fmt: skip
    items = list(TASKS["mtvqa"].items(Reader(row, "row", tmp_path), 0))
    assert [(item.key, item.cluster, item.truth) for item in items] == [("9_0", "9", ["un"]), ("9_1", "9", ["Ann"])]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mmbench-en", {**CHOICE, "answer": "Q5"}, "has the answer 'Q5'"),
        ("mmbench-en", {"index": 1, "question": "?", "answer": "A"}, "has no options"),
        ("pope", {"index": 1, "question": "?", "answer": "perhaps"}, "neither yes nor no"),
        ("andesui-grounding", {**CORNERS, "box": [4, 2, 4, 12]}, "without an area"),
        ("andesui-grounding", {**CORNERS, "box": "4 2"}, "no box of four numbers"),
        ("docvqa", {"question": "?"}, "lacks 'answers' or 'answer'"),
        ("chartqa", {"question": "?", "answer": "1", "image": "gone.png"}, "cannot be read"),
        ("hallusionbench", {"index": "7", "question": "?", "answer": "Yes"}, "names no set"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_the_tasks_is_named(name: str, row: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(InputError, match=message) as caught:
        list(TASKS[name].items(Reader(row, "data.tsv, row 1", tmp_path), 0))
    assert caught.value.who == "data.tsv, row 1"
