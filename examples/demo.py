"""The whole idea in one file: assemble a model from plugins, look at it, ask it about pictures it has never seen, pack
it into a few bits per weight and ask again.

python examples/demo.py                       # what `make demo` runs
python examples/demo.py --image photo.png     # your own picture, with --question
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from andes_compression.bpw import of_artefact
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from rich.console import Console
from rich.table import Table

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import Answer, GenerationOptions

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "first_light"))
from prepare import DIGIT_QUESTIONS, digits, easy_vqa_questions  # noqa: E402

PICTURES = 4


def assemble() -> Pipeline:
    """The first-light model: AimV2 and Qwen3 architecture at a size that two CPU cores trained in under an hour."""
    encoder = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4}
    decoder = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 48, "vocab_size": 512, "max_position_embeddings": 2048}
    return Pipeline.from_plugins(
        [{"aimv2": {"config": {**encoder, "image_size": 112}}}, "mlp", {"qwen3": {"config": {**decoder, **heads}}}],
        weights=HERE / "first_light" / "model",
        image={"min_size": 112},
    )


def held_out() -> list[tuple[str, object, str, str]]:
    """(name, picture, question, truth) from the two test splits."""
    found: list[tuple[str, object, str, str]] = []
    for path, pairs in list(easy_vqa_questions("test"))[:PICTURES]:
        found += [(f"easy-vqa test {path.name}", path, question, truth) for question, truth in pairs[:3]]
    for index, (image, truth) in zip(range(PICTURES), digits("test"), strict=False):
        found.append((f"held-out digit {index}", image, DIGIT_QUESTIONS[0], truth))
    return found


def message(picture: object, question: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def answers_of(pipeline: Pipeline) -> list[Answer]:
    options = GenerationOptions(max_tokens=8)
    return [pipeline.generate(message(picture, question), options) for _, picture, question, _ in held_out()]


def ask_held_out(pipeline: Pipeline, console: Console) -> list[Answer]:
    table = Table(title="Pictures the model has never seen")
    for head in ("picture", "question", "answer", "truth", ""):
        table.add_column(head)
    answers = answers_of(pipeline)
    for (name, _, question, truth), answer in zip(held_out(), answers, strict=True):
        mark = "[green]right" if answer.text == truth else "[red]wrong"
        table.add_row(name, question, answer.text, truth, mark)
    console.print(table)
    right = sum(a.text == truth for a, (*_, truth) in zip(answers, held_out(), strict=True))
    console.print(f"{right} of {len(answers)} right")
    names = ("preprocess", "vision", "projector", "prefill")
    parts = {p: statistics.median(a.seconds[p] for a in answers) for p in names}
    console.print("medians: " + ", ".join(f"{part} {seconds * 1e3:.1f} ms" for part, seconds in parts.items()))
    return answers


def ask_packed(pipeline: Pipeline, console: Console, floats: list[Answer]) -> None:
    """The same questions to the model packed into one file, which the numba backend runs without unpacking it."""
    table = Table(title="The same model packed, on compiled kernels")
    for head in ("backend", "format", "kB", "time to first token", "tokens/s", "same answers"):
        table.add_column(head)
    size = pipeline.model.parameter_count() * 4
    table.add_row("torch", "float32", f"{size / 1e3:,.0f}", *speeds(floats), "")
    with tempfile.TemporaryDirectory() as folder:
        recipe = default_recipe(pipeline.model, "w4_g32", vision="w8")
        artefact = pack_model(pipeline.model, recipe, Path(folder) / "model.andes", plan=pipeline.plan)
        packed = Pipeline.from_pretrained(artefact.path, backend="numba")
        with console.status("compiling kernels, the first time only"):
            packed.generate("hello", GenerationOptions(max_tokens=2))
        answers = answers_of(packed)
        same = sum(a.text == b.text for a, b in zip(answers, floats, strict=True))
        size = of_artefact(artefact).memory
        table.add_row("numba", "w4_g32", f"{size / 1e3:,.0f}", *speeds(answers), f"{same} of {len(answers)}")
    console.print(table)


def speeds(answers: list[Answer]) -> tuple[str, str]:
    """Medians of the time to the first token and of the speed after it."""
    first = statistics.median(a.time_to_first_token for a in answers)
    after = statistics.median(a.tokens_per_second for a in answers if a.tokens_per_second)
    return f"{first * 1e3:.1f} ms", f"{after:,.0f}"


def stream_one(pipeline: Pipeline, console: Console, picture: object, question: str) -> None:
    console.print(f"\n[bold]{question}[/bold] ", end="")
    for piece in pipeline.stream(message(picture, question), GenerationOptions(max_tokens=16)):
        console.print(piece, end="", highlight=False)
    console.print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="ask about this picture instead")
    parser.add_argument("--question", default="what color is the shape?")
    arguments = parser.parse_args()
    console = Console()
    pipeline = assemble()
    console.print(pipeline.explain())
    if arguments.image:
        stream_one(pipeline, console, arguments.image, arguments.question)
        return
    ask_packed(pipeline, console, ask_held_out(pipeline, console))
    _, picture, question, _ = held_out()[0]
    stream_one(pipeline, console, picture, question)
    console.print("\nYour own picture: [bold].venv/bin/andes chat --image photo.jpg[/bold]")


if __name__ == "__main__":
    main()
