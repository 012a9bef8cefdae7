"""Memory: logits in pieces and activations computed twice change no number."""

from __future__ import annotations

import pytest
import torch
from andes_training import loss as losses
from andes_training.loss import hidden_rows, next_token_loss, token_logps
from andes_training.packing import Batch, branch_slices, collate, make_row
from andes_training.recompute import recomputed
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from andes_sdk import Pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)


def conversation(answer: str) -> list:
    picture = {"type": "image", "image": Image.new("RGB", (56, 84), "red")}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "what colour?"}]}
    return [question, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def batch(pipeline: Pipeline) -> Batch:
    def row(*answers: str):
        return make_row([pipeline.processor.prepare(conversation(a), generate=False) for a in answers])

    return collate([row("a deep and pleasant red, " * 3), row("red", "a square"), row("no")])


class Largest(TorchDispatchMode):
    """The most numbers that any operation, forward or backward, writes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.numel = max(self.numel, item.numel())
        return out


def gradients(pipeline: Pipeline, loss: Tensor) -> list[Tensor]:
    pipeline.model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in pipeline.model.parameters()]


def plain(pipeline: Pipeline, batch: Batch) -> Tensor:
    wanted = batch.labels != -100
    return cross_entropy(pipeline.model.logits(hidden_rows(pipeline.model, batch)[wanted]), batch.labels[wanted])


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_logits_in_pieces_give_the_loss_and_gradients_of_all_at_once(
    pipeline: Pipeline, batch: Batch, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", rows * pipeline.model.text.vocab_size)
    expected = plain(pipeline, batch)
    value, figures = next_token_loss(pipeline.model, batch)
    # float32: sums over rows and over pieces in another order
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    assert 0 <= figures["accuracy"] <= 1
    for a, b in zip(gradients(pipeline, value), gradients(pipeline, expected), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_logits_never_exist_all_at_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    size = pipeline.model.text.vocab_size
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 8 * size)
    hidden = torch.randn(200, pipeline.model.text.width, requires_grad=True)
    targets = torch.arange(200) % size
    with Largest() as chunked:
        (-token_logps(pipeline.model, hidden, targets).mean()).backward()
    with Largest() as whole:
        cross_entropy(pipeline.model.logits(hidden), targets).backward()
    assert whole.numel == 200 * size
    # nothing is larger than eight rows of logits but the head's own gradient
    assert chunked.numel == max(8, pipeline.model.text.width) * size < whole.numel


def test_log_probabilities_of_tokens_are_those_of_log_softmax(pipeline: Pipeline, batch: Batch) -> None:
    wanted = batch.labels != -100
    with torch.no_grad():
        hidden = hidden_rows(pipeline.model, batch)[wanted]
        found = token_logps(pipeline.model, hidden, batch.labels[wanted])
        expected = pipeline.model.logits(hidden).log_softmax(-1).gather(1, batch.labels[wanted][:, None])[:, 0]
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)  # float32


def test_branches_of_a_pack_are_found_and_hold_every_supervised_row(batch: Batch) -> None:
    slices = branch_slices(batch)
    assert [len(s) for s in slices] == [1, 2, 1]
    supervised = set((batch.labels != -100).nonzero()[:, 0].tolist())
    inside = {t for sample in slices for s in sample for t in range(s.start, s.stop)}
    assert supervised <= inside
    first, second = slices[1]
    assert first.stop == second.start
    # the shared prefix belongs to no branch
    assert first.start > slices[0][0].stop
    assert slices[2][0].stop == len(batch.ids)


def test_extras_of_rows_are_joined_and_move_with_the_batch(pipeline: Pipeline) -> None:
    from attrs import evolve

    row = make_row([pipeline.processor.prepare(conversation("red"), generate=False)])
    rows = [evolve(row, extras={"n": torch.tensor(i), "v": torch.full((i,), float(i))}) for i in (1, 2)]
    extras = collate(rows).to(torch.device("meta")).extras
    assert {k: (tuple(x.shape), x.device.type) for k, x in extras.items()} == {"n": ((2,), "meta"), "v": ((3,), "meta")}
    assert collate(rows).extras["v"].tolist() == [1.0, 2.0, 2.0]


def test_recomputed_layers_give_the_same_gradients_and_keep_less(pipeline: Pipeline, batch: Batch) -> None:
    model = pipeline.model.train()

    def run(wanted: bool) -> tuple[int, list[Tensor]]:
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with recomputed(model, wanted):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
                value, _ = next_token_loss(model, batch)
            return kept, gradients(pipeline, value)

    names = list(model.state_dict())
    much, expected = run(False)
    little, found = run(True)
    assert little < 0.5 * much
    # the same operations on the same numbers
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert list(model.state_dict()) == names
    assert not any("forward" in vars(m) for m in model.modules())
