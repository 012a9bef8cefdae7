"""The losses against torch's own kl_div, by hand, and in parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from andes_distillation.losses import Top, bucketed, compared, divergence, taught, top_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def logits(seed: int, rows: int = 5, vocabulary: int = 11, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def gathered(logps: Tensor, ids: Tensor) -> Tensor:
    """The bucket as one would write it first: one minus the others, in double precision."""
    own = logps.double().gather(1, ids)
    return torch.cat([own, torch.log1p(-own.exp().sum(1, keepdim=True))], 1)


def test_by_hand() -> None:
    # teacher 1/2, 1/4, 1/8, 1/8; student 1/4 each; the two best and the rest: 1/2, 1/4, 1/4 against 1/4, 1/4, 1/2
    teacher = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    student = torch.zeros(1, 4)
    top = top_of(teacher, 2, 1.0)
    assert top.ids.tolist() == [[0, 1]]
    assert torch.allclose(top.logps.exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    assert float(divergence(student, top, 1.0)) == pytest.approx(0.25 * math.log(2), abs=1e-6)  # 1/2 ln 2 - 1/4 ln 2
    # at temperature 2 the odds are square roots; with all four tokens nothing is left for a bucket
    whole = top_of(teacher, 4, 2.0)
    roots = torch.tensor([0.5, 0.25, 0.125, 0.125]).sqrt()
    assert whole.logps.shape == (1, 4)
    assert torch.allclose(whole.logps.exp()[0], roots / roots.sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_over_the_whole_vocabulary_value_and_gradient_equal_torchs_kl_div(temperature: float) -> None:
    teacher, ours, theirs = logits(1), logits(2).requires_grad_(), logits(2).requires_grad_()
    got = divergence(ours, top_of(teacher, 99, temperature), temperature).mean()
    # as TRL's GKD writes it: both log_softmax(logits / T), kl_div(student, teacher, log_target), mean over tokens
    said, told = log_softmax(theirs / temperature, -1), log_softmax(teacher / temperature, -1)
    wanted = kl_div(said, told, reduction="none", log_target=True).sum(-1).mean()
    got.backward()
    wanted.backward()
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_with_a_bucket_value_and_gradient_equal_kl_div_over_the_buckets(k: int) -> None:
    teacher, ours, theirs = logits(3), logits(4).requires_grad_(), logits(4).requires_grad_()
    got = divergence(ours, top_of(teacher, k, 1.5), 1.5)
    told = log_softmax(teacher / 1.5, -1)
    ids = told.argsort(1, descending=True)[:, :k]
    wanted = kl_div(
        gathered(log_softmax(theirs / 1.5, -1), ids), gathered(told, ids), reduction="none", log_target=True
    ).sum(-1)
    got.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    whole = divergence(ours, top_of(teacher, 11, 1.5), 1.5)
    assert bool((got <= whole + 1e-6).all())  # the log-sum inequality
    assert bool((got >= -1e-6).all())


def test_a_sure_teacher_and_a_sure_student_leave_no_nan() -> None:
    # one token has all but e^-80: one minus it is 0 in float32, whose logarithm would be infinite
    teacher, student = torch.zeros(1, 4), torch.zeros(1, 4, requires_grad=True)
    teacher[0, 2] = 80.0
    sure = torch.tensor([[0.0, 0.0, 80.0, 0.0]], requires_grad=True)
    top = top_of(teacher, 1, 1.0)
    for rows, wanted in ((student, math.log(4)), (sure, 0.0)):
        value = divergence(rows, top, 1.0)
        value.sum().backward()
        assert float(value.detach()) == pytest.approx(wanted, abs=1e-6)
        assert rows.grad is not None
        assert bool(rows.grad.isfinite().all())
    assert float(bucketed(teacher.log_softmax(1), top.ids)[0, 1]) == pytest.approx(math.log(3) - 80, abs=1e-4)


class Head(nn.Module):
    """What `compared` asks of a model."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocabulary)

    @property
    def text(self) -> Any:
        return type("Spec", (), {"vocab_size": self.linear.out_features})

    def logits(self, rows: Tensor) -> Tensor:
        return self.linear(rows)


def test_in_parts_values_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, hidden, labels = Head(6, 11), torch.randn(7, 6), torch.arange(7)
    teacher = logits(5, rows=7)
    top = top_of(teacher, 4, 2.0)

    def run() -> tuple[list[Tensor], Tensor]:
        rows = hidden.clone().requires_grad_()
        found = compared(head, rows, labels, top, 2.0)  # type: ignore[arg-type]
        (found[0].sum() + found[1].sum()).backward()
        assert rows.grad is not None
        return [f.detach() for f in found], rows.grad

    whole = run()
    wanted = cross_entropy(head.logits(hidden), labels, reduction="none").detach()
    torch.testing.assert_close(whole[0][1], wanted)
    assert whole[0][2].tolist() == (head.logits(hidden).argmax(1) == teacher.argmax(1)).tolist()
    monkeypatch.setattr("andes_training.loss.CHUNK_LOGITS", 22)  # two rows at a time
    parts = run()
    for one, two in zip([*whole[0], whole[1]], [*parts[0], parts[1]], strict=True):
        torch.testing.assert_close(one, two)
    again = taught(head, hidden, 4, 2.0)  # type: ignore[arg-type]
    once = top_of(head.logits(hidden), 4, 2.0)
    assert torch.equal(again.ids, once.ids)
    torch.testing.assert_close(again.logps, once.logps)
    assert isinstance(again, Top)
