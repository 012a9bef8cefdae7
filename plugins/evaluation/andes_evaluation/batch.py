"""A file of conversations to a file of answers, one line each; stopped and started again, it goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, define
from rich.console import Console
from rich.progress import Progress

from andes_sdk.cli.console import errors_of
from andes_sdk.errors import AndesError, AssemblyError, InputError
from andes_sdk.files import Journal
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.inputs.sources import ImageLimits, read_source
from andes_sdk.reading import decoded, json_lines, parse_json

from .content import hashed, whom

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import GenerationOptions


@define
class BatchJob:
    """Answers every line of `source` into `out`.

    A row of `out` has the line's number (from 1), `request` and the answer, or `errors` where the line cannot be
    answered. A second run skips answered lines and tries failed ones again. `request` is a hash of all that decides the
    answer, by content: the line and its pictures, the model, its tokenizer and plan, the adapter, the options. Of what
    lies on the network it is the address.

    Attributes:
        adapter: the folder of the adapter that `options` name; without one its name stands for it.
        together: lines decoded together.
    """

    pipeline: Pipeline
    options: GenerationOptions
    source: Path
    out: Path
    together: int = 1
    allow_remote: bool = False
    adapter: Path | None = None

    @property
    def journal(self) -> Journal:
        """The file of answers."""
        return Journal(self.out)

    def run(self, console: Console | None = None) -> dict[str, Any]:
        """Answer what is not answered yet -> counts of lines.

        Raises:
            InputError: a line that is not JSON, or an `out` that holds answers to other requests.
        """
        check_out(self.out)
        lines = self._lines()
        base, seen = self._base(), dict[str, str]()
        keys = {number: hashed([base, text, self._pictures(asked, seen)]) for number, text, asked in lines}
        answered = self._answered(keys)
        todo = [(number, content) for number, _, content in lines if number not in answered]
        failed = 0
        with Progress(console=console, disable=console is None) as bar:
            task = bar.add_task(self.source.name, total=len(lines), completed=len(answered))
            for start in range(0, len(todo), self.together):
                group = todo[start : start + self.together]
                for (number, _), row in zip(group, self._answer([content for _, content in group]), strict=True):
                    failed += "errors" in row
                    self.journal.add({"line": number, "request": keys[number], **row})
                    bar.advance(task)
        return {"lines": len(lines), "skipped": len(answered), "answered": len(todo) - failed, "failed": failed}

    def _lines(self) -> list[tuple[int, str, Any]]:
        """Number, text and content of each line that is not blank."""
        lines = []
        try:
            for number, _, line in json_lines(self.source):
                text = decoded(line).strip()
                lines.append((number, text, parse_json(text)))
        except OSError as error:
            raise InputError("cannot be read", who=str(self.source), why=str(error), fix="correct its path") from None
        except ValueError as error:
            fix = "write one list of messages a line"
            raise InputError("is not JSON", who=f"{self.source}:{number}", why=str(error), fix=fix) from None
        return lines

    def _base(self) -> str:
        """What all requests have in common."""
        return hashed([*whom(self.pipeline, self.adapter), asdict(self.options)])

    def _pictures(self, messages: Any, seen: dict[str, str]) -> list[str]:
        """Hashes of what the messages name by path; of what cannot be read, which is told later, none."""
        try:
            _, media = parse_messages(messages, ("image", *self.pipeline.collection("modalities")))
        except InputError:
            return []
        for name in (names := [item for items in media.values() for item in items if isinstance(item, str)]):
            if name not in seen:
                try:
                    content = read_source(name, name, False, ImageLimits())
                except InputError:
                    content = b""
                seen[name] = hashlib.sha256(content).hexdigest()
        return [seen[name] for name in names]

    def _answered(self, keys: Mapping[int, str]) -> set[int]:
        """Lines that need no work; a torn last row, rows of errors and second answers are removed from `out`."""
        found: set[int] = set()

        def done(row: Any) -> bool:
            try:
                number, mine = row["line"], keys.get(row["line"]) == row["request"]
                if type(number) is not int or not ("errors" in row or isinstance(row["text"], str)):
                    raise TypeError("no number of a line, or no text")
            except (KeyError, TypeError):
                raise self._foreign("a row of it is no answer") from None
            if not mine:
                raise self._foreign("its lines, model or options were others")
            if "errors" in row or number in found:
                return False
            found.add(number)
            return True

        try:
            self.journal.keep(done)
        except InputError as error:
            if error.who == str(self.out):
                raise
            raise self._foreign(f"{error.who} {error.what}: {error.why}") from None
        return found

    def _foreign(self, why: str) -> InputError:
        return InputError("cannot continue this file", who=str(self.out), why=why, fix="choose another OUT")

    def _answer(self, conversations: Sequence[Any]) -> list[dict[str, Any]]:
        try:
            answers = self.pipeline.generate_batch(conversations, self.options, allow_remote=self.allow_remote)
        except (AndesError, AssemblyError) as error:
            if len(conversations) == 1:
                return [{"errors": [e.to_dict() for e in errors_of(error)]}]
            # one bad line must not cost its neighbours their answers
            return [row for one in conversations for row in self._answer([one])]
        return [answer.to_dict() for answer in answers]


def check_out(out: Path) -> None:
    """Refuse what is there and is no file, such as a folder or a device: answers are read again to go on.

    Raises:
        InputError: naming it.
    """
    if out.exists() and not out.is_file():
        why, fix = "what it holds is read again to go on", "name a file, or one that is not there yet"
        raise InputError("is no regular file", who=str(out), why=why, fix=fix)
