"""Elements of a screenshot found by name: a trained model, packed into a few bits per weight, run by compiled kernels.

python examples/demo.py                                          # what `make demo` runs: the bundled screens
python examples/demo.py --image shot.png --find "Sign in" Cart   # your own screenshot
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from andes_compression.bpw import of_artefact
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_evaluation.rules.places import hits, said_place
from attrs import frozen
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import Answer, GenerationOptions

HERE = Path(__file__).resolve().parent
SCREENS = HERE / "screens"
MODEL = "andes-nano"
FORMAT = "w4_g32"


@frozen
class Wanted:
    """Something to find on a picture; `box` in fractions of it is the truth where it is known."""

    picture: Path
    name: str
    box: tuple[float, float, float, float] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The question as the model was trained on it."""
        text = f"Where does it say “{self.name}”?"
        return [{"role": "user", "content": [{"type": "image", "image": self.picture}, {"type": "text", "text": text}]}]


def bundled() -> list[Wanted]:
    """Elements of the bundled screens, of applications that training never saw."""
    found = []
    for text in (SCREENS / "elements.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        found.append(Wanted(SCREENS / row["image"], row["name"], tuple(row["box"])))
    return found


def packed(pipe: Pipeline, folder: Path) -> tuple[Pipeline, int]:
    """The model in one file of a few bits per weight, which the numba backend runs as it lies -> (pipeline, bytes)."""
    artefact = pack_model(
        pipe.model, default_recipe(pipe.model, FORMAT, vision="w8"), folder / "model.andes", plan=pipe.plan
    )
    return Pipeline.from_pretrained(artefact.path, backend="numba"), of_artefact(artefact).memory


def answers_of(pipe: Pipeline, wanted: list[Wanted]) -> list[Answer]:
    return [pipe.generate(one.messages, GenerationOptions(max_tokens=48)) for one in wanted]


def annotate(wanted: list[Wanted], answers: list[Answer], folder: Path) -> list[Path]:
    """Each picture with the boxes that were said; green where the truth is known and its centre was hit."""
    paths = []
    for picture in dict.fromkeys(one.picture for one in wanted):
        with Image.open(picture) as opened:
            image = opened.convert("RGB")
        draw = ImageDraw.Draw(image)
        for one, answer in zip(wanted, answers, strict=True):
            box = said_place(answer.text)
            if one.picture == picture and box is not None:
                corners = [n * side for n, side in zip(box, (*image.size, *image.size), strict=True)]
                colour = "#1565c0" if one.box is None else "#2e7d32" if hits(one.box, box) else "#c62828"
                draw.rectangle(corners, outline=colour, width=2)
                draw.text((corners[0] + 3, max(0, corners[1] - 12)), one.name[:24], fill=colour)
        paths.append(folder / f"{picture.stem}-found.png")
        image.save(paths[-1])
    return paths


def show(wanted: list[Wanted], answers: list[Answer], console: Console) -> None:
    table = Table(title="Where is it?")
    for head in ("picture", "element", "answer", ""):
        table.add_column(head)
    right = 0
    for one, answer in zip(wanted, answers, strict=True):
        box, mark = said_place(answer.text), ""
        if one.box is not None:
            hit = box is not None and hits(one.box, box)
            right, mark = right + hit, "[green]hit" if hit else "[red]missed"
        shown = answer.text.replace("<|box_start|>", "").replace("<|box_end|>", "")
        table.add_row(one.picture.name, one.name, shown, mark)
    console.print(table)
    if any(one.box for one in wanted):
        console.print(f"{right} of {len(wanted)} hit; applications, and many of their words, are new to the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a screenshot of yours, in place of the bundled ones")
    parser.add_argument("--find", nargs="+", metavar="TEXT", help="what to find on it")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the annotated pictures")
    arguments = parser.parse_args()
    if (arguments.image is None) != (arguments.find is None):
        parser.error("give --image and --find together")
    if arguments.image is not None and not arguments.image.is_file():
        parser.error(f"there is no picture {arguments.image}")
    wanted = [Wanted(arguments.image, name) for name in arguments.find or ()] or bundled()
    console = Console()
    pipe = Pipeline.from_pretrained(MODEL)
    console.print(pipe.explain())
    floats = answers_of(pipe, wanted)
    with tempfile.TemporaryDirectory() as folder:
        small, size = packed(pipe, Path(folder))
        with console.status("compiling kernels, the first time only"):
            small.generate(wanted[0].messages, GenerationOptions(max_tokens=2))
        answers = answers_of(small, wanted)
        show(wanted, answers, console)
    table = Table(title="The same model in few bits, on compiled kernels")
    for head in ("backend", "format", "kB", "time to first token", "tokens/s", "same answers"):
        table.add_column(head)
    table.add_row("torch", "float32", f"{pipe.model.parameter_count() * 4 / 1e3:,.0f}", *speeds(floats), "")
    same = sum(a.text == b.text for a, b in zip(answers, floats, strict=True))
    table.add_row("numba", FORMAT, f"{size / 1e3:,.0f}", *speeds(answers), f"{same} of {len(answers)}")
    console.print(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in annotate(wanted, answers, arguments.out):
        console.print(f"boxes drawn: [bold]{path}[/bold]")
    console.print("your own: [bold].venv/bin/python examples/demo.py --image shot.png --find TEXT…[/bold]")


def speeds(answers: list[Answer]) -> tuple[str, str]:
    """Medians of the time to the first token and of the speed after it."""
    first = statistics.median(a.time_to_first_token for a in answers)
    after = statistics.median(a.tokens_per_second for a in answers if a.tokens_per_second)
    return f"{first * 1e3:.1f} ms", f"{after:,.0f}"


if __name__ == "__main__":
    main()
