"""Multiple choice: one class, and small ones where a benchmark asks, reads or counts in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from andes_evaluation.fields import Reader
from andes_evaluation.items import Answered, Item, Rated
from andes_evaluation.rules import choice as rules
from andes_evaluation.rules.opened import open_match
from andes_evaluation.rules.text import unpunctuated

from .base import Task, add

DIRECTLY = "Answer with the option’s letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."
STEPS = (
    "Please read the multiple-choice question carefully, reason step by step, and conclude by stating "
    "'The answer is' followed by the correct letter only."
)


@frozen(kw_only=True)
class Choice(Task):
    """Options below the question; the rule is MMBench's.

    The prompt is that of VLMEvalKit with AndesVL's last line.
    """

    suffix: str = SELECT
    groups: tuple[str, ...] = field(default=("category", "l2-category", "L2-category"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row."""
        options, question = reader.options(), reader.text("question", "text")
        if not options:
            raise reader.wrong("has no options")
        facts = {"options": options}
        truth = reader.letter(options)
        yield self.made(reader, number, self.prompt(reader, question, options), truth, facts=facts, question=question)

    def prompt(self, reader: Reader, question: str, options: Mapping[str, str]) -> str:
        """Hint, question, options and what form the answer has."""
        hint = reader.get("hint")
        lines = [f"Hint: {hint}"] if hint and hint != "nan" else []
        lines += [f"Question: {question}", "Options:", *(f"{c}. {text}" for c, text in options.items()), self.suffix]
        return "\n".join(line for line in lines if line)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for the right letter."""
        letter = self.letter(answer, facts["options"])
        return Rated(float(letter == truth), letter or None)

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """The letter that an answer chooses; "" for none."""
        return rules.matched_letter(answer, options)


@frozen(kw_only=True)
class Circular(Choice):
    """MMBench: a question may be asked again with its options moved round, and is right if it always is.

    Such copies have the index of the question plus a multiple of a million.
    """

    suffix: str = DIRECTLY

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, in a cluster with its copies."""
        for item in super().items(reader, number, think=think):
            index = str(reader.get("index"))
            yield item.placed(int(index) % 1_000_000) if index.isdigit() else item

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """One question, right if all its copies are."""
        every = min(one["score"] for one in cluster)
        return super().tally([{**cluster[0], "score": every}])


@frozen(kw_only=True)
class Ranked(Choice):
    """MMStar: the letter in the most telling place of an answer that may reason."""

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """As lmms-eval's shared extractor."""
        return rules.ranked_letter(answer, list(options))


@frozen(kw_only=True)
class RealWorld(Ranked):
    """RealWorldQA: a letter where the truth is one, and else the same text. Options may stand in the question."""

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row; without columns of options the question is asked as it is."""
        if reader.options():
            yield from super().items(reader, number, think=think)
            return
        question = reader.text("question").strip()
        yield self.made(reader, number, question, reader.text("answer").strip(), facts={"options": {}})

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for the right letter of A to D, or for the same text without case and outer full stops."""
        if truth.upper() in ("A", "B", "C", "D"):
            letter = rules.ranked_letter(answer, facts["options"] or "ABCD")
            return Rated(float(letter == truth.upper()), letter or None)
        said = answer.lower().strip().rstrip(".")
        return Rated(float(said == truth.lower()), said or None)


@frozen(kw_only=True)
class Mentioned(Choice):
    """MMMU, MMMU-Pro, Q-Bench. A question without options is open: the truth has to stand in what the answer says."""

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row; its pictures stand where the text says `<image 2>`."""
        options, question = reader.options(), reader.text("question")
        if options and str(reader.get("question_type") or "multiple-choice") == "multiple-choice":
            yield from super().items(reader, number, think=think)
            return
        prompt = f"Question: {question}\nAnswer the question using a single word or phrase."
        truth = reader.answers("answer")
        yield self.made(reader, number, prompt, truth, facts={"options": {}}, question=question)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for the right letter, or for an open answer that holds the truth."""
        if facts["options"]:
            letter = rules.mentioned_letter(answer, facts["options"])
            return Rated(float(letter == truth), letter or None)
        return Rated(float(open_match(answer, truth)), answer)

    def grouped(self, reader: Reader) -> dict[str, Any]:
        """Also the subject, which the id of MMMU's own files holds."""
        found = super().grouped(reader)
        if subject := re.fullmatch(r"[^_]+_(.+?)_\d+", str(reader.get("id") or "")):
            return {"groups": {**found.get("groups", {}), "subject": subject[1]}}
        return found


@frozen(kw_only=True)
class Spaced(Choice):
    """MMT-Bench."""

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """A letter in brackets, between spaces, or before a full stop."""
        return rules.spaced_letter(answer, list(options))


@frozen(kw_only=True)
class Stated(Choice):
    """BLINK: several pictures; data sets bring the whole prompt with them."""

    suffix: str = DIRECTLY
    groups: tuple[str, ...] = field(default=("category", "sub_task"))

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """A letter alone, after "answer", in brackets, or in front."""
        return rules.stated_letter(answer, "".join(options))


@frozen(kw_only=True)
class Whole(Choice):
    """AI2D: the whole answer is the letter, or begins with it and a full stop; case and punctuation do not count."""

    suffix: str = DIRECTLY

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """What is compared with the truth."""
        return unpunctuated(rules.leading_letter(answer)).upper()


@frozen(kw_only=True)
class Muir(Choice):
    """MuirBench: several pictures in the question, at the places that `<image>` marks."""

    suffix: str = "Answer with the option's letter from the given choices directly."
    groups: tuple[str, ...] = field(default=("task", "image_relation"))

    def prompt(self, reader: Reader, question: str, options: Mapping[str, str]) -> str:
        """As published: no headings."""
        return "\n".join([question, *(f"{c}. {text}" for c, text in options.items()), self.suffix])

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """The letter in front, else the whole answer."""
        return rules.leading_letter(answer).lower().strip().upper()


@frozen(kw_only=True)
class FirstLetter(Choice):
    """SEED-Bench-2-Plus: the first character is the letter."""

    suffix: str = DIRECTLY
    groups: tuple[str, ...] = field(default=("category", "question_image_type"))

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """The first character."""
        return rules.first_letter(answer)


_INLINE = re.compile(r"\b([A-Z])\.\s+([^\n]*)")


@frozen(kw_only=True)
class Written(Choice):
    """CRPE: options stand in the question's text; an answer may write one out."""

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, asked as it is."""
        question = reader.text("text", "question").strip()
        options = {letter: text.strip() for letter, text in _INLINE.findall(question)}
        truth = reader.letter(options)
        yield self.made(reader, number, question, truth, facts={"options": options}, question=question)

    def letter(self, answer: str, options: Mapping[str, str]) -> str:
        """The option that is written out, else the answer without case and punctuation."""
        return unpunctuated(rules.written_option(answer, options)).upper()


@frozen(kw_only=True)
class WeMath(Choice):
    """We-Math (arXiv 2407.01284): a problem of several steps, and each step asked by itself.

    The main figure is the strict score. A problem is one of: insufficient knowledge (a step and the whole are wrong),
    inadequate generalisation (steps right, the whole wrong, half a point), mastery, rote memorisation (the whole right,
    a step wrong). Strict and loose differ in whether one wrong step makes it rote, or all of them.
    """

    suffix: str = ""
    measure: str = "strict"

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One step or problem a row; `ID` names the problem, `key` the step (`2steps_1`, `2steps_multi`)."""
        problem, step = reader.text("ID"), reader.text("key")
        for item in super().items(reader, number, think=think):
            made = Item(
                key=f"{problem}/{step}", parts=item.parts, truth=item.truth, question=item.question,
                facts={**item.facts, "step": step}, cluster=problem,
            )  # fmt: skip
            yield made

    def prompt(self, reader: Reader, question: str, options: Mapping[str, str]) -> str:
        """With the row's own requirement, where it has one."""
        return "\n".join([super().prompt(reader, question, options), *filter(None, [reader.get("requirement")])])

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """One problem: which of the four it is, strictly and loosely."""
        sums = {"problems": 0.0, "steps": float(len(cluster)), "right": sum(one["score"] for one in cluster)}
        whole = [one["score"] for one in cluster if one["facts"]["step"].endswith("_multi")]
        steps = [one["score"] for one in cluster if not one["facts"]["step"].endswith("_multi")]
        if not whole or not steps:
            return sums
        sums["problems"] = 1.0
        if whole[0]:
            for name, mastered in (("strict", min(steps)), ("loose", max(steps))):
                add(sums, name, mastered)
        elif min(steps):
            sums |= {"strict": 0.5, "loose": 0.5}
        return sums

    def figures(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Strict and loose score, and the plain share of right answers."""
        from .base import ratio

        nothing = 0.0 * sums["problems"]
        found = {name: ratio(sums.get(name, nothing), sums["problems"]) for name in ("strict", "loose")}
        return {**found, "steps": ratio(sums["right"], sums["steps"])}


@frozen(kw_only=True)
class Several(Choice):
    """LogicVista: the options are in the picture, and more than one may be right."""

    groups: tuple[str, ...] = field(default=("skill",))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, asked as it is; the truth is letters with commas between them."""
        truth = sorted(set(re.findall(r"[A-Z]", reader.text("answer").upper())))
        if not truth:
            raise reader.wrong("has no letter as its answer")
        question = reader.text("question")
        yield self.made(reader, number, question, truth, facts={"options": {}}, question=question)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for exactly the right letters."""
        bare = rules.bare(answer)
        said = sorted(set(re.findall(r"\b[A-Z]\b", bare)) or set(bare if re.fullmatch("[A-Z]{1,5}", bare) else ""))
        if len(truth) == 1 and len(said) != 1 and (one := rules.ranked_letter(answer, "ABCDEFGH")):
            said = [one]
        return Rated(float(said == truth), said or None)
