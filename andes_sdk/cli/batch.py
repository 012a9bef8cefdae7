"""A file of conversations to a file of answers, one line each; stopped and started again, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, define
from rich.console import Console
from rich.progress import Progress

from andes_sdk.cli.console import errors_of
from andes_sdk.errors import AndesError, AssemblyError, InputError
from andes_sdk.files import write_atomically

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import Answer, GenerationOptions


def as_dict(answer: Answer) -> dict[str, Any]:
    """An answer as plain data; times in seconds."""
    return {
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "seconds": dict(answer.seconds),
        "time_to_first_token": answer.time_to_first_token,
        "tokens_per_second": answer.tokens_per_second,
        "kv_bytes": answer.kv_bytes,
    }


@define
class Batch:
    """Answers every line of `source` into `out`.

    A row of `out` has the line's number (from 1), `request` (a hash of the line, the plan and the options) and the
    answer, or `errors` where the line cannot be answered. A second run skips answered lines and tries failed ones
    again.

    Attributes:
        together: lines decoded together.
    """

    pipeline: Pipeline
    options: GenerationOptions
    source: Path
    out: Path
    together: int = 1
    allow_remote: bool = False

    def run(self, console: Console | None = None) -> dict[str, Any]:
        """Answer what is not answered yet -> counts of lines.

        Raises:
            InputError: a line that is not JSON, or an `out` that holds answers to other requests.
        """
        lines = self._lines()
        keys = [self._key(text) for text, _ in lines]
        answered = self._answered(keys)
        todo = [i for i in range(len(lines)) if i not in answered]
        failed = 0
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with (
            Progress(console=console, disable=console is None) as bar,
            open(self.out, "ab", buffering=0) as file,
        ):
            task = bar.add_task(self.source.name, total=len(lines), completed=len(answered))
            for start in range(0, len(todo), self.together):
                group = todo[start : start + self.together]
                for index, row in zip(group, self._answer([lines[i][1] for i in group]), strict=True):
                    failed += "errors" in row
                    data = {"line": index + 1, "request": keys[index], **row}
                    # one unbuffered write per line: a kill leaves at most one torn line, which the next run drops
                    file.write(json.dumps(data, ensure_ascii=False).encode() + b"\n")
                    bar.advance(task)
        return {"lines": len(lines), "skipped": len(answered), "answered": len(todo) - failed, "failed": failed}

    def _lines(self) -> list[tuple[str, Any]]:
        try:
            texts = self.source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("cannot be read", who=str(self.source), why=str(error), fix="correct its path") from None
        lines = []
        for number, text in enumerate(texts, 1):
            try:
                lines.append((text, json.loads(text)))
            except ValueError as error:
                fix = "write one list of messages a line"
                raise InputError("is not JSON", who=f"{self.source}:{number}", why=str(error), fix=fix) from None
        return lines

    def _key(self, text: str) -> str:
        source = self.pipeline.artefact.digest if self.pipeline.artefact else str(self.pipeline.weights)
        whole = json.dumps([text, self.pipeline.plan.to_dict(), source, asdict(self.options)])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def _answered(self, keys: Sequence[str]) -> set[int]:
        """Lines that need no work; a torn last row and rows of errors are removed from `out`."""
        if not self.out.exists():
            return set()
        raw = self.out.read_bytes().splitlines(keepends=True)
        kept: list[bytes] = []
        found: set[int] = set()
        for number, text in enumerate(raw, 1):
            try:
                row = json.loads(text)
                index, key = row["line"] - 1, row["request"]
            except (ValueError, KeyError, TypeError):
                if number == len(raw) and not text.endswith(b"\n"):
                    continue
                self._foreign(f"{self.out}:{number}", "it is not a row of answers")
            if not (0 <= index < len(keys) and keys[index] == key):
                self._foreign(f"{self.out}:{number}", "its line, model or options were others")
            if "errors" not in row and text.endswith(b"\n"):
                kept.append(text)
                found.add(index)
        if len(kept) != len(raw):
            write_atomically(self.out, b"".join(kept))
        return found

    def _foreign(self, where: str, why: str) -> None:
        raise InputError("cannot continue this file", who=where, why=why, fix="choose another --out")

    def _answer(self, conversations: Sequence[Any]) -> list[dict[str, Any]]:
        try:
            answers = self.pipeline.generate_batch(conversations, self.options, allow_remote=self.allow_remote)
        except (AndesError, AssemblyError) as error:
            if len(conversations) == 1:
                return [{"errors": [e.to_dict() for e in errors_of(error)]}]
            # one bad line must not cost its neighbours their answers
            return [row for one in conversations for row in self._answer([one])]
        return [as_dict(answer) for answer in answers]
