"""A packed base, its contract, adapters for it; and everything that must be refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_adapters.contract import FIELD, contract_of, hash_of, read_contract, text_parts
from andes_adapters.merging import merge_adapter
from andes_adapters.reading import CONFIG, WEIGHTS
from andes_compression.compress import recipe_for, write
from andes_packing import Artefact
from andes_qalft import QALFT
from andes_qalft.stage import QALFTStage
from andes_qalft.training import train_adapter
from andes_qat import QAT
from andes_training.progress import Progress
from attrs import evolve, fields
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from andes_sdk import Pipeline, hookimpl
from andes_sdk.cli import app
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, TrainingError
from andes_sdk.testing import run_checks
from andes_sdk.testing.material import answer_to_everything, conversation
from andes_sdk.types import Compressed, Range

DATA = Path(str(QAT.testing["data"]))
MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
QUERY = "language_model.model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def base(
    path: Path, seed: int = 1, scale: float = 0.02, body: str = "w4_g32", thinking: bool = False, norm: float = 1.0
) -> Artefact:
    """A packed base with a range on every matrix of its language model's layers."""
    model = [*MODEL[:2], {"qwen3": {"preset": "tiny", "thinking": thinking}}]
    pipe = Pipeline.from_plugins([*model, {"qat": {"body": body}}], seed=seed)
    with torch.no_grad():
        pipe.model.language_model.model.norm.weight.mul_(norm)
    made = pipe.compress("qat")
    names = [n.removesuffix(".weight") for n in made.codes]
    ranged = Compressed(codes=made.codes, ranges={n: Range(bits=8, scale=scale) for n in names})
    return write(pipe, ranged, path, recipe_for(pipe, ranged, None))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its contract and one adapter, which no test changes."""
    folder = tmp_path_factory.mktemp("base")
    artefact = base(folder / "m.andes")
    pipe = Pipeline.from_pretrained(artefact.path, backend="torch")
    contract_of(artefact, pipe.model.tokenizer, 4).write(folder / "contract.json")
    before = hashlib.sha256((folder / "m.andes").read_bytes()).hexdigest()
    train_adapter(folder / "m.andes", folder / "contract.json", [DATA], folder / "run", name="one", steps=6, rate=1e-2)
    assert hashlib.sha256((folder / "m.andes").read_bytes()).hexdigest() == before
    assert not (folder / "run" / "model").exists()  # the base is the packed file
    return folder


def test_an_adapter_carries_its_contract_and_changes_answers_on_its_base_alone(shared: Path) -> None:
    folder = shared / "run" / "adapters" / "one"
    mark = json.loads((folder / CONFIG).read_text())[FIELD]
    assert mark == read_contract(shared / "contract.json").mark
    tensors = load_file(folder / WEIGHTS)
    assert {len(t) for n, t in tensors.items() if "lora_A" in n} == {4}
    assert any(bool(t.abs().max() > 0) for n, t in tensors.items() if "lora_B" in n)
    pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch")
    inputs = pipe.prepare(conversation(0))
    without = pipe.session()
    plain = without.prefill(inputs)
    pipe.add_adapter("one", folder)
    session = pipe.session()
    session.adapter = "one"
    assert not torch.equal(session.prefill(inputs), plain)
    again = pipe.session()
    assert torch.equal(again.prefill(inputs), plain)


def test_peft_reads_the_adapter_as_it_is(shared: Path) -> None:
    from peft import PeftModel

    pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of fields that it does not know
        read = PeftModel.from_pretrained(pipe.model, str(shared / "run" / "adapters" / "one"))
    saved = load_file(shared / "run" / "adapters" / "one" / WEIGHTS)
    found = {n.replace(".default.", "."): p for n, p in read.named_parameters() if "lora_" in n}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[n], saved[n]) for n in saved)


def test_training_again_gives_the_same_adapter_and_the_base_sees_rounded_inputs(shared: Path, tmp_path: Path) -> None:
    args = (shared / "m.andes", shared / "contract.json", [DATA])
    again = train_adapter(*args, tmp_path / "a", name="one", steps=6, rate=1e-2)
    first = shared / "run" / "adapters" / "one"
    assert (again / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
    floats = train_adapter(*args, tmp_path / "b", name="one", steps=6, rate=1e-2, ranges=False)
    assert (floats / WEIGHTS).read_bytes() != (first / WEIGHTS).read_bytes()


def test_packs_are_as_small_as_asked(shared: Path, tmp_path: Path) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "square.png")
    question = [{"type": "image", "image": "square.png"}, {"type": "text", "text": "What is it?"}]
    line = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "A square."}]}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(line)}\n" * 4)
    args, seen = (shared / "m.andes", shared / "contract.json", [tmp_path / "data.jsonl"]), list[int]()
    for most in (64, 32):
        out = tmp_path / str(most)
        with Progress(out, None, [1]) as progress:
            train_adapter(*args, out, name="one", steps=1, max_patches=most, progress=progress)
        seen.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["samples"])
    assert seen == [4, 2]


def test_inputs_are_rounded_by_the_contract_and_nothing_stays_behind(shared: Path) -> None:
    pipe = Pipeline.from_pretrained(
        shared / "m.andes", backend="torch", plugins=[{"qalft": {"file": str(shared / "contract.json")}}]
    )
    stage = pipe.pick("training_stages", "qalft")
    inputs = pipe.prepare(conversation(0))
    plain = answer_to_everything(pipe.model, inputs)
    stage.put_in(pipe.model)
    seen: list[torch.Tensor] = []
    handle = pipe.model.get_submodule(QUERY).base_layer.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    rounded = answer_to_everything(pipe.model, inputs)  # B is zero: only rounding differs
    handle.remove()
    steps = seen[0] / 0.02
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert not torch.equal(rounded, plain)
    stage.take_out(pipe.model)
    assert torch.equal(answer_to_everything(pipe.model, inputs), plain)


def test_a_recovery_adapter_is_where_training_starts(shared: Path, tmp_path: Path) -> None:
    one = shared / "run" / "adapters" / "one"
    more = train_adapter(
        shared / "m.andes", shared / "contract.json", [DATA], tmp_path / "run", name="two", steps=1, rate=1e-9,
        recovery=str(one),
    )  # fmt: skip
    first, second = load_file(one / WEIGHTS), load_file(more / WEIGHTS)
    assert all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)
    bare = tmp_path / "bare"
    shutil.copytree(one, bare)
    fields = json.loads((bare / CONFIG).read_text())
    (bare / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if k != FIELD}))
    with pytest.raises(ConfigError, match="it carries none"):
        train_adapter(
            shared / "m.andes", shared / "contract.json", [DATA], tmp_path / "x", name="x", steps=1, recovery=str(bare)
        )


def test_a_run_goes_on_with_the_recovery_adapter_that_it_began_with_alone(shared: Path, tmp_path: Path) -> None:
    one = shared / "run" / "adapters" / "one"
    args = (shared / "m.andes", shared / "contract.json", [DATA], tmp_path / "run")
    train_adapter(*args, name="two", steps=2, rate=1e-4, recovery=str(one))
    moved = tmp_path / "moved"
    shutil.copytree(one, moved)
    train_adapter(*args, name="two", steps=2, rate=1e-4, recovery=str(moved))  # the same numbers elsewhere
    tensors = load_file(one / WEIGHTS)
    save_file({n: t + 1e-3 for n, t in tensors.items()}, moved / WEIGHTS, {"format": "pt"})
    with pytest.raises(TrainingError, match="recovery"):
        train_adapter(*args, name="two", steps=2, rate=1e-4, recovery=str(moved))
    with pytest.raises(ConfigError, match="cannot be read"):
        train_adapter(*args, name="two", steps=2, rate=1e-4, recovery=str(tmp_path / "nowhere"))


def test_an_adapter_never_stands_there_without_its_contract(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    from andes_sdk import files

    replace = files.os.replace

    def watched(source: Any, target: Any, *args: Any, **more: Any) -> None:
        replace(source, target, *args, **more)
        if (config := Path(target) / CONFIG).is_file():
            seen.append(FIELD in json.loads(config.read_text()))

    monkeypatch.setattr(files.os, "replace", watched)
    train_adapter(shared / "m.andes", shared / "contract.json", [DATA], tmp_path / "run", name="x", steps=1)
    assert seen
    assert all(seen)


def test_answers_round_inputs_by_the_contract_where_that_is_asked_for(shared: Path) -> None:
    file = str(shared / "contract.json")
    plain, asked = (
        Pipeline.from_pretrained(shared / "m.andes", backend="torch", plugins=[{"qalft": {"file": file, **more}}])
        for more in ({}, {"inference": True})
    )
    for pipe in (plain, asked):
        pipe.add_adapter("one", shared / "run" / "adapters" / "one")
    inputs = plain.prepare(conversation(0))
    assert not torch.equal(answer_to_everything(asked.model, inputs), answer_to_everything(plain.model, inputs))
    stage = plain.pick("training_stages", "qalft")
    stage.recovery = str(shared / "run" / "adapters" / "one")
    stage.put_in(plain.model)  # as it is trained: rounded inputs and the adapter
    trained = plain.model.eval()
    with torch.no_grad():
        wanted = answer_to_everything(trained, inputs)
    session = asked.session()
    session.adapter = "one"
    assert torch.allclose(session.prefill(inputs), wanted[-1], atol=1e-4)
    assert "answers" in str(asked.explain())
    bare = Pipeline.from_pretrained(shared / "m.andes", backend="torch", plugins=["qalft"])
    assert "not rounded" in str(bare.explain())  # no contract says by which ranges
    for backend, options, what in (
        ("numba", {"file": file}, "numba"),
        ("torch", {}, "no contract"),
        ("torch", {"file": file, "ranges": False}, "train without `inference`"),
    ):
        with pytest.raises(AssemblyError) as caught:
            Pipeline.from_pretrained(
                shared / "m.andes", backend=backend, plugins=[{"qalft": {**options, "inference": True}}]
            )
        assert what in str(caught.value.exceptions)


# ---------------------------------------------------------------- contracts


def test_a_contract_is_written_once_and_never_changed(shared: Path, tmp_path: Path) -> None:
    made = read_contract(shared / "contract.json")
    path = tmp_path / "c.json"
    assert made.write(path)
    assert not made.write(path)
    assert path.stat().st_mode & 0o222 == 0
    with pytest.raises(CheckpointError, match="never changed"):
        evolve(made, rank=5).write(path)
    assert read_contract(path).hash == made.hash
    facts = json.loads(path.read_text())
    for damage in ({"codes": "0" * 64}, {"rank": 9}, {"inputs": {}}, {"hash": "x"}, {"version": 1}):
        path.chmod(0o644)
        path.write_text(json.dumps({**facts, **damage}))
        with pytest.raises(CheckpointError, match="contract"):
            read_contract(path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="contract"):
        read_contract(path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 2}, "codes of weights"),
        ({"scale": 0.03}, "ranges of activations"),
        ({"thinking": True}, "chat template"),
        ({"norm": 1.5}, "weights that are not quantised"),
    ],
)
def test_an_adapter_on_another_base_is_refused_saying_which_part(
    shared: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    base(tmp_path / "other.andes", **change)
    pipe = Pipeline.from_pretrained(tmp_path / "other.andes", backend="torch")
    with pytest.raises(ConfigError, match="another contract") as caught:
        pipe.add_adapter("one", shared / "run" / "adapters" / "one")
    assert word in caught.value.why
    if "seed" not in change:
        assert "codes of weights" not in caught.value.why
    with pytest.raises(ConfigError, match="not the base of this contract"):
        train_adapter(tmp_path / "other.andes", shared / "contract.json", [DATA], tmp_path / "r", name="x", steps=1)


def test_another_template_leaves_the_vocabulary_and_another_rank_is_refused(shared: Path, tmp_path: Path) -> None:
    one, two = (
        text_parts(Pipeline.from_plugins([*MODEL[:2], {"qwen3": {"preset": "tiny", "thinking": t}}]).model.tokenizer)
        for t in (False, True)
    )
    assert one["tokenizer"] == two["tokenizer"]
    assert one["template"] != two["template"]
    other = tmp_path / "rank"
    shutil.copytree(shared / "run" / "adapters" / "one", other)
    fields = json.loads((other / CONFIG).read_text())
    facts = {k: v for k, v in fields[FIELD].items() if k != "hash"} | {"rank": 8}
    (other / CONFIG).write_text(json.dumps(fields | {FIELD: {**facts, "hash": hash_of(facts)}}))
    pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch")
    with pytest.raises(CheckpointError, match="declares 8"):
        pipe.add_adapter("rank", other)
    (other / CONFIG).write_text(json.dumps(fields | {FIELD: {**facts, "hash": fields[FIELD]["hash"]}}))
    with pytest.raises(CheckpointError, match="damaged"):
        pipe.add_adapter("rank", other)
    for gone in ({"version"}, {"version", "floats"}):  # as contracts 2 and 1 were carried
        old = {k: v for k, v in facts.items() if k not in gone}
        (other / CONFIG).write_text(json.dumps(fields | {FIELD: {**old, "hash": hash_of(old)}}))
        with pytest.raises(CheckpointError, match="another version") as caught:
            pipe.add_adapter("rank", other)
        assert caught.value.why.startswith("contract of version 1 or 2,")
        assert "train the adapter again" in caught.value.fix


def test_a_tokenizer_with_one_other_merge_or_rule_is_another(shared: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch")
    pipe.tokenizer.save(tmp_path / "a")
    own = text_parts(pipe.tokenizer)
    assert read_contract(shared / "contract.json").parts["tokenizer"] == own["tokenizer"]

    def changed(change: Any) -> dict[str, str]:
        folder = tmp_path / "b"
        shutil.copytree(tmp_path / "a", folder, dirs_exist_ok=True)
        facts = json.loads((folder / "tokenizer.json").read_text())
        change(facts)
        (folder / "tokenizer.json").write_text(json.dumps(facts, indent=3))
        plugins = [*MODEL[:2], {"qwen3": {"preset": "tiny", "tokenizer": str(folder)}}]
        return text_parts(Pipeline.from_plugins(plugins).tokenizer)

    assert changed(lambda facts: None) == own  # however it is indented
    for change in (
        lambda facts: facts["model"]["merges"].pop(),
        lambda facts: facts.update(normalizer={"type": "Lowercase"}),
    ):
        other = changed(change)
        assert other["tokenizer"] != own["tokenizer"]
        assert other["template"] == own["template"]


def test_ranges_with_a_zero_point_are_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = {"qalft": {"file": str(shared / "contract.json")}}
    pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch", plugins=[plugin])
    contract = read_contract(shared / "contract.json")
    name, one = next(iter(contract.ranges.items()))
    shifted = evolve(contract, ranges={name: evolve(one, zero=3)})
    monkeypatch.setattr("andes_qalft.stage.read_contract", lambda path: shifted)
    stage = pipe.pick("training_stages", "qalft")
    with pytest.raises(TrainingError, match="zero point") as caught:
        stage.put_in(pipe.model)
    assert caught.value.who == name


def test_merging_is_refused_even_into_floats(shared: Path) -> None:
    floats = Pipeline.from_plugins(MODEL, seed=1)
    with pytest.raises(ConfigError, match="never merged"):
        merge_adapter(floats.model, shared / "run" / "adapters" / "one", any_base=True)


def test_a_float_model_has_nothing_to_agree_on(shared: Path, tmp_path: Path) -> None:
    floats = Pipeline.from_plugins(MODEL, seed=1).save_pretrained(tmp_path / "floats")
    with pytest.raises(ConfigError, match="no packed file"):
        train_adapter(floats, shared / "contract.json", [DATA], tmp_path / "r", name="x", steps=1)


def test_a_second_adapter_or_a_moving_base_is_refused(shared: Path, tmp_path: Path) -> None:
    from andes_training.recipe import Recipe

    from andes_sdk.config import structure

    for extra in ({"lora": {"rank": 2}}, {"rates": {"mlp": 1e-3}}):
        plugin = {"qalft": {"file": str(shared / "contract.json")}}
        pipe = Pipeline.from_pretrained(shared / "m.andes", backend="torch", plugins=[plugin])
        stage = {"stage": "qalft", "steps": 1, "max_tokens": 200, "data": [{"path": str(DATA)}], **extra}
        with pytest.raises(TrainingError):
            pipe.train(structure(Recipe, {"name": "x", "stages": [stage]}, "x"), tmp_path / str(len(extra)))


def test_commands_write_contracts_and_train(tmp_path: Path) -> None:
    base(tmp_path / "m.andes")
    run = CliRunner().invoke
    contract = [
        "qalft",
        "contract",
        str(tmp_path / "m.andes"),
        "--rank",
        "2",
        "--out",
        str(tmp_path / "c.json"),
        "--json",
    ]
    first, second = json.loads(run(app, contract).stdout), json.loads(run(app, contract).stdout)
    assert (first["new"], second["new"]) == (True, False)
    assert first["hash"] == second["hash"]
    train = ["qalft", "train", str(tmp_path / "m.andes"), "--contract", str(tmp_path / "c.json"), "--data", str(DATA)]
    made = run(app, [*train, "--name", "notes", "--steps", "2", "--out", str(tmp_path / "run"), "--json"])
    assert made.exit_code == 0, made.output
    assert (Path(json.loads(made.stdout)["adapter"]) / WEIGHTS).is_file()


class _Deaf(QALFTStage):
    """Adapters that detach what A gives."""

    def put_in(self, model: Any) -> None:
        super().put_in(model)
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_hook(lambda module, args, output: output.detach())


class _DeafPlugin(QALFT):
    @hookimpl
    def andes_training_stages(self) -> list[Any]:
        stage = super().andes_training_stages()[0]
        return [_Deaf(**{a.name: getattr(stage, a.name) for a in fields(QALFTStage) if a.init})]


def test_the_kit_waits_a_step_for_the_first_gradient_of_a_and_no_longer() -> None:
    check = "only the modules it names get gradients, and the loss changes no weight"
    found = {
        plugin: run_checks(plugin, kinds=["training_stages"], options={"rank": 2}) for plugin in (QALFT, _DeafPlugin)
    }
    told = {plugin: {r.id: r for r in results}[f"training_stages: {check}"] for plugin, results in found.items()}
    assert told[QALFT].status == "passed"
    assert told[_DeafPlugin].status == "failed"
    assert "no gradient reaches" in told[_DeafPlugin].reason
    assert "lora_A" in told[_DeafPlugin].reason
