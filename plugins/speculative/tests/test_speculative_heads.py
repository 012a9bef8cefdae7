"""Draft heads: what is learnt is what is drafted, files are refused where they do not belong, the text stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_speculative import stage as stage_module
from andes_speculative.block import blocks
from andes_speculative.block_drafter import BlockDrafter
from andes_speculative.choice import deepest
from andes_speculative.cost import linear
from andes_speculative.decoder import SpeculativeDecoder
from andes_speculative.eagle import Eagle3, taps_of, unrolled
from andes_speculative.head_drafter import HeadDrafter
from andes_speculative.heads import base_of, load_head, save_head
from andes_speculative.running import OnTorch
from andes_speculative.stage import BlockStage, Known, target_rows
from andes_speculative.testing import lively, new_block, new_head
from andes_training.testing.material import stage_batches
from attrs import asdict, evolve
from safetensors.torch import load_file
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.testing.material import conversation, plain_inputs


@pytest.fixture(scope="module")
def plain() -> Pipeline:
    return lively()


@pytest.fixture
def file(plain: Pipeline, tmp_path: Path) -> Path:
    save_head(new_head(plain.model), tmp_path / "head.safetensors", base_of(plain.model))
    return tmp_path / "head.safetensors"


@pytest.fixture
def block_file(plain: Pipeline, tmp_path: Path) -> Path:
    save_head(new_block(plain.model), tmp_path / "block.safetensors", base_of(plain.model))
    return tmp_path / "block.safetensors"


def test_the_layers_are_those_of_the_paper_or_the_nearest() -> None:
    assert taps_of(28) == (2, 14, 25)
    assert taps_of(2) == (2, 1, 0)


def test_drafting_gives_the_logits_that_were_trained(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens ahead of a text: the drafter's rows, read in parts, are those of the unrolled training pass."""
    head = new_head(plain.model)
    pipe = lively({"speculative": {}})
    text = plain_inputs(plain, 14).ids.tolist()
    compiled = evolve_taps(pipe, head)
    session = compiled.session(pipe.policy)
    (rows,) = compiled.step([work(session, text)])
    steps = unrolled(head, rows.embeds, rows.features, 3)

    drafter = HeadDrafter(head, pipe.model, width=1)
    last = 9  # the token at position 10: rows 0 to 9 are read, in two parts
    memory = drafter.open()
    memory.read(text[:4], rows.take(range(4)))
    memory.read(text[4 : last + 1], rows.take(range(4, last + 1)))
    (guesses,) = drafter.guess([memory], [text[last + 1]], 1)
    # row 9 of the first step took the embedding of token 10
    assert guesses[0].token == int(head.tokens[steps[0][last].argmax()])
    assert guesses[0].chance == pytest.approx(float(steps[0][last].softmax(-1).max()), abs=1e-5)
    # when the draft follows the text by force, later steps agree too
    rest = [float(s[last].softmax(-1).max()) for s in steps]
    tokens = iter(text[last + 1 :])
    monkeypatch.setattr("andes_speculative.head_drafter.UNLIKELY", 0.0)
    monkeypatch.setattr(OnTorch, "embed", lambda self, _: self.model.llm.embed(torch.tensor([next(tokens)])))
    memory = drafter.open()
    memory.read(text[: last + 1], rows.take(range(last + 1)))
    (guesses,) = drafter.guess([memory], [text[last + 1]], 3)
    shares = [b.chance / a for a, b in zip([1.0, *(g.chance for g in guesses)], guesses, strict=False)]
    assert shares == pytest.approx(rest, abs=1e-5)


def test_rows_before_the_first_that_is_wanted_are_looked_at_alone(plain: Pipeline) -> None:
    head = new_head(plain.model)
    embeds, features = torch.randn(12, 64), torch.randn(12, len(head.shape.taps), 64)
    embeds, features = embeds[:, : head.shape.width], features[..., : head.shape.width]
    whole = unrolled(head, embeds, features, 4)
    some = unrolled(head, embeds, features, 4, first=5)
    assert [len(s) for s in some] == [6, 5, 4, 3]
    for one, all_rows in zip(some, whole, strict=True):
        assert torch.allclose(one, all_rows[5:], atol=1e-5)
    assert [len(s) for s in unrolled(head, embeds, features, 4, first=9)] == [2, 1]


def test_a_text_that_comes_again_is_not_computed_again_and_gives_the_same_bits(
    plain: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = BlockStage(rate=0.1, vocabulary=512, block=3)
    model = lively().model
    other = {"messages": [{"role": "user", "content": "else"}, {"role": "assistant", "content": "another answer"}]}
    batches = stage_batches(lively(), stage, [LINE, other], 3)
    counted: list[int] = []
    inner = model.hidden_states
    monkeypatch.setattr(
        model, "hidden_states", lambda embeds, *rest: (counted.append(len(embeds)), inner(embeds, *rest))[1]
    )
    known = Known()
    first = [target_rows(model, batch, (0, 1), known) for batch in batches]
    texts = len(counted)
    again = [target_rows(model, batch, (0, 1), known) for batch in batches]
    assert 0 < texts == len(counted) == len(known.texts)
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    monkeypatch.setattr(stage_module, "KEPT_BYTES", 0)
    full = Known()
    for batch, rows in zip(batches, first, strict=True):
        assert torch.equal(target_rows(model, batch, (0, 1), full)[2], rows[2])
    assert not full.texts


def evolve_taps(pipe: Pipeline, head: Eagle3) -> Any:
    from andes_sdk.runtime.torch_backend import TorchBackend

    return TorchBackend().compile(pipe.model, device="cpu", dtype="float32", taps=head.shape.taps)


def test_a_block_gives_the_logits_that_were_trained(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks behind a text that was read in parts are those of the training pass, in which many blocks share a text."""
    monkeypatch.setattr("andes_speculative.block_drafter.UNLIKELY", 0.0)
    head = new_block(plain.model)
    text = plain_inputs(plain, 14).ids.tolist()
    compiled = evolve_taps(plain, head)
    (rows,) = compiled.step([work(compiled.session(plain.policy), text)])
    anchors = torch.tensor([2, 7, 13])
    logits, trust = blocks(head, rows.embeds, rows.features, anchors)
    drafter = BlockDrafter(head, plain.model, width=2)
    memories = [drafter.open() for _ in anchors]
    for memory, last in zip(memories, anchors.tolist(), strict=True):
        memory.read(text[: last // 2], rows.take(range(last // 2)))
        drafter.guess([memory], [text[0]], 4)  # an earlier guess leaves no trace
        memory.read(text[last // 2 : last], rows.take(range(last // 2, last)))
    found = drafter.guess(memories, [text[n] for n in anchors.tolist()], 4)
    for guesses, own, sure in zip(found, logits.softmax(-1), trust.sigmoid(), strict=True):
        assert [g.parent for g in guesses] == [-1, -1, 0, 0, 2, 2, 4, 4]
        assert [g.token for g in guesses[::2]] == own.argmax(-1).tolist()
        assert [g.token for g in guesses[1::2]] == own.topk(2).indices[:, 1].tolist()
        assert [g.chance for g in guesses[::2]] == pytest.approx(sure.cumprod(0).tolist(), abs=1e-5)
    before = torch.tensor([1.0, *(g.chance for g in guesses[:-2:2])])
    assert [g.chance for g in guesses[1::2]] == pytest.approx(  # what is left of the trust
        (before * (1 - sure) * own.topk(2).values[:, 1] / (1 - own.max(-1).values)).tolist(), abs=1e-5
    )


def test_a_block_ends_where_the_head_does_not_trust_it(plain: Pipeline) -> None:
    head = new_block(plain.model)
    head.trust.weight.zero_()
    head.trust.bias.fill_(-2.0)  # 0.12: two places are 0.014
    compiled = evolve_taps(plain, head)
    text = plain_inputs(plain, 9).ids.tolist()
    (rows,) = compiled.step([work(compiled.session(plain.policy), text)])
    memory = BlockDrafter(head, plain.model).open()
    memory.read(text, rows)
    (guesses,) = BlockDrafter(head, plain.model, width=1).guess([memory], [5], 4)
    assert [round(g.chance, 3) for g in guesses] == [0.119, 0.014]


def test_of_a_long_text_a_block_sees_what_came_last(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andes_speculative.block_drafter.WINDOW", 6)
    head = new_block(plain.model)
    compiled = evolve_taps(plain, head)
    text = plain_inputs(plain, 14).ids.tolist()
    (rows,) = compiled.step([work(compiled.session(plain.policy), text)])
    drafter = BlockDrafter(head, plain.model, width=1)
    whole, parts = drafter.open(), drafter.open()
    whole.read(text, rows)
    for n in range(14):
        parts.read(text[n : n + 1], rows.take([n]))
        drafter.guess([parts], [3], 4)
    assert len(parts.seen) == 6
    for a, b in zip(*drafter.guess([whole, parts], [3, 3], 4), strict=True):
        assert (a.token, a.parent) == (b.token, b.parent)
        assert a.chance == pytest.approx(b.chance, abs=1e-5)


def work(session: Any, tokens: list[int]) -> Any:
    from andes_sdk.types import Work

    return Work(session=session, tokens=tokens)


def test_guesses_do_not_depend_on_earlier_guesses_or_on_the_parts_that_were_read(plain: Pipeline) -> None:
    head = new_head(plain.model)
    compiled = evolve_taps(plain, head)
    text = plain_inputs(plain, 20, seed=8).ids.tolist()
    (rows,) = compiled.step([work(compiled.session(plain.policy), text)])
    drafter = HeadDrafter(head, plain.model, width=2)
    asked, quiet = drafter.open(), drafter.open()
    for start, stop in ((0, 5), (5, 6), (6, 9), (9, 15)):
        asked.read(text[start:stop], rows.take(range(start, stop)))
        drafter.guess([asked], [text[stop]], 3)  # right: what is read next begins with that token
        drafter.guess([asked], [text[stop] + 1], 2)
        drafter.guess([asked], [text[stop]], 2)
    quiet.read(text[:15], rows.take(range(15)))
    together = drafter.guess([asked, quiet], [text[15], text[15]], 4)
    for a, b in zip(*together, strict=True):
        assert (a.token, a.parent) == (b.token, b.parent)
        assert a.chance == pytest.approx(b.chance, abs=1e-5)
    fork = asked.fork()
    fork.read(text[15:18], rows.take(range(15, 18)))
    (again,) = drafter.guess([asked], [text[15]], 4)
    assert [g.token for g in again] == [g.token for g in together[0]]


@pytest.mark.parametrize("kind", ["eagle3", "block"])
@pytest.mark.parametrize("matched", [0, 2])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_text_stays_with_pictures_and_without(
    plain: Pipeline, file: Path, block_file: Path, backend: str, kind: str, matched: int
) -> None:
    base = plain if backend == "torch" else lively(backend=backend)
    head = file if kind == "eagle3" else block_file
    options = {"drafter": kind, "head": str(head), "adapt": False, "depth": 3, "width": 2, "matched": matched}
    pipe = lively({"speculative": options}, backend=backend)
    for messages in (conversation(0), [{"role": "user", "content": "no picture"}]):
        for own in (GenerationOptions(max_tokens=16), GenerationOptions(max_tokens=16, temperature=0.9, seed=2)):
            assert pipe.generate(messages, own).tokens == base.generate(messages, own).tokens
    jobs = [(plain_inputs(base, 9 + n), GenerationOptions(max_tokens=14, temperature=n / 2)) for n in range(3)]
    got = []
    for one in (base, pipe):
        engine = evolve(one.engine(), ends=())
        some = [engine.join(*job) for job in jobs]
        engine.run()
        assert [c.error for c in some] == [None] * 3
        got.append([list(c.tokens) for c in some])
    assert got[0] == got[1]


def test_a_head_that_does_not_pay_is_asked_rarely(plain: Pipeline) -> None:
    """Random weights are never right: after a few passes nothing is guessed, and now and then one token is tried."""
    decoder = SpeculativeDecoder(HeadDrafter(new_head(plain.model), plain.model), 4)
    compiled = evolve_taps(plain, new_head(plain.model))
    engine = evolve(plain.engine(), ends=(), compiled=compiled, decoder=decoder)
    one = engine.join(plain_inputs(plain, 9), GenerationOptions(max_tokens=150))
    engine.run()
    assert one.error is None
    notes = one.draft.notes()  # type: ignore[attr-defined]
    assert notes["verifications"] == pytest.approx(148, abs=4)
    assert notes["guesses"] < 150
    assert decoder.facts()["speculation"].startswith("off")


def test_where_the_text_repeats_itself_it_guesses_instead_of_the_head(plain: Pipeline, block_file: Path) -> None:
    made = []
    for matched in (0, 3):
        own = {"drafter": "block", "head": str(block_file), "matched": matched, "row_cost": 0.01}
        pipe = lively({"speculative": own})
        engine = evolve(pipe.engine(), ends=())
        one = engine.join(plain_inputs(pipe, 20), GenerationOptions(max_tokens=60, constraint=Few(100), min_p=1.0))
        engine.run()
        assert one.error is None
        made.append((list(one.tokens), one.session.stats.notes["guesses right"], pipe.decoder.name))
    assert made[0][0] == made[1][0]
    assert made[1][1] > made[0][1] + 10
    assert [name for _, _, name in made] == ["speculative, block", "speculative, block and suffix"]


class Few:
    """Three tokens: the text soon repeats itself."""

    def __init__(self, first: int) -> None:
        self.first = first

    def allowed(self, answer: Any) -> torch.Tensor:
        allowed = torch.zeros(512, dtype=torch.bool)
        allowed[self.first : self.first + 3] = True
        return allowed


def test_a_pass_of_a_block_costs_the_same_however_many_tokens_of_it_are_wanted() -> None:
    cost = linear(0.05)
    assert deepest(0.5, cost, 0.6, 8, stride=8) > 1
    assert deepest(0.5, cost, 0.6, 8, stride=1) == 0


def test_a_block_is_never_asked_for_more_than_it_guesses(plain: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = BlockDrafter(new_block(plain.model), plain.model)
    decoder = SpeculativeDecoder(drafter, 64, fixed=evolve(linear(0.01), one=1.0))
    asked: list[int] = []
    inner = BlockDrafter.guess

    def noted(self: Any, memories: Any, last: Any, depth: int) -> Any:
        asked.append(depth)
        return inner(self, memories, last, depth)

    monkeypatch.setattr(BlockDrafter, "guess", noted)
    text = plain_inputs(plain, 9).ids.tolist()
    compiled = evolve_taps(plain, drafter.head)
    (rows,) = compiled.step([work(compiled.session(plain.policy), text)])
    draft = decoder.open()
    draft.memory.read(text, rows)
    for rate in (0.95, 0.99):
        draft.rate = rate
        decoder.propose([draft], [5])
    assert asked == [4, 4]
    draft.rate, decoder.step = 0.01, 1.0  # it does not pay: after a while it is tried with a whole pass
    for _ in range(32):
        decoder.propose([draft], [5])
    assert asked == [4, 4, 4]


def test_the_trust_is_learnt_where_the_text_has_what_was_guessed(plain: Pipeline) -> None:
    """Of a head whose first guess is never in the text, only the first place learns."""
    stage = BlockStage(rate=0.1, vocabulary=512, block=3)
    model = lively().model
    stage.put_in(model)
    (batch,) = stage_batches(lively(), stage, [LINE], 1)[:1]
    head = model.draft
    with torch.no_grad():
        head.tokens.copy_(torch.arange(512))
        head.head.weight.zero_()  # all logits are equal: token 0 is guessed, which no answer holds
    assert 0 not in batch.labels
    head.trust.weight.requires_grad_()
    seen: list[int] = []
    inner = stage_module.binary_cross_entropy_with_logits

    def noted(trust: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(len(trust))
        return inner(trust, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "binary_cross_entropy_with_logits", noted)
        stage.loss(model, batch)
    assert seen[0] > 0
    assert seen[1:] == [0, 0]


# ---------------------------------------------------------------- files


def test_a_head_of_another_model_is_refused(file: Path) -> None:
    other = lively({"speculative": {"drafter": "eagle3", "head": str(file)}})
    with torch.no_grad():
        next(other.model.language_model.parameters()).mul_(1.5)
    with pytest.raises(ConfigError, match="belongs to another model") as caught:
        _ = other.decoder
    assert "weights:" in caught.value.why
    assert "andes draft train" in caught.value.fix


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_file_is_refused(plain: Pipeline, file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_head(file, plain.model, "eagle3")


def test_other_files_are_refused(plain: Pipeline, file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="cannot be read"):
        load_head(tmp_path / "nothing", plain.model, "eagle3")
    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="no draft head 'eagle3'"):
        load_head(tmp_path / "x", plain.model, "eagle3")
    base = base_of(plain.model)
    facts = {"andes_draft": "eagle3", "andes_base": base}
    for shape in ("", "[]", "{}", json.dumps({"width": 1 << 40})):
        save_file({"x": torch.zeros(2)}, tmp_path / "x", {**facts, "andes_shape": shape})
        with pytest.raises(CheckpointError, match="has no shape"):
            load_head(tmp_path / "x", plain.model, "eagle3")
    wrong = new_head(plain.model)
    wrong.tokens[3] = 100_000
    save_head(wrong, tmp_path / "x", base)
    with pytest.raises(CheckpointError, match="tokens that the model does not have"):
        load_head(tmp_path / "x", plain.model, "eagle3")
    wrong = new_head(plain.model)
    wrong.fc.weight[0, 0] = torch.nan
    save_head(wrong, tmp_path / "x", base)
    with pytest.raises(CheckpointError, match=r"not finite in \['fc.weight'\]"):
        load_head(tmp_path / "x", plain.model, "eagle3")
    assert load_head(file, plain.model, "eagle3").shape == new_head(plain.model).shape
    with pytest.raises(CheckpointError, match="no draft head 'block'"):
        load_head(file, plain.model, "block")


def test_a_block_is_read_as_it_was_written(plain: Pipeline, block_file: Path, tmp_path: Path) -> None:
    head, again = new_block(plain.model), load_head(block_file, plain.model, "block")
    assert again.shape == head.shape
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    from safetensors.torch import save_file

    facts = {"andes_draft": "block", "andes_base": base_of(plain.model)}
    for wrong in ({"block": 0}, {"block": 17}, {"layers": 1000}, {"layers": "two"}):
        shape = json.dumps({**asdict(head.shape), **wrong})
        save_file({"x": torch.zeros(2)}, tmp_path / "x", {**facts, "andes_shape": shape})
        with pytest.raises(CheckpointError, match="has no shape"):
            load_head(tmp_path / "x", plain.model, "block")


# ---------------------------------------------------------------- training

LINE = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "abcabcab"}]}


def data(folder: Path, count: int = 12) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": f"say {n % 3}"}, {"role": "assistant", "content": "abcabcab" * 3}]}
        for n in range(count)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data.jsonl"


def draft_train(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["draft", "train", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


COMMON = ("--vocabulary", 96, "--rate", 0.01, "--unroll", 3, "--max-tokens", 256)


LEARNS = ("--steps", 60, "--vocabulary", 512, "--rate", 0.02, "--unroll", 3, "--max-tokens", 256, "--given")


@pytest.mark.parametrize("kind", ["eagle3", "block"])
def test_a_trained_head_guesses_better_than_chance_keeps_the_text_and_fits_its_model_only(
    tmp_path: Path, kind: str
) -> None:
    model = lively().save_pretrained(tmp_path / "model")
    before = load_file(model / "model.safetensors") if (model / "model.safetensors").exists() else {}
    told = draft_train(model, "--data", data(tmp_path), "--out", tmp_path / "run", *LEARNS, "--kind", kind)
    assert told["last"]["right_1"] > 0.5  # of 512 tokens
    trained = Pipeline.from_pretrained(model, plugins=[{"speculative": {"drafter": kind, "head": told["head"]}}])
    plain = Pipeline.from_pretrained(model)
    messages = [{"role": "user", "content": "say 1"}]
    options = GenerationOptions(max_tokens=20)
    assert trained.generate(messages, options).tokens == plain.generate(messages, options).tokens
    assert "draft" not in dict(trained.model.named_children())
    for name, tensor in before.items():
        assert torch.equal(tensor, load_file(model / "model.safetensors")[name])


def test_a_run_that_was_stopped_goes_on_with_identical_numbers_and_answers(tmp_path: Path) -> None:
    model = lively().save_pretrained(tmp_path / "model")
    source = data(tmp_path, 6)
    more = ("--data", source, "--answer-tokens", 12, "--checkpoint-every", 2, *COMMON)
    whole = draft_train(model, *more, "--out", tmp_path / "whole", "--steps", 6)
    answers = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 6
    first = json.loads(answers[0])
    assert first["messages"][0]["content"] == "say 0"
    assert first["messages"][1]["content"] != "abcabcab" * 3
    # the same, its answers torn in the middle of the third line, and its head and later states gone
    (tmp_path / "part").mkdir()
    torn = "\n".join(answers)[: len("\n".join(answers[:2])) + 20]
    (tmp_path / "part" / "answers.jsonl").write_text(torn)
    part = draft_train(model, *more, "--out", tmp_path / "part", "--steps", 6)
    assert (tmp_path / "part" / "answers.jsonl").read_text().splitlines() == answers
    one, other = (load_file(told["head"]) for told in (whole, part))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from andes_speculative.stage import Eagle3Stage

    model = lively().save_pretrained(tmp_path / "model")
    more = ("--data", data(tmp_path, 6), "--checkpoint-every", 2, "--steps", 6, "--given", *COMMON)
    whole = draft_train(model, *more, "--out", tmp_path / "whole")
    inner, calls = Eagle3Stage.loss, [0]

    def dies(self: Any, model: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return inner(self, model, batch)

    monkeypatch.setattr(Eagle3Stage, "loss", dies)
    result = CliRunner().invoke(app, ["draft", "train", *map(str, (model, *more, "--out", tmp_path / "part"))])
    assert result.exit_code != 0
    assert not (tmp_path / "part" / "draft").exists()
    monkeypatch.setattr(Eagle3Stage, "loss", inner)
    part = draft_train(model, *more, "--out", tmp_path / "part")
    one, other = (load_file(told["head"]) for told in (whole, part))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_an_answer_that_no_data_may_hold_is_left_out(tmp_path: Path) -> None:
    """What a model says of places may be a box with its corners swapped, which data of others are refused for."""
    model = lively().save_pretrained(tmp_path / "model")
    more = ("--data", data(tmp_path, 6), "--answer-tokens", 12, "--steps", 2, *COMMON)
    draft_train(model, *more, "--out", tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "answers.made.json").write_bytes((tmp_path / "one" / "answers.made.json").read_bytes())
    lines = [json.loads(line) for line in (tmp_path / "one" / "answers.jsonl").read_text().splitlines()]
    lines[2]["messages"][-1]["content"] = "<|box_start|>(650,860),(810,840)<|box_end|>"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "two" / "answers.jsonl").write_text(text)
    told = draft_train(model, *more, "--out", tmp_path / "two")
    assert Path(told["head"]).is_file()
    given = ["draft", "train", model, "--data", tmp_path / "two" / "answers.jsonl", "--given", "--steps", 2, *COMMON]
    result = CliRunner().invoke(app, [str(part) for part in (*given, "--out", tmp_path / "three")])
    assert result.exit_code != 0
    assert "corners swapped" in result.output


def test_given_answers_that_are_no_text_are_named(tmp_path: Path) -> None:
    model = lively().save_pretrained(tmp_path / "model")
    source = data(tmp_path, 3)
    wrong = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": 5}]}
    source.write_text(source.read_text() + json.dumps(wrong) + "\n")
    arguments = [
        "draft",
        "train",
        model,
        "--data",
        source,
        "--out",
        tmp_path / "run",
        "--given",
        "--steps",
        40,
        *COMMON,
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code != 0
    assert not isinstance(result.exception, TypeError)
    assert "data.jsonl:4" in result.output


def test_answers_to_other_data_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    model = lively().save_pretrained(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "answers.jsonl").write_text(json.dumps({"of": "elsewhere:1", "messages": []}) + "\n")
    arguments = [model, "--data", data(tmp_path), "--out", tmp_path / "run", "--steps", 1]
    result = CliRunner().invoke(app, ["draft", "train", *map(str, arguments)])
    assert result.exit_code == 1
    assert "answers to other data" in result.output


@pytest.mark.parametrize(("option", "value"), [("--answer-tokens", 5), ("--temperature", 0.1)])
def test_answers_of_other_options_are_not_gone_on_with(tmp_path: Path, option: str, value: float) -> None:
    arguments = [lively().save_pretrained(tmp_path / "model"), "--data", data(tmp_path), "--out", tmp_path / "run"]
    more = ["--steps", 1, "--answer-tokens", 4, "--vocabulary", 64, "--unroll", 2]
    draft_train(*arguments, *more)
    result = CliRunner().invoke(app, ["draft", "train", *map(str, [*arguments, *more, option, value])])
    assert result.exit_code == 1
    assert "made otherwise" in result.output
    assert f"{value} now" in result.output


@pytest.mark.parametrize(("option", "value"), [("--rate", 0.5), ("--unroll", 3), ("--vocabulary", 32)])
def test_a_run_does_not_go_on_with_other_options_of_the_head(tmp_path: Path, option: str, value: float) -> None:
    arguments = [lively().save_pretrained(tmp_path / "model"), "--data", data(tmp_path), "--out", tmp_path / "run"]
    more = ["--given", "--steps", 1, "--vocabulary", 64, "--unroll", 2]
    draft_train(*arguments, *more)
    result = CliRunner().invoke(app, ["draft", "train", *map(str, [*arguments, *more, option, value])])
    assert result.exit_code == 1
    assert "another recipe" in result.output
    assert option.removeprefix("--") in result.output


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    arguments = [tmp_path, "--data", tmp_path, "--out", tmp_path, "--kind", "medusa"]
    result = CliRunner().invoke(app, ["draft", "train", *map(str, arguments)])
    assert result.exit_code == 2
    assert "no kind 'medusa'" in result.output
