"""The training loop against a plain torch loop and transformers' Trainer; resume, two processes, and TRL's losses.

    pip install trl datasets peft
    python benchmarks/training.py --json                       # about five minutes on two cores
    python benchmarks/training.py --quick --json               # fewer rounds and steps, about three minutes

All three loops train the same model (Qwen3's architecture with a vocabulary of 32 768, so that logits weigh as they do
in a real one; AIMv2's in small) from the same weights on the same packs, which are made beforehand: AdamW, clipping,
float32, one thread. The plain loop is what one writes by hand: logits of all supervised rows at once. The
Trainer gets the same loss. Each run is a process of its own; engines take turns, figures are medians over rounds.

    throughput_ratio   steps per second, ours / the quicker peer's
    memory_ratio       peak memory of the process, less what it holds before the first step, ours / the smaller peer's
    resume_identical   a run killed by SIGKILL goes on to the same weights, to the bit
    two_process_gap    largest difference of a step's loss, two gloo processes against one
    mpo_vs_trl         difference of MPO's loss from TRL's DPOTrainer (sigmoid, bco_pair, sft)
    grpo_vs_trl        largest difference of GRPO's loss from TRL's GRPOTrainer, over all variants of the test
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("ours", "plain", "trainer")
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 32_768}
WARM = 3
"""Steps that are not timed."""
RATE = 3e-4


# ---------------------------------------------------------------- the three loops


def make(steps: int) -> tuple[Any, list[Any]]:
    """The pipeline and its packs: pictures and questions, some text alone."""
    import torch
    from andes_training.packing import collate, make_row

    from andes_sdk import Pipeline
    from andes_sdk.testing.material import picture

    torch.set_num_threads(1)
    plugins = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny", "config": SIZES}}, Replay()]
    pipeline = Pipeline.from_plugins(plugins, seed=3)
    packs = []
    for step in range(min(steps, 6)):
        rows = []
        for i in range(6):
            content: list[Any] = [{"type": "text", "text": "What is this? Say what this is, and where."}]
            if i % 3:
                content.insert(0, {"type": "image", "image": picture(6 * step + i, (112, 84))})
            answer = "Noise of every colour, from the top left to the bottom right. " * (3 + (step + i) % 5)
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            rows.append(make_row([pipeline.processor.prepare(messages, generate=False)]))
        packs.append(collate(rows))
    Replay.packs = packs
    return pipeline, packs


class ReplayStage:
    """Next-token loss on packs that are there already."""

    name = "replay"

    def rates(self, model: Any) -> dict[str, float]:
        return {"language_model": RATE, "mlp": RATE, "vision_encoder": RATE}

    def loss(self, model: Any, batch: Any) -> Any:
        from andes_training.loss import next_token_loss

        return next_token_loss(model, batch)

    def feed(self, run: Any) -> Iterator[tuple[Any, Any]]:
        from andes_training.state import Position

        offset = run.position.offset
        while True:
            offset += 1
            yield Position(offset=offset), Replay.packs[(offset - 1) % len(Replay.packs)]


def _replay() -> type:
    from attrs import frozen

    from andes_sdk import hookimpl

    @frozen(eq=False, kw_only=True)
    class Replay:
        """The stage as a plugin."""

        contract = "1.1"
        packs = ()

        @hookimpl
        def andes_training_stages(self) -> list[Any]:
            return [ReplayStage()]

    return Replay


Replay: Any = _replay()


def plain_loss(model: Any, batch: Any) -> Any:
    """All logits of the supervised rows at once."""
    from andes_training.loss import hidden_rows
    from torch.nn.functional import cross_entropy

    wanted = batch.labels != -100
    return cross_entropy(model.logits(hidden_rows(model, batch)[wanted]).float(), batch.labels[wanted])


class Clock:
    """Times of steps, and memory before the first of them."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.losses: list[float] = []
        self.start = self.peak = rss()

    def tick(self, loss: float) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(loss)
        self.peak = rss()

    def show(self, event: Any) -> None:
        if event.kind == "stage-start":
            self.__init__()  # type: ignore[misc]
        elif event.kind == "step":
            self.tick(event.values["loss"])

    def result(self) -> dict[str, Any]:
        seconds = [b - a for a, b in zip(self.times[WARM:], self.times[WARM + 1 :], strict=False)]
        return {"seconds": seconds, "memory": self.peak - self.start, "losses": self.losses}


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_ours(steps: int, folder: Path) -> Clock:
    from andes_training.recipe import Recipe, StageRecipe

    pipeline, _ = make(steps)
    data = folder / "data.jsonl"
    data.write_text('{"messages": []}\n')
    stage = {"stage": "replay", "steps": steps, "checkpoint_every": 10**6, "schedule": "constant", "weight_decay": 0.0}
    recipe = Recipe(name="bench", pipeline={}, stages=[StageRecipe(data=[_data(data)], **stage)], threads=1)
    clock = Clock()
    pipeline.train(recipe, folder / "out", progress=clock)
    return clock


def _data(path: Path) -> Any:
    from andes_training.recipe import DataRecipe

    return DataRecipe(path=path)


def run_plain(steps: int, folder: Path) -> Clock:
    import torch

    pipeline, packs = make(steps)
    model = pipeline.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    clock = Clock()
    for step in range(steps):
        loss = plain_loss(model, packs[step % len(packs)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(float(loss.detach()))
    return clock


def run_trainer(steps: int, folder: Path) -> Clock:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    pipeline, packs = make(steps)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = pipeline.model

        def forward(self, pack: Any) -> dict[str, Any]:
            return {"loss": plain_loss(self.model, pack)}

    clock = Clock()

    class Ticks(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                clock.tick(float(logs["loss"]))

    options = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=1, learning_rate=RATE,
        lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0, optim="adamw_torch_fused", logging_steps=1,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    numbers = [i % len(packs) for i in range(steps)]
    trainer = Trainer(
        model=Wrapped(), args=options, train_dataset=numbers, data_collator=lambda items: {"pack": packs[items[0]]}
    )
    trainer.add_callback(Ticks)
    clock.__init__()  # type: ignore[misc]
    trainer.train()
    return clock


# ---------------------------------------------------------------- resume, two processes


CHILD = """
import sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
r = load_recipe(Path(sys.argv[1]))
Pipeline.from_plugins(**r.pipeline).train(r, sys.argv[2], progress=Progress(sys.argv[2]))
"""


def write_run(folder: Path, steps: int) -> Path:
    """A recipe of two packs a step, on pictures and text."""
    from andes_sdk.testing.material import picture

    lines = []
    for i in range(15):
        picture(i, (28, 56)).save(folder / f"{i}.png")
        content: list[Any] = [{"type": "text", "text": "What is it?"}]
        if i % 3:
            content.insert(0, {"type": "image_url", "image_url": {"url": f"{i}.png"}})
        answer = {"role": "assistant", "content": "noise and more " * (1 + i % 4)}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    recipe = folder / "recipe.toml"
    recipe.write_text(
        'name = "bench"\nthreads = 1\n[pipeline]\nplugins = [{ aimv2 = { preset = "tiny" } }, "mlp", '
        '{ qwen3 = { preset = "tiny" } }, "sft"]\n'
        f'[[stages]]\nstage = "sft"\nsteps = {steps}\naccumulate = 2\nmax_tokens = 120\ncheckpoint_every = 5\n'
        'data = [{ path = "data.jsonl", flip = true }]\n'
        "rates = { language_model = 1e-3, mlp = 1e-3, vision_encoder = 1e-3 }\n"
    )
    (folder / "train.py").write_text(CHILD)
    return recipe


def child(*command: str, wait: bool = True) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-W", "ignore", *command], stderr=subprocess.PIPE, stdout=sys.stderr)
    if wait:
        _, errors = process.communicate(timeout=300)
        if process.returncode:
            raise SystemExit(errors.decode()[-3000:])
    return process


def resume_and_processes(folder: Path, steps: int) -> tuple[bool, float]:
    """Whether a killed run ends with the same weights; the largest difference that two processes make to a loss."""
    import torch
    from andes_training.state import states
    from safetensors.torch import load_file

    recipe, script = str(write_run(folder, steps)), str(folder / "train.py")
    whole, killed, two = (folder / n for n in ("whole", "killed", "two"))
    child(script, recipe, str(whole))
    process = child(script, recipe, str(killed), wait=False)
    while not (killed.exists() and states(killed)) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    child(script, recipe, str(killed))
    child("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, recipe, str(two))
    a, b = (load_file(out / "model" / "model.safetensors") for out in (whole, killed))
    same = a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, two)
    ]
    return same, max(abs(x - y) for x, y in zip(*losses, strict=True))


# ---------------------------------------------------------------- TRL


def tests_of(plugin: str, name: str) -> Any:
    """A test module, whose functions build both sides of the comparison."""
    path = ROOT / "plugins" / plugin / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def mpo_gap(folder: Path) -> float:
    import torch
    from andes_mpo.stage import answer_logps
    from attrs import evolve

    t = tests_of("mpo", "test_mpo_trl")
    policy, reference = t.pipeline(1), t.pipeline(2)
    batch, inputs = t.batch_of(policy)
    peer_model = t.twin(policy)
    wanted = t.trainer(peer_model, t.twin(reference), folder)._compute_loss(peer_model, inputs, False)
    with torch.no_grad():
        known = answer_logps(reference.model, batch)[0].reshape(-1)
    batch = evolve(batch, tokens=len(t.PAIRS), extras={"reference": known})
    loss, _ = t.stage().loss(policy.model.train(), batch)
    return abs(float(loss.detach()) - float(wanted.detach()))


def grpo_gap(folder: Path) -> float:
    import torch
    from andes_grpo.objective import advantages

    t = tests_of("grpo", "test_grpo_objective")

    class Factory:
        def mktemp(self, name: str) -> Path:
            return folder

    trainer = t.trainer.__wrapped__(Factory())
    answers, rewards, noise = t.tensors()
    gains, keep = advantages(rewards).flatten(), [True] * rewards.numel()
    gaps = []
    for case in t.CASES:
        options = {**t.BASE, **case}
        with torch.no_grad():
            logps = t.theirs(trainer, options, answers, noise, gains, keep)
        wanted, _ = t.theirs(trainer, options, answers, noise, gains, keep, logps)
        found, _, _ = t.ours(trainer, options, answers, noise, gains, keep, logps)
        gaps.append(abs(float(found) - float(wanted)))  # losses near zero by construction: absolute
    return max(gaps)


# ---------------------------------------------------------------- putting it together


WORKERS: dict[str, Callable[[int, Path], Clock]] = {"ours": run_ours, "plain": run_plain, "trainer": run_trainer}


def worker(name: str, steps: int, out: Path) -> None:
    """One measurement in a process of its own, as JSON in `out`."""
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    if name in WORKERS:
        data: Any = WORKERS[name](steps, folder).result()
    else:
        data = mpo_gap(folder) if name == "mpo" else grpo_gap(folder)
    out.write_text(json.dumps(data))
    shutil.rmtree(folder, ignore_errors=True)


def measure(name: str, steps: int, folder: Path) -> Any:
    out = folder / f"{name}.json"
    child(__file__, "--worker", name, "--steps", str(steps), "--out", str(out))
    return json.loads(out.read_text())


def compare(rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Each engine in turn, `rounds` times."""
    runs: dict[str, list[Any]] = {name: [] for name in ENGINES}
    for number in range(rounds):
        for name in ENGINES[number % 3 :] + ENGINES[: number % 3]:
            runs[name].append(measure(name, steps, folder))
    speed = {n: 1 / median([s for r in runs[n] for s in r["seconds"]]) for n in ENGINES}
    memory = {n: median([r["memory"] for r in runs[n]]) for n in ENGINES}
    losses = [runs[n][0]["losses"] for n in ENGINES]
    return {
        "throughput_ratio": speed["ours"] / max(speed["plain"], speed["trainer"]),
        "memory_ratio": memory["ours"] / min(memory["plain"], memory["trainer"]),
        "steps_per_second": speed,
        "memory_mib": {n: round(m / 2**20, 1) for n, m in memory.items()},
        # the Trainer rounds the losses that it logs
        "loss_gap": max(abs(a - b) for other in losses[1:] for a, b in zip(losses[0], other, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help="steps of each run")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    steps = args.steps or (12 if args.quick else 40)
    if args.worker:
        worker(args.worker, steps, args.out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = compare(3 if args.quick else 5, steps, folder)
        same, gap = resume_and_processes(folder, 12)
        found |= {"resume_identical": same, "two_process_gap": gap}
        found |= {"mpo_vs_trl": measure("mpo", 0, folder), "grpo_vs_trl": measure("grpo", 0, folder)}
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        for key, value in found.items():
            print(f"{key:18} {value}")


if __name__ == "__main__":
    main()
