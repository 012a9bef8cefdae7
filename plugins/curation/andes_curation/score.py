"""How good a sample is to learn from: the judgement of a model behind a server, or simple rules."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from andes_curation.references import answers, is_path, pictures, questions
from andes_sdk.errors import TrainingError
from andes_sdk.reading import parse_json

from .server import Server
from .table import Table, digest, normalised

PROMPT = """\
You judge training samples for a multimodal assistant. Look at the pictures, if any, the question and the answer.
5: correct, complete and helpful. 4: minor flaws. 3: acceptable. 2: partly wrong or unhelpful.
1: wrong, empty or unusable.
Reply with JSON only: {"score": <1 to 5>, "reason": "<one short sentence>"}"""
_JSON = re.compile(r"\{.*\}", re.DOTALL)


@frozen
class Score(Table):
    """Drops samples that score below `least`, of 1 to 5."""

    least: float
    judge: str
    server: Server
    name = "score"

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a server does the work."""
        return bool(self.judge)

    @property
    def version(self) -> str:
        """Model and prompt: the score of a sample is asked for once."""
        return f"score/1 {self.judge} {digest(PROMPT)}" if self.judge else "score/rules/1"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Score and reason."""
        score, reason = self._asked(sample) if self.judge else by_rules(questions(sample), answers(sample))
        return {"score": score, "reason": reason}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        low = (row["score"] < self.least for row in facts)
        return [
            f"scores {r['score']:g} of 5: {r['reason']}" if bad else None for r, bad in zip(facts, low, strict=True)
        ]

    def _asked(self, sample: Mapping[str, Any]) -> tuple[float, str]:
        shown = [{"type": "image_url", "image_url": {"url": data_url(source)}} for source in pictures(sample)]
        text = f"Question:\n{questions(sample)}\n\nAnswer:\n{answers(sample)}"
        body = {
            "model": self.judge,
            "temperature": 0,
            "max_tokens": 200,
            "messages": [
                {"role": "system", "content": PROMPT},
                {"role": "user", "content": [*shown, {"type": "text", "text": text}]},
            ],
        }
        reply = self.server.ask("chat/completions", body)
        try:
            said = reply["choices"][0]["message"]["content"]
            found = parse_json(_JSON.search(said).group())  # type: ignore[union-attr]
            score = float(found["score"])
            if not 1 <= score <= 5:
                raise ValueError(f"score {score}")
            return score, str(found.get("reason") or "no reason given")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(
                "the judge's reply is no score", who=self.judge, why=f"{error}: {json.dumps(reply)[:200]}",
                fix="use a model that follows instructions",
            ) from None  # fmt: skip


def data_url(source: Any) -> str:
    """A picture as a server takes it."""
    if isinstance(source, str) and not is_path(source):
        return source
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    kind = "image/png" if isinstance(source, bytes) else mimetypes.guess_type(str(source))[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def by_rules(question: str, answer: str) -> tuple[float, str]:
    """A score without a model: for tests, and to sort out what needs no judge. It knows nothing of truth."""
    said = normalised(answer)
    if not said:
        return 1.0, "the answer is empty"
    if len(said) > 200 and len(zlib.compress(said.encode())) < 0.2 * len(said.encode()):
        return 2.0, "the answer repeats itself"
    if said == normalised(question):
        return 2.0, "the answer is the question"
    if "\ufffd" in answer:
        return 2.0, "the answer holds characters that were lost"
    return 4.0, "nothing stands out"
