"""`andes_modules`: plugins change a model before its weights are read, and it is saved and opened as it then is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import CheckpointError, PluginBroken
from andes_sdk.testing import run_checks
from andes_sdk.testing.material import answer_to_everything, conversation
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceModules,
    ReferenceProjector,
    ReferenceTokenizer,
)

BASE = (ReferenceEncoder(), ReferenceProjector(), ReferenceLanguageModel(), ReferenceTokenizer())


class Wrapped(nn.Module):
    """A linear layer and a low-rank pair beside it."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.a = nn.Parameter(torch.randn(2, inner.in_features))
        self.b = nn.Parameter(torch.randn(inner.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + x @ self.a.T @ self.b.T
        return out


@frozen(eq=False, kw_only=True)
class Wraps:
    contract = "1.1"

    @hookimpl
    def andes_modules(self, model: Any) -> Sequence[str]:
        block = model.language_model.blocks[0]
        block.q = Wrapped(block.q)
        return []


@frozen(eq=False, kw_only=True)
class Heads:
    contract = "1.1"

    tied: bool = False

    @hookimpl
    def andes_modules(self, model: Any) -> Sequence[str]:
        model.draft = nn.Linear(model.text.width, model.text.vocab_size, bias=False)
        if self.tied:
            model.draft.weight = model.language_model.head.weight
        return ["draft."]


def pipeline(*plugins: object, **options: Any) -> Pipeline:
    return Pipeline.from_plugins([*BASE, *plugins], **options)


def opened(folder: Path, *plugins: object) -> Pipeline:
    return Pipeline.from_plugins([*BASE, *plugins], weights=folder)


def logits(pipe: Pipeline) -> Tensor:
    return answer_to_everything(pipe.model, pipe.prepare(conversation(0)))


def test_a_wrapped_linear_is_saved_and_opened_with_equal_logits(tmp_path: Path) -> None:
    pipe = pipeline(Wraps(), seed=3)
    assert not torch.equal(logits(pipe), logits(pipeline(seed=3)))
    folder = pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_plan(pipe.plan, objects=[*BASE, Wraps()], weights=folder)
    assert torch.equal(logits(again), logits(pipe))
    assert torch.equal(again.model.language_model.blocks[0].q.a, pipe.model.language_model.blocks[0].q.a)


def test_an_added_head_is_saved_and_opened(tmp_path: Path) -> None:
    pipe = pipeline(Heads(), seed=3)
    with torch.no_grad():
        pipe.model.draft.weight.fill_(0.5)
    again = opened(pipe.save_pretrained(tmp_path / "saved"), Heads())
    assert torch.equal(again.model.draft.weight, pipe.model.draft.weight)
    assert torch.equal(logits(again), logits(pipe))


def test_a_checkpoint_may_lack_what_the_plugin_says(tmp_path: Path) -> None:
    folder = pipeline(seed=3).save_pretrained(tmp_path / "plain")
    found = opened(folder, Heads())
    assert found.model.may_lack == ("draft.",)
    # values follow from the seed alone, whether weights are read or made
    assert torch.equal(found.model.draft.weight, pipeline(Heads()).model.draft.weight)
    assert torch.equal(logits(found), logits(pipeline(seed=3)))


def test_a_tied_head_is_no_lack(tmp_path: Path) -> None:
    found = opened(pipeline(seed=3).save_pretrained(tmp_path / "plain"), Heads(tied=True))
    assert found.model.draft.weight is found.model.language_model.head.weight
    assert not found.model.draft.weight.is_meta


def test_what_no_prefix_names_is_missing_still(tmp_path: Path) -> None:
    folder = pipeline(seed=3).save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.q\.a: missing"):
        _ = opened(folder, Wraps()).model


def test_an_extra_head_is_extra_without_its_plugin(tmp_path: Path) -> None:
    folder = pipeline(Heads()).save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"draft\.weight: extra"):
        _ = opened(folder).model


def test_plugins_are_asked_in_order_on_meta_and_real_builds_alike() -> None:
    asked: list[tuple[str, bool]] = []

    @frozen(eq=False, kw_only=True)
    class First:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            asked.append((type(self).__name__, torch.empty(0).is_meta))
            return []

    class Second(First):
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            return First.andes_modules(self, model)

    pipe = pipeline(First(), Second())
    _ = pipe.meta_model(), pipe.model
    assert asked == [("First", True), ("Second", True), ("First", False), ("Second", False)]


@pytest.mark.parametrize("returned", ["draft.", None, [1], ["nothing."], [""]])
def test_what_are_no_prefixes_is_refused(returned: Any) -> None:
    @frozen(eq=False, kw_only=True)
    class Wrong:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Any:
            return returned

    with pytest.raises(PluginBroken, match="wrong: andes_modules returned"):
        pipeline(Wrong()).meta_model()


def test_a_weight_that_may_be_lacking_needs_a_value(tmp_path: Path) -> None:
    @frozen(eq=False, kw_only=True)
    class Hollow:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            model.draft = nn.Linear(2, 2, device=model.device)
            return ["draft."]

    folder = pipeline().save_pretrained(tmp_path / "plain")
    with pytest.raises(PluginBroken, match=r"draft\.weight, draft\.bias: weights without values"):
        _ = opened(folder, Hollow()).model


def test_a_hook_that_fails_is_told_with_its_plugin() -> None:
    @frozen(eq=False, kw_only=True)
    class Fails:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            raise ValueError("no")

    with pytest.raises(PluginBroken, match="fails: andes_modules failed"):
        pipeline(Fails()).meta_model()


def test_the_published_layout_describes_no_changed_modules(tmp_path: Path) -> None:
    plugins = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, Heads()]
    pipe = Pipeline.from_plugins(plugins)
    with pytest.raises(CheckpointError, match="cannot describe"):
        pipe.save_pretrained(tmp_path / "saved", layout="published")
    assert not (pipe.save_pretrained(tmp_path / "ours") / "config.json").exists()


# ---------------------------------------------------------------- the kit


def failed(plugin: Any) -> list[str]:
    results = run_checks(plugin, kinds=["modules"], companions=list(BASE))
    return [r.id for r in results if r.status == "failed"]


def test_the_kit_passes_plugins_that_keep_the_contract() -> None:
    assert [failed(p) for p in (ReferenceModules(), Wraps(), Heads())] == [[], [], []]


def test_the_kit_catches_modules_that_differ_on_meta() -> None:
    @frozen(eq=False, kw_only=True)
    class Differs:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            model.draft = nn.Linear(2, 2, bias=not torch.empty(0).is_meta)
            return []

    assert "modules: meta and real builds have the same weights" in failed(Differs())


def test_the_kit_catches_a_forward_that_breaks() -> None:
    class Nan(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    @frozen(eq=False, kw_only=True)
    class Breaks:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            head = model.language_model.head
            model.language_model.head = Nan(head.in_features, head.out_features, bias=False)
            return []

    assert "modules: the changed model computes" in failed(Breaks())


def test_the_kit_catches_values_that_do_not_follow_from_the_seed() -> None:
    count = iter(range(100))

    @frozen(eq=False, kw_only=True)
    class Drifts:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            model.draft = nn.Linear(2, 2)
            nn.init.constant_(model.draft.weight, float(next(count)))
            return ["draft."]

    assert "modules: what a checkpoint may lack follows from the seed" in failed(Drifts())


def test_the_kit_catches_a_model_that_cannot_be_opened_again() -> None:
    built = iter(range(100))

    @frozen(eq=False, kw_only=True)
    class Renames:
        contract = "1.1"

        @hookimpl
        def andes_modules(self, model: Any) -> Sequence[str]:
            setattr(model, f"draft{next(built)}", nn.Linear(2, 2))
            return []

    assert "modules: saved and opened again, the logits are equal" in failed(Renames())
