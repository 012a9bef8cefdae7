"""Our scores against lmms-eval 0.7.3's own functions, on random and adversarial predictions.

    python benchmarks/eval_parity.py --json

Rows are in the layouts of lmms-eval's data sets, and go through our tasks whole: truth and facts are read from them.
Only the cut is left out, which lmms-eval has done elsewhere. Its functions run in the environment of `nox -s lmms`,
which is built if it is not there. A difference that has a reason is listed under it; any other is a difference.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from andes_evaluation.fields import Reader
from andes_evaluation.rules import yes_no
from andes_evaluation.tasks.catalogue import TASKS

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".nox" / "lmms"
PER_TASK, SETS = 1000, 40

NOT_COMPARED = {
    "mathvision": "lmms-eval evaluates answers as Python; here math-verify parses them",
    "mathverse, wemath, logicvista, dynamath": "lmms-eval scores them by GPT",
    "hallusionbench": "lmms-eval scores it by GPT; here yes and no are read, as VLMEvalKit does",
    "mmvet": "scored by a judge in both; the prompt here is ours",
    "ccbench, mtl-mmbench": "the rule of mmbench-en",
    "crpe-exist": "the rule of crpe-relation",
    "mmmb, r-bench, andesui": "lmms-eval does not have them",
}

WORDS = (
    "a cat", "a dog", "the red circle", "none of the above", "3.5", "(x+1)", "B", "Paris", "yes", "no", "north-west",
    "An apple.", "A", "two", "10%", "C. elegans", "100", "1,000", "left", "Ω", "été", "北京", "all", "I",
)  # fmt: skip
NOISE = string.ascii_letters + string.digits + " \n\t.,:;!?()[]{}'\"-+*/\\%$#_=<>" + "ABCDABCD    éΩ北．Ａ（）İß"
NUMBERS = ("0", "-0", "0.0", "1", "10", "100", "12%", "0.12", "1,234", "1234", "nan", "inf", "-inf", "1e5", "1_000",
           "½", " 5", "5 ", "5.", ".5", "%", "%%", "1%%", "3.14159", "-2", "1e999")  # fmt: skip
FORMS = (
    "{L}", "({L})", "{L}.", "{L})", "{L}:", "{L},", "[{L}]", "**{L}**", "{l}", "({l})", "The answer is {L}",
    "The answer is ({L}).", "the correct option is {L}: {T}", "Answer: {L}", "{L}. {T}", "({L}) {T}", "{T}", "{t}",
    "I think it is {T}, since the picture shows it clearly", "Not ({M}) but ({L})", "{M} or {L}", "{L}\nbecause {T}",
    "It could be {M}. Final answer: {L}", "答案是{L}", "정답은 {L}", "A {T} is seen, so {L}", "{L} {M}", "{T} and {U}",
    "so the result is {T}", "I choose {L}!", "My answer is {T}", "Because A is an article, {L}", "'{L}'", '"{L}".',
    "{L}-{M}", "option {L}", "= {T}", "therefore {T}.", "{T}{T}", "The {T}. Thus {L}",
)  # fmt: skip


class Cases:
    """Random rows and predictions of each task."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def noise(self) -> str:
        return "".join(self.random.choices(NOISE, k=self.random.choice((0, 1, 2, 3, 5, 8, 20, 60))))

    def options(self, most: int = 4, least: int = 2) -> dict[str, str]:
        texts = self.random.sample(WORDS, self.random.randint(least, most))
        return dict(zip(string.ascii_uppercase, texts, strict=False))

    def chosen(self, options: dict[str, str]) -> str:
        """A prediction for a question with options."""
        draw = self.random
        if draw.random() < 0.2:
            return self.noise()
        letter, other = draw.choice(list(options)), draw.choice("ABCDE")
        text, second = options[letter], draw.choice(list(options.values()))
        form = draw.choice(FORMS[:3] if draw.random() < 0.25 else FORMS)
        said = form.format(L=letter, l=letter.lower(), M=other, T=text, t=text.lower(), U=second)
        return said + self.noise() if draw.random() < 0.1 else said

    def near(self, text: str) -> str:
        """A text that is the same, or nearly, or not at all."""
        draw = self.random
        kind = draw.randrange(9)
        at = draw.randrange(len(text) + 1)
        if kind == 0:
            return self.noise()
        if kind == 1:
            return draw.choice((*WORDS, *NUMBERS))
        if kind == 2:
            return text[:at] + draw.choice(NOISE) + text[at:]
        if kind == 3:
            return text[:at] + text[at + 1 :]
        if kind == 4:
            return draw.choice((text.upper(), text.lower(), text.title()))
        if kind == 5:
            return draw.choice(
                (f" {text} ", f"{text}.", f"It is {text}", f"the {text}", f"{text}\n", f"{text}, {text}")
            )
        if kind == 6:
            return text.replace(" ", "  ").replace(",", "")
        if kind == 7 and re.fullmatch(r"-?\d+(\.\d+)?", text):
            return str(float(text) * draw.choice((1.05, 0.95, 1.051, 0.949, 1.0, -1.0)))
        return text

    def truths(self) -> list[str]:
        pool = (*WORDS, *NUMBERS, "don't know", "the 5 o'clock news", "a b c", "1.06", "ann's", "ＷＩＤＥ", "x^2 + 1")
        return self.random.choices(pool, k=self.random.randint(1, 3))

    # ------------------------------------------------------------ rows

    def row(self, task: str) -> tuple[dict[str, Any], str]:
        maker: Callable[[str], tuple[dict[str, Any], str]] = self.__getattribute__(ROWS[task])
        return maker(task)

    def chart(self, task: str) -> tuple[dict[str, Any], str]:
        (truth, *_) = self.truths()
        return {"question": "?", "answer": truth}, self.near(truth)

    def document(self, task: str) -> tuple[dict[str, Any], str]:
        truths = self.truths()
        return {"question": "?", "answers": truths}, self.near(self.random.choice(truths))

    def scene(self, task: str) -> tuple[dict[str, Any], str]:
        pool = self.truths()
        answers = [self.random.choice((one, self.near(one))) for one in self.random.choices(pool, k=10)]
        return {"question": "?", "answers": answers}, self.near(self.random.choice(answers))

    def ocr(self, task: str) -> tuple[dict[str, Any], str]:
        truths = self.truths()
        dataset = self.random.choice(("HME100k", "IIIT5K", "SROIE"))
        said = self.near(self.random.choice(truths))
        return {"question": "?", "answer": truths, "dataset": dataset, "question_type": "Doc-oriented VQA"}, said

    def languages(self, task: str) -> tuple[dict[str, Any], str]:
        (truth, *_) = self.truths()
        return {"question": "?", "answer": truth, "category": "FR"}, self.near(truth)

    def yes_no(self, task: str) -> tuple[dict[str, Any], str]:
        truth = self.random.choice(("yes", "no", "Yes", "No"))
        forms = ("yes", "no", "Yes", "NO", "Yes.", "no, it is not", "y", "n", "Y", "maybe", "", " yes ", "nope",
                 "yesterday", "I say yes", ".no", "n.o", "The answer is no", "yes and no", "know", "eyes")  # fmt: skip
        said = self.random.choice((*forms, self.noise()))
        return {"question": "?", "answer": truth, "category": "existence"}, said

    def listed(self, task: str) -> tuple[dict[str, Any], str]:
        options = self.options()
        letter = self.random.choice(list(options))
        answer = {"ai2d": str(string.ascii_uppercase.index(letter)), "blink": f"({letter})"}.get(task, letter)
        field = "choices" if task == "blink" else "options"
        return {"question": "?", field: list(options.values()), "answer": answer}, self.chosen(options)

    def subject(self, task: str) -> tuple[dict[str, Any], str]:
        options = self.options(10 if task == "mmmu-pro" else 4)
        doc = {"id": "validation_Art_1", "question": "?", "options": str(list(options.values()))}
        if task == "mmmu-pro":
            return {**doc, "answer": self.random.choice(list(options))}, self.chosen(options)
        if self.random.random() < 0.5:
            doc |= {"question_type": "multiple-choice", "answer": self.random.choice(list(options))}
            return doc, self.chosen(options)
        (truth, *_) = self.truths()
        said = self.chosen({"A": truth, **{k: v for k, v in options.items() if k != "A"}})
        doc |= {"options": "[]", "question_type": "open", "answer": truth}
        return doc, self.random.choice((said, self.near(truth)))

    def quality(self, task: str) -> tuple[dict[str, Any], str]:
        options = self.options()
        doc = {f"option{i}": options.get(string.ascii_uppercase[i], "N/A") for i in range(4)}
        return {"question": "?", **doc, "correct_choice": self.random.choice(list(options))}, self.chosen(options)

    def columns(self, task: str) -> tuple[dict[str, Any], str]:
        options = self.options(9 if task == "mmt-bench" else 4, least=4 if task == "mmstar" else 2)
        missing = {letter: None for letter in "ABCD" if letter not in options}
        form = "choice_{}" if task == "seed-2-plus" else "{}"
        doc = {form.format(letter): text for letter, text in {**options, **missing}.items()}
        return {"index": 5, "question": "?", **doc, "answer": self.random.choice(list(options))}, self.chosen(options)

    def question(self, task: str) -> tuple[dict[str, Any], str]:
        options = self.options()
        if self.random.random() < 0.3:
            (truth, *_) = self.truths()
            return {"question": "?", "answer": truth}, self.near(truth)
        return {"question": "?", "answer": self.random.choice("ABCD")}, self.chosen(options)

    def inline(self, task: str) -> tuple[dict[str, Any], str]:
        options = {letter: text for letter, text in self.options().items() if not re.search(r"\b[A-Z]\.\s", text)}
        text = "What is it?\n" + "\n".join(f"{letter}. {option}" for letter, option in options.items())
        return {"text": text, "correct_option": self.random.choice(list(options))}, self.chosen(options)

    def screen(self, task: str) -> tuple[dict[str, Any], str]:
        draw = self.random
        x, y = draw.randint(20, 700), draw.randint(20, 700)
        right, bottom = x + draw.randint(5, 290), y + draw.randint(5, 290)
        moved = [v + draw.choice((0, 1, -5, 40, -60)) for v in (x, y, right, bottom)]
        if task == "screenspot":
            doc = {"instruction": "?", "bbox": [x / 1000, y / 1000, right / 1000, bottom / 1000]}
            values = draw.choice((moved, [v / 1000 for v in moved]))
            gap = draw.choice((", ", ",", ",  "))
            box = draw.choice("[(") + gap.join(map(str, values)) + draw.choice("])")
            pairs = f"<|box_start|>({values[0]},{values[1]}),({values[2]},{values[3]})<|box_end|>"
            said = draw.choice((box, box, box, f"It is at {box}.", pairs, self.noise(), f"[{values[0]}, {values[1]}]"))
            return doc, said
        doc = {"instruction": "?", "bbox": [x, y, right - x, bottom - y], "image_width": 1000, "image_height": 1000}
        if task == "screenspot-pro":
            doc |= {"bbox": [x, y, right, bottom], "img_size": [1000, 1000]}
        at = [(moved[0] + moved[2]) / 2000, (moved[1] + moved[3]) / 2000]
        point = f"[{at[0]}, {at[1]}]"
        said = draw.choice((point, point, f"Click ({at[0]}, {at[1]}).", f"({int(at[0] * 1000)},{int(at[1] * 1000)})",
                            f"x={at[0]}, y={at[1]}", self.noise()))  # fmt: skip
        return doc, said

    def vista(self, task: str) -> tuple[dict[str, Any], str]:
        draw = self.random
        kind = draw.choice(("multi_choice", "integer", "float", "list", "text"))
        doc = {"question": "?", "query": "?", "question_type": "free_form", "answer_type": kind, "precision": 0,
               "choices": None, "answer": draw.choice(("3", "12", "-4"))}  # fmt: skip
        if kind == "multi_choice":
            options = self.options()
            doc |= {"question_type": kind, "answer_type": "text", "choices": list(options.values())}
            return {**doc, "answer": draw.choice(list(options.values()))}, self.chosen(options)
        if kind == "float":
            precision = draw.choice((1, 2))
            doc |= {"precision": precision, "answer": str(round(draw.uniform(-9, 9), precision))}
        return doc, self.near(str(doc["answer"]))


ROWS = {
    "chartqa": "chart", "docvqa": "document", "infovqa": "document", "textvqa": "scene", "ocrbench": "ocr",
    "mtvqa": "languages", "pope": "yes_no", "mme": "yes_no", "ai2d": "listed", "mmmu": "subject", "mmmu-pro": "subject",
    "q-bench": "quality",
    "mmbench-en": "columns", "mmbench-cn": "columns",
    "mmstar": "columns", "realworldqa": "question", "blink": "listed", "mmt-bench": "columns",
    "muirbench": "listed", "seed-2-plus": "columns", "crpe-relation": "inline", "screenspot": "screen",
    "screenspot-v2": "screen", "screenspot-pro": "screen", "mathvista": "vista",
}  # fmt: skip
"""Task -> what makes its rows."""


def ours(task: str, doc: dict[str, Any], said: str) -> Any:
    """Our score of one prediction; for ScreenSpot with the overlap."""
    own = TASKS[task]
    (item,) = own.items(Reader({k: v for k, v in doc.items() if v is not None}, task, ROOT), 0)
    rated = own.rate(said, item.truth, item.facts)
    return [rated.score, rated.marks["iou"]] if task == "screenspot" else rated.score


def whole(task: str, docs: Sequence[dict[str, Any]], said: Sequence[str]) -> list[float]:
    """Our figures of many predictions."""
    own, rows = TASKS[task], []
    for number, (doc, text) in enumerate(zip(docs, said, strict=True)):
        (item,) = own.items(Reader(doc, task, ROOT), number)
        rated = own.rate(text, item.truth, item.facts)
        rows.append({"cluster": item.cluster or str(number), "truth": item.truth, "facts": item.facts,
                     "read": rated.read, "score": rated.score})  # fmt: skip
    clusters: dict[str, list[Any]] = {}
    for row in rows:
        clusters.setdefault(row["cluster"], []).append(row)
    sums: dict[str, float] = {}
    for cluster in clusters.values():
        for name, value in own.tally(cluster).items():
            sums[name] = sums.get(name, 0.0) + value
    found = {name: float(value) for name, value in own.figures(sums).items()}  # type: ignore[arg-type]
    names = ("accuracy", "precision", "recall", "f1") if task == "pope" else ("total",)
    return [found[name] for name in names]


_FOUR = re.compile(r"[\[\(]\s*-?\d+(?:\.\d+)?(?:,\s*-?\d+(?:\.\d+)?){3}\s*[\]\)]")
_FRACTIONS = re.compile(r"[^\d]*[\[(](-?[01](?:\.\d+)?), (-?[01](?:\.\d+)?)[\])][^\d]*")


def reason(task: str, doc: dict[str, Any], said: str) -> str:
    """Why ours may differ on this case by design; "" for no reason."""
    if task == "pope" and said.lower().strip() not in ("yes", "no") and yes_no.word(said):
        return "lmms-eval takes only the bare word; AndesVL's prompt asks for a sentence, and the word in it is taken"
    if task == "screenspot":
        match = _FOUR.search(said)
        if match is None:
            return "lmms-eval reads four numbers in one bracket only; AndesVL's pairs and points are read here"
        x1, y1, x2, y2 = (float(v) for v in re.findall(r"-?\d+(?:\.\d+)?", match[0]))
        if x1 > x2 or y1 > y2:
            return "corners in the wrong order are put right here"
    if task == "screenspot-v2" and doc["bbox"][2] > doc["bbox"][0] and doc["bbox"][3] > doc["bbox"][1]:
        return "lmms-eval takes sizes that are larger than the corner for another corner"
    if task in ("screenspot-v2", "screenspot-pro") and not _FRACTIONS.fullmatch(said):
        return "lmms-eval reads numbers above 1 as pixels, and any numbers as a point; here they are thousandths"
    if task == "mathvista" and doc["choices"] and not said.strip():
        return "lmms-eval takes the nearest option for an empty answer; here it is wrong"
    return ""


def made(seed: int, per_task: int) -> Iterator[dict[str, Any]]:
    cases = Cases(seed)
    for task in ROWS:
        for _ in range(per_task):
            doc, said = cases.row(task)
            yield {"task": task, "doc": doc, "said": said, "ours": ours(task, doc, said)}
    for _ in range(SETS):
        words = [cases.random.choice(("yes", "no")) for _ in range(60)]
        docs = [{"question": "?", "answer": cases.random.choice(("yes", "no"))} for _ in words]
        yield {"task": "pope, whole", "doc": docs, "said": words, "ours": whole("pope", docs, words)}
        kinds = ("existence", "count", "OCR", "code_reasoning", "text_translation")
        docs = [{"question": "?", "answer": cases.random.choice(("Yes", "No")), "question_id": f"{i // 2}.png",
                 "category": kinds[i // 12]} for i in range(60)]  # fmt: skip
        yield {"task": "mme, whole", "doc": docs, "said": words, "ours": whole("mme", docs, words)}


def theirs(cases: Sequence[dict[str, Any]]) -> list[Any]:
    """lmms-eval's scores, from its own environment."""
    if not any(PLACE.glob("lib/*/site-packages/lmms_eval")):
        print("building the environment of `nox -s lmms`", file=sys.stderr)
        build = [sys.executable, "-m", "nox", "-r", "-s", "lmms", "--install-only"]
        subprocess.run(build, cwd=ROOT, check=True, stdout=sys.stderr)
    lines = "".join(json.dumps({key: case[key] for key in ("task", "doc", "said")}) + "\n" for case in cases)
    worker = [str(PLACE / "bin" / "python"), str(Path(__file__).with_name("eval_parity_worker.py"))]
    done = subprocess.run(worker, input=lines.encode(), stdout=subprocess.PIPE, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


def equal(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
    return all(math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-9) for a, b in pairs)


def compared(cases: Sequence[dict[str, Any]], scores: Sequence[Any]) -> dict[str, Any]:
    """Counts by task, what is listed, and the differences themselves."""
    by: dict[str, Any] = {}
    examples = []
    for case, score in zip(cases, scores, strict=True):
        task = case["task"]
        told = by.setdefault(task, {"cases": 0, "right": 0, "differences": 0, "listed": Counter()})
        told["cases"] += 1
        told["right"] += int(not isinstance(score, list) and score > 0)
        if equal(case["ours"], score):
            continue
        why = "" if "whole" in task else reason(task, case["doc"], case["said"])
        if why:
            told["listed"][why] += 1
            continue
        told["differences"] += 1
        examples.append({**case, "theirs": score})
    return {
        "cases": len(cases),
        "differences": sum(told["differences"] for told in by.values()),
        "listed": sum(told["listed"].total() for told in by.values()),
        "by_task": {name: {**told, "listed": dict(told["listed"])} for name, told in by.items()},
        "random_letters": "where lmms-eval draws one (MMMU, Q-Bench, MMT-Bench), both count the answer as wrong here",
        "not_compared": NOT_COMPARED,
        "examples": examples[:20],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-task", type=int, default=PER_TASK)
    given = parser.parse_args()
    cases = list(made(given.seed, given.per_task))
    found = compared(cases, theirs(cases))
    if given.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for name, told in found["by_task"].items():
            print(f"{name:16} {told['cases']:6} cases, {told['right']:5} right, {told['differences']} differences")
            for why, count in told["listed"].items():
                print(f"{'':16} {count:6} listed: {why}")
        print(f"{found['cases']} cases, {found['differences']} differences, {found['listed']} listed")
    return int(found["differences"] > 0)


if __name__ == "__main__":
    sys.exit(main())
