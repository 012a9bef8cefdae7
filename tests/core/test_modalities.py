"""More senses than one: pictures, and a plugin's recordings, in one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from andes_qwen3 import Qwen3
from andes_qwen3.tokenizer import QwenTokenizer
from andes_training.loss import next_token_loss
from andes_training.packing import collate, make_row, pack
from andes_training.step import Loss, make_optimizer
from attrs import evolve, frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import AssemblyError, InputError
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.material import answer_to_everything, picture
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceModality,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.types import Inputs, Media

PLUGINS = [ReferenceEncoder, ReferenceProjector, ReferenceLanguageModel]
SOUND, SHORT = [0.5, -0.25, 0.125] * 110, [1.0, 0.5]  # three frames of 160 samples, and one


def objects() -> list[Any]:
    return [*(make() for make in PLUGINS), ReferenceTokenizer(kinds=["audio"]), ReferenceModality()]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    made = Pipeline.from_plugins(objects())
    _ = made.model  # not first in a test that runs in inference mode
    return made


def part(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "text", "text": value}
    return {"type": "audio", "audio": value} if isinstance(value, list) else {"type": "image", "image": value}


def user(*values: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part(v) for v in values]}]


ORDERS = {
    "picture first": (picture(0), "and", SOUND),
    "sound first": (SOUND, "and", picture(0)),
    "in turn": (SHORT, picture(0), "then", SOUND, picture(1, (48, 32)), "what?"),
    "sound only": ("hear", SOUND, SHORT),
}


def by_hand(pipe: Pipeline, values: tuple[Any, ...], inputs: Inputs) -> torch.Tensor:
    """The embeddings of a prompt, each item's rows put at its place one after another."""
    model, rows = pipe.model, model_rows(pipe, values)
    embeds = list(model.llm.embed(inputs.ids))
    marks = [pipe.tokenizer.placeholder(kind) for kind in ("image", "audio")]
    places = [i for i, token in enumerate(inputs.ids.tolist()) if token in marks]
    for place, row in zip(places, rows, strict=True):
        embeds[place] = row
    return torch.stack(embeds)


def model_rows(pipe: Pipeline, values: tuple[Any, ...]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, list):
            frames = torch.zeros(-(-len(value) // 160) * 160)
            frames[: len(value)] = torch.tensor(value)
            found += list(pipe.model.modalities["audio"].embed(frames.reshape(-1, 160)))
        elif not isinstance(value, str):
            patches, grid = pipe.processor.preprocessor.patches(value.convert("RGB"))
            found += list(pipe.model.mlp(pipe.model.vision_encoder(patches, [grid])))
    return found


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("values", ORDERS.values(), ids=ORDERS)
@torch.inference_mode()
def test_rows_of_every_item_stand_at_its_place(pipe: Pipeline, values: tuple[Any, ...]) -> None:
    inputs = pipe.prepare(user(*values))
    embeds = pipe.model.embed(inputs.ids, pipe.model.encode(inputs.media))
    assert torch.allclose(embeds, by_hand(pipe, values, inputs), atol=1e-6)


@pytest.mark.parametrize("values", ORDERS.values(), ids=ORDERS)
def test_a_session_reads_what_one_pass_computes(pipe: Pipeline, values: tuple[Any, ...]) -> None:
    inputs, session = pipe.prepare(user(*values)), pipe.session()
    assert torch.allclose(session.prefill(inputs), answer_to_everything(pipe.model, inputs)[-1], atol=1e-4)
    assert session.stats.seconds["audio"] > 0
    assert session.length == len(inputs.ids)


def test_a_batch_of_mixed_prompts_answers_as_each_alone(pipe: Pipeline) -> None:
    prompts, options = [user(*values) for values in ORDERS.values()], GenerationOptions(max_tokens=6)
    together = pipe.generate_batch([*prompts, "only text"], options)
    assert [a.tokens for a in together] == [pipe.generate(p, options).tokens for p in [*prompts, "only text"]]


def test_a_fork_and_a_restored_session_go_on_alike(pipe: Pipeline) -> None:
    session = pipe.session()
    session.prefill(pipe.prepare(user(*ORDERS["in turn"])))
    wanted = session.fork().extend([65, 66])[0]
    assert torch.equal(pipe.compiled.restore(session.state(), pipe.policy).extend([65, 66])[0], wanted)
    second = pipe.prepare(user(SHORT, "again"))
    assert torch.equal(session.fork().prefill(second), session.prefill(second))


@torch.inference_mode()
def test_pictures_alone_are_what_they_are_without_the_modality(pipe: Pipeline) -> None:
    plain = Pipeline.from_plugins([*(make() for make in PLUGINS), ReferenceTokenizer()])
    message = user(picture(0), "what?")
    one, two = (answer_to_everything(p.model, p.prepare(message)) for p in (plain, pipe))
    assert torch.equal(one, two)
    assert set(plain.prepare(message).media) == {"image"}
    assert not plain.prepare("text").media


# ---------------------------------------------------------------- refused


def test_an_unknown_kind_is_refused_with_the_kinds_there_are(pipe: Pipeline) -> None:
    with pytest.raises(InputError) as caught:
        pipe.prepare([{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}])
    assert "text, image_url, image, audio" in str(caught.value)
    media = {"smell": Media(data=torch.zeros(1, 1), sizes=((1,),), rows=(1,))}
    with pytest.raises(InputError, match="it knows image, audio"):
        pipe.session().prefill(Inputs(torch.tensor([65]), media))


def test_items_belong_into_user_messages_and_must_be_items(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="user messages only"):
        pipe.prepare([{"role": "assistant", "content": [part(SOUND)]}])
    with pytest.raises(InputError, match="no recording"):
        pipe.prepare([{"role": "user", "content": [{"type": "audio", "audio": "noise.wav"}]}])
    with pytest.raises(InputError, match="nothing reads this key"):
        pipe.prepare([{"role": "user", "content": [{**part(SOUND), "rate": 16000}]}])


def test_rows_and_placeholders_must_agree(pipe: Pipeline) -> None:
    inputs = pipe.prepare(user(SOUND, picture(0)))
    with pytest.raises(InputError, match="3 audio tokens in the text, 0 audio rows"):
        pipe.model.embed(inputs.ids, {"image": pipe.model.encode(inputs.media)["image"]})


def test_rows_of_another_width_are_refused(pipe: Pipeline) -> None:
    inputs, width = pipe.prepare(user(SOUND)), pipe.model.text.width
    with pytest.raises(InputError, match=f"audio rows are {width + 1} wide, the language model's {width}"):
        pipe.model.embed(inputs.ids, {"audio": torch.zeros(3, width + 1)})


def test_a_tokenizer_without_a_placeholder_is_an_error_before_weights() -> None:
    with pytest.raises(InputError, match="no placeholder for 'audio'"):
        Pipeline.from_plugins([*(make() for make in PLUGINS), ReferenceTokenizer(), ReferenceModality()]).explain()


@pytest.mark.parametrize("taken", ["image", "text", "two words", "a.b"])
def test_a_name_that_messages_or_weights_cannot_hold_is_refused(taken: str) -> None:
    @frozen(eq=False)
    class Odd:
        contract = "1.1"

        @hookimpl
        def andes_modalities(self) -> list[Any]:
            return [evolve(ReferenceModality().andes_modalities()[0], name=taken)]

    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*objects(), Odd()])
    assert "name of a modality" in str(caught.value.problems)


# ---------------------------------------------------------------- weights and training


def test_explain_lists_the_senses(pipe: Pipeline) -> None:
    rows = [(r.owner, r.value) for r in pipe.explain().rows if r.part == "modalities"]
    width = pipe.model.text.width
    assert rows[0][0] == "core"
    assert rows[0][1].startswith("image: ")
    assert rows[1:] == [("referencemodality", f"audio: Frames, {161 * width:,} parameters")]


def test_a_checkpoint_keeps_the_weights_of_every_sense(pipe: Pipeline, tmp_path: Path) -> None:
    assert "modalities.audio.embed.weight" in pipe.model.state_dict()
    folder = pipe.save_pretrained(tmp_path / "saved")
    back = Pipeline.from_pretrained(folder, plugins=objects())
    assert back.model.state_dict().keys() == pipe.model.state_dict().keys()
    assert all(torch.equal(back.model.state_dict()[n], t) for n, t in pipe.model.state_dict().items())
    message = user(*ORDERS["in turn"])
    options = GenerationOptions(max_tokens=4)
    assert back.generate(message, options).tokens == pipe.generate(message, options).tokens


def samples(pipe: Pipeline) -> list[Any]:
    answer = {"role": "assistant", "content": "a bell"}
    asked = [user(*values) for values in (*ORDERS.values(), ("only text",))]
    return [make_row([pipe.processor.prepare([*q, answer], generate=False)]) for q in asked]


def test_a_pack_has_the_media_of_its_samples_and_their_loss(pipe: Pipeline) -> None:
    rows = samples(pipe)
    (group,) = pack(rows, max_tokens=10**6, max_patches=10**6)
    batch = collate(group)
    assert batch.media["audio"].rows == (3, 3, 1, 3, 3, 1)
    assert len(batch.media["image"].sizes) == 4
    with torch.no_grad():
        one = float(next_token_loss(pipe.model, batch)[0]) * batch.tokens
        each = [(collate([row]), row) for row in rows]
        alone = sum(float(next_token_loss(pipe.model, b)[0]) * b.tokens for b, _ in each)
    assert one == pytest.approx(alone, rel=1e-5)


def test_a_training_step_moves_the_senses_module() -> None:
    pipe = Pipeline.from_plugins(objects())
    model, batch = pipe.model.train(), collate(samples(pipe)).to(torch.device("cpu"))
    optimizer = make_optimizer(model, {"modalities.audio": 1e-2}, 0.0, ())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = []
    for _ in range(3):
        loss, _ = next_token_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"modalities.audio.embed.weight", "modalities.audio.embed.bias"}
    assert losses[-1] < losses[0]


def test_every_process_meets_every_module_whatever_its_pack_holds(pipe: Pipeline) -> None:
    class Stage:
        def loss(self, model: Any, batch: Any) -> Any:
            return next_token_loss(model, batch)

    model, batch = pipe.model, collate(samples(pipe)[-1:])
    model.zero_grad()
    loss, _ = Loss(model, Stage(), complete=True)(batch)  # type: ignore[arg-type]
    loss.backward()
    assert float(loss.detach()) == float(next_token_loss(model, batch)[0].detach())
    assert all(p.grad is not None for p in (*model.modalities.parameters(), *model.vision_encoder.parameters()))
    assert all(not p.grad.any() for p in model.modalities.parameters() if p.grad is not None)
    model.zero_grad()


# ---------------------------------------------------------------- compiled


def test_a_numba_session_gets_the_rows_of_a_sense_from_torch() -> None:
    class Hearing(QwenTokenizer):
        def placeholder(self, kind: str) -> int:
            return self.id_of("<|video_pad|>") if kind == "audio" else super().placeholder(kind)

    @frozen(eq=False)
    class Qwen:
        contract = "1.1"

        @hookimpl
        def andes_language_model(self) -> Any:
            return Qwen3(preset="tiny").andes_language_model(packed=False)

        @hookimpl
        def andes_tokenizer(self, files: Any) -> Any:
            return Hearing.find("", files, tiny=True, thinking=False)

    made = [ReferenceEncoder(), ReferenceProjector(), Qwen(), ReferenceModality()]
    pipe = Pipeline.from_plugins([*made, "numba"], backend="numba")
    inputs = pipe.prepare(user(*ORDERS["in turn"]))
    (work,) = pipe.session().chunks(inputs)
    assert work.embeds is not None
    with torch.inference_mode():
        assert torch.allclose(work.embeds, by_hand(pipe, ORDERS["in turn"], inputs), atol=1e-5)
