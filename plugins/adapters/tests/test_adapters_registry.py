"""Adapters beside a base: copied, hashed, loaded while others decode, tried, made int8, removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_adapters.int8 import as_int8, widest, write_int8
from andes_adapters.loading import load, nbytes_of, unload
from andes_adapters.reading import read_adapter
from andes_adapters.registry import Registry
from safetensors.torch import save_file
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import CheckpointError, ConfigError, DuplicateName, SessionError
from andes_sdk.testing.material import conversation
from andes_sdk.types import Adapter, LowRank

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pipeline.from_plugins(MODEL, seed=1).save_pretrained(tmp_path_factory.mktemp("m") / "base")


@pytest.fixture
def registry(base: Path) -> Any:
    one = Registry.beside(base)
    yield one
    for name in one.entries():
        one.remove(name)


def adapter(folder: Path, seed: int = 0, size: float = 1.0, rank: int = 2, mark: str = "") -> Path:
    folder.mkdir(parents=True)
    noise = torch.Generator().manual_seed(seed)
    pair = {
        f"{NAME}.lora_A.weight": torch.randn(rank, 48, generator=noise),
        f"{NAME}.lora_B.weight": size * torch.randn(64, rank, generator=noise),
    }
    save_file(pair, folder / "adapter_model.safetensors", metadata={"andes_base": mark} if mark else None)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4}))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_many_adapters_lie_beside_one_base_which_stays_as_it_was(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    before = hashes(base)
    pipe = Pipeline.from_pretrained(base)
    for n in range(3):
        entry = registry.add(f"task{n}", adapter(tmp_path / str(n), seed=n, rank=2 + n), pipe)
        assert entry.rank == 2 + n
    assert list(registry.entries()) == ["task0", "task1", "task2"]
    with pytest.raises(DuplicateName):
        registry.add("task0", tmp_path / "0", pipe)
    # while a session decodes
    inputs = pipe.prepare(conversation(0))
    session = pipe.session()
    plain = session.prefill(inputs)
    session.commit()
    told = [load(registry, pipe, name) for name in registry.entries()]
    assert [one.nbytes for one in told] == [4 * r * (48 + 64) for r in (2, 3, 4)]
    assert all(one.change > 0 and one.load_ms > 0 and one.switch_ms >= 0 for one in told)
    session.extend([1])
    found = {}
    for name in (None, "task0", "task1"):
        other = pipe.session()
        other.adapter = name
        found[name] = other.prefill(inputs)
    assert torch.equal(found[None], plain)
    assert not torch.equal(found["task0"], found["task1"])
    with pytest.raises(SessionError, match="use it"):
        unload(pipe, "task1")
    other.adapter = None
    unload(pipe, "task1")
    registry.remove("task1")
    assert "task1" not in registry.entries()
    assert not (registry.folder / "task1").exists()
    assert hashes(base) == before


def test_an_adapter_that_changes_nothing_is_found_out_and_detached(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    pipe = Pipeline.from_pretrained(base)
    registry.add("idle", adapter(tmp_path / "a", size=0.0), pipe)
    with pytest.raises(ConfigError, match="changes no logit"):
        load(registry, pipe, "idle")
    assert "idle" not in pipe.compiled.adapters


def test_files_that_were_changed_or_swapped_are_refused(base: Path, registry: Registry, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(base)
    registry.add("one", adapter(tmp_path / "a"), pipe)
    registry.add("two", adapter(tmp_path / "b", seed=1), pipe)
    weights = registry.folder / "one" / "adapter_model.safetensors"
    weights.write_bytes((registry.folder / "two" / "adapter_model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="changed since"):
        load(registry, pipe, "one")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(registry, pipe, "one")
    with pytest.raises(ConfigError, match="did you mean 'two'"):
        registry.remove("tow")
    path = registry.folder / "registry.json"
    text = path.read_text()
    for damaged in ("{", "{}", text.replace('"version": 1', '"version": 2'), text.replace('"one"', '"../one"')):
        path.write_text(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            registry.entries()
    path.write_text(text)


def test_names_and_bases_that_cannot_be_are_refused(base: Path, registry: Registry, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(base)
    folder = adapter(tmp_path / "a")
    for name in ("", "../x", "a/b", ".x", "1x", "x" * 65):
        with pytest.raises(ConfigError, match="cannot be a name"):
            registry.add(name, folder, pipe)
    with pytest.raises(ConfigError, match="packed base"):
        registry.add("x", adapter(tmp_path / "b", mark="0" * 64), pipe)
    with pytest.raises(ConfigError, match="no such base"):
        Registry.beside(tmp_path / "nothing")
    assert registry.entries() == {}
    assert not (registry.folder / "x").exists()


def test_int8_adapters_share_the_widest_range_and_stay_close(base: Path, registry: Registry, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(base)
    for n, size in enumerate((1.0, 3.0)):
        registry.add(f"t{n}", adapter(tmp_path / str(n), seed=n, size=size), pipe)
    read = [read_adapter(n, registry.verified(n), pipe.model.language_model) for n in registry.entries()]
    ranges = widest(read)
    layer = NAME.removeprefix("base_model.model.")
    both = [as_int8(one, ranges).layers[layer] for one in read]
    for part in ("a", "b"):
        most = max(float(getattr(one.layers[layer], part).abs().max()) for one in read)
        scales = [getattr(low, f"{part}_scale") for low in both]
        assert all(torch.allclose(s, torch.full_like(s, most / 127)) for s in scales)
    for one, low in zip(read, both, strict=True):
        for exact, near in zip(one.layers[layer].matrices(), low.matrices(), strict=True):
            limit = 0.5 * max(float(x) for x in ranges[layer]) / 127 * 1.001
            assert float((exact - near).abs().max()) <= limit
    assert nbytes_of(as_int8(read[0], ranges)) < 0.6 * nbytes_of(read[0])  # tiny: scales count
    told = load(registry, pipe, "t0", int8=True)
    assert told.change > 0
    with pytest.raises(ConfigError, match="beyond its range"):
        as_int8(read[1], widest(read[:1]))


def test_int8_folders_hold_the_same_scales_and_answer_as_the_numbers_they_stand_for(
    base: Path, registry: Registry, tmp_path: Path
) -> None:
    pipe = Pipeline.from_pretrained(base)
    for n, size in enumerate((1.0, 3.0)):
        registry.add(f"t{n}", adapter(tmp_path / str(n), seed=n, size=size), pipe)
    before = hashes(registry.folder)
    made = write_int8(registry, tmp_path / "other.adapters", pipe.model.language_model)
    assert hashes(registry.folder) == before
    assert list(made.entries()) == ["t0", "t1"]
    layer = NAME.removeprefix("base_model.model.")
    read = {n: read_adapter(n, made.verified(n), pipe.model.language_model) for n in made.entries()}
    scales = [(float(one.layers[layer].a_scale[0]), float(one.layers[layer].b_scale[0])) for one in read.values()]
    assert scales[0] == scales[1]
    # a device with the int8 folder alone beside its base
    second = tmp_path / "device"
    shutil.copytree(base, second / "base")
    shutil.copytree(made.folder, second / "base.adapters")
    device = Registry.beside(second / "base")
    load(device, pipe, "t0")
    load(device, pipe, "t1", int8=True)
    for name in ("t0", "t1"):
        a, b = read[name].layers[layer].matrices()
        assert bool((read[name].layers[layer].a.float() * scales[0][0] == a).all())
        floats = tmp_path / f"{name}-floats"
        floats.mkdir()
        save_file({f"{NAME}.lora_A.weight": a, f"{NAME}.lora_B.weight": b}, floats / "adapter_model.safetensors")
        (floats / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
        pipe.add_adapter(f"{name}-floats", floats)
        inputs, seen = pipe.prepare(conversation(0)), []
        for one in (name, f"{name}-floats"):
            session = pipe.session()
            session.adapter = one
            seen.append(session.prefill(inputs))
        assert torch.equal(*seen)
    # a wider one that comes later cannot share their scales
    device.add("wide", adapter(tmp_path / "w", seed=9, size=9.0), pipe)
    with pytest.raises(ConfigError, match=r"(?s)cannot share a scale.*andes adapters int8"):
        load(device, pipe, "wide", int8=True)
    with pytest.raises(ConfigError, match="such a folder"):
        write_int8(registry, made.folder, pipe.model.language_model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({f"{NAME}.lora_A.scale": torch.tensor([0.0])}), "no scale above 0"),
        (lambda t: t.update({f"{NAME}.lora_A.scale": torch.tensor([float("inf")])}), "no scale above 0"),
        (lambda t: t.update({f"{NAME}.lora_B.scale": torch.tensor([float("nan")])}), "no scale above 0"),
        (lambda t: t.pop(f"{NAME}.lora_A.scale"), "not int8 with a scale"),
        (lambda t: t.update({f"{NAME}.lora_A.codes": torch.ones(2, 48)}), "not int8 with a scale"),
        (lambda t: t.pop(f"{NAME}.lora_B.codes"), "only lora_A"),
        (
            lambda t: t.update({f"{NAME}.lora_B.codes": torch.ones(2, 64, dtype=torch.int8)}),
            r"\[2, 64\], not \[64, 2\]",
        ),
    ],
)
def test_int8_files_that_cannot_be_are_refused(base: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    codes = {"A": torch.ones(2, 48, dtype=torch.int8), "B": torch.ones(64, 2, dtype=torch.int8)}
    tensors = {f"{NAME}.lora_{k}.codes": m for k, m in codes.items()}
    tensors |= {f"{NAME}.lora_{k}.scale": torch.tensor([0.5]) for k in "AB"}
    model = Pipeline.from_pretrained(base).model.language_model
    save_file(tensors, folder / "adapter_int8.safetensors")
    assert read_adapter("x", folder, model).layers
    change(tensors)
    save_file(tensors, folder / "adapter_int8.safetensors")
    with pytest.raises(CheckpointError, match=f"(?s)does not fit.*{said}"):
        read_adapter("x", folder, model)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds floats and int8"):
        read_adapter("x", folder, model)


def test_the_commands_say_what_they_did(base: Path, registry: Registry, tmp_path: Path) -> None:
    run, folder = CliRunner().invoke, str(adapter(tmp_path / "a"))
    assert json.loads(run(app, ["adapters", "list", str(base), "--json"]).stdout)["adapters"] == {}
    added = json.loads(run(app, ["adapters", "add", str(base), "one", folder, "--json"]).stdout)
    assert (added["rank"], added["base_checked"]) == (2, False)
    checked = json.loads(run(app, ["adapters", "check", str(base), "--int8", "--json"]).stdout)
    assert checked["adapters"][0]["change"] > 0
    assert checked["nbytes"] == 2 * 48 + 64 * 2 + 4 * 2 + 4 * 64
    assert "one" in run(app, ["adapters", "list", str(base)]).stdout
    listed = json.loads(run(app, ["adapters", "list", str(base), "--json"]).stdout)["adapters"]["one"]
    numbers = 2 * 48 + 64 * 2
    memory = {"float32": 4 * numbers, "float16": 2 * numbers, "int8": numbers + 4 * (2 + 64)}
    assert (listed["stored"], listed["memory"]) == ("floats", memory)
    made = json.loads(run(app, ["adapters", "int8", str(base), str(tmp_path / "int8"), "--json"]).stdout)
    assert made["adapters"] == ["one"]
    assert made["nbytes"] < made["before"]
    assert "one" in run(app, ["adapters", "check", str(base), "one"]).stdout
    assert json.loads(run(app, ["adapters", "remove", str(base), "one", "--json"]).stdout) == {"removed": "one"}
    assert run(app, ["adapters", "check", str(base)]).exit_code != 0


@pytest.mark.parametrize("damage", ["missing", "cut", "twice"])
def test_a_listing_shows_what_cannot_be_read_and_the_others(
    damage: str, base: Path, registry: Registry, tmp_path: Path
) -> None:
    pipe = Pipeline.from_pretrained(base)
    for n in ("good", "bad"):
        registry.add(n, adapter(tmp_path / n), pipe)
    file = registry.folder / "bad" / "adapter_model.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:20])
    else:
        shutil.copyfile(file, file.with_name("adapter_int8.safetensors"))
    said = "holds floats and int8: " if damage == "twice" else "cannot be read: "
    done = CliRunner().invoke(app, ["adapters", "list", str(base), "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)["adapters"]
    assert told["good"]["error"] is None
    assert told["good"]["memory"]["float32"] == 4 * (2 * 48 + 64 * 2)
    assert told["bad"]["memory"] is None
    assert told["bad"]["error"].startswith(said)
    assert len(told["bad"]["error"]) > len(said)
    shown = CliRunner().invoke(app, ["adapters", "list", str(base)], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    assert said in shown.stdout
    assert f"{4 * (2 * 48 + 64 * 2):,}" in shown.stdout


def test_int8_matrices_of_zeros_take_the_scale_of_the_others() -> None:
    a, b = torch.ones(2, 8), 1e-4 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    zeros, small = (
        Adapter(name=n, layers={"q": LowRank(a=a, b=m, scale=2.0)}) for n, m in (("zeros", 0 * b), ("small", b))
    )
    first = as_int8(zeros, widest([zeros]))  # stored before there was another
    assert first.layers["q"].b_scale is not None
    ranges, most = widest([first, small]), float(b.abs().max())
    assert ranges["q"][1] == pytest.approx(most)
    for one in (first, small):
        made, floats = as_int8(one, ranges).layers["q"], one.layers["q"]
        assert torch.allclose(made.b_scale, torch.full((6,), most / 127))
        assert float((made.matrices()[1] - floats.matrices()[1]).abs().max()) <= 0.5 * most / 127 * 1.001
    assert as_int8(small, ranges).layers["q"].b.any()
