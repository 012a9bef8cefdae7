"""How good a sample is to learn from: the judgement of a model behind a server, or simple rules."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from attrs import frozen
from PIL import Image

from andes_curation.references import Placed, answers, is_path, pictures, questions
from andes_sdk.errors import InputError, TrainingError
from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.sources import ImageLimits, describe, read_source
from andes_sdk.reading import parse_json

from .server import Server
from .table import Table, digest
from .words import normalised

PROMPT = """\
You judge training samples for a multimodal assistant. Look at the pictures, if any, the question and the answer.
5: correct, complete and helpful. 4: minor flaws. 3: acceptable. 2: partly wrong or unhelpful.
1: wrong, empty or unusable.
Reply with JSON only: {"score": <1 to 5>, "reason": "<one short sentence>"}"""
_JSON = re.compile(r"\{.*\}", re.DOTALL)


@frozen
class Score(Table):
    """Drops samples that score below `least`, of 1 to 5, and those with a picture that must not leave the machine.

    Attributes:
        folders: whose pictures may be sent, beside the folder of a sample's own file.
        remote: fetch pictures from addresses, here, and send them.
    """

    least: float
    judge: str
    server: Server
    folders: tuple[str, ...] = ()
    remote: bool = False
    name = "score"

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a server does the work."""
        return bool(self.judge)

    @property
    def version(self) -> str:
        """Model and prompt: the score of a sample is asked for once."""
        sent = f"{self.folders} {self.remote}"
        return f"score/2 {self.judge} {digest(PROMPT + sent)}" if self.judge else "score/rules/2"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Score and reason."""
        try:
            score, reason = self._asked(sample) if self.judge else by_rules(questions(sample), answers(sample))
        except InputError as error:
            score, reason = 0.0, f"a picture is not sent: {error.who}: {error.what}"
        return {"score": score, "reason": reason}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        return [self._reason(row) if row["score"] < self.least else None for row in facts]

    def _reason(self, row: Mapping[str, Any]) -> str:
        return f"scores {row['score']:g} of 5: {row['reason']}" if row["score"] else str(row["reason"])

    def _asked(self, sample: Mapping[str, Any]) -> tuple[float, str]:
        folders = [*([sample.folder] if isinstance(sample, Placed) else []), *map(Path, self.folders)]
        urls = [data_url(source, folders, remote=self.remote) for source in pictures(sample)]
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
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


def data_url(source: Any, folders: Sequence[Path], *, remote: bool = False) -> str:
    """A picture as a server takes it: read here, whole and decoded once, so nothing but pictures leaves the machine.

    Args:
        folders: files are read below these alone, links followed.
        remote: fetch http(s) addresses; they are never forwarded.

    Raises:
        InputError: it is no picture, lies elsewhere, or is remote.
    """
    name = describe(source)
    if isinstance(source, str | Path) and str(source).lower().startswith("file:"):
        raise InputError("a file: address is not read", who=name, fix="write a path")
    if is_path(source):
        source = Path(source).resolve()
        if not any(source.is_relative_to(folder.resolve()) for folder in folders):
            fix = "move it beside the data, or add its folder to curation.folders"
            raise InputError("the picture lies outside the data's folder", who=name, why=str(source), fix=fix)
    content = read_source(source, name, remote, ImageLimits())
    load_image(content)
    with Image.open(BytesIO(content)) as image:
        kind = image.get_format_mimetype() or "image/png"
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
