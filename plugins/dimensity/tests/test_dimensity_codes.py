import numpy as np
import pytest
import torch
from andes_dimensity.codes import Codebook, per_channel, rounded
from torch import nn

from andes_sdk.errors import ConfigError
from andes_sdk.types import Codes


@pytest.mark.parametrize(("bits", "high"), [(8, 127), (4, 7)])
def test_rounding_stays_on_the_grid_and_within_half_a_step_where_nothing_is_clipped(bits, high):
    weight = np.random.default_rng(0).normal(size=(24, 64)).astype(np.float32)
    made = rounded(weight, bits)
    assert made.codes.dtype == np.int8
    assert np.abs(made.codes).max() <= high
    assert (made.scales.astype(np.float16).astype(np.float32) == made.scales).all()
    inside = np.abs(weight) <= high * made.scales[:, None]
    assert np.abs(made.weights - weight)[inside].max() <= made.scales.max() / 2 * 1.001


def test_the_search_for_scales_beats_the_largest_magnitude():
    weight = np.random.default_rng(1).standard_t(3, size=(32, 256)).astype(np.float32)
    plain = np.abs(weight).max(1, keepdims=True) / 7
    error = np.square(np.clip(np.rint(weight / plain), -7, 7) * plain - weight).sum()
    assert np.square(rounded(weight, 4).weights - weight).sum() < error


def test_a_row_of_zeros_has_codes_of_zero():
    made = rounded(np.zeros((3, 8), np.float32), 8)
    assert not made.codes.any()
    assert (made.scales > 0).all()


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ConfigError, match="not finite"):
        rounded(np.array([[1.0, np.nan]], np.float32), 8)


def test_codes_with_equal_scales_in_a_row_are_codes_per_channel():
    values = np.array([[1, -8, 7, 0], [2, 3, -4, 5]], np.int8)
    scales = np.array([[0.5, 0.5], [0.25, 0.25]], np.float16)
    made = per_channel("a", Codes(values, scales, 2), "trained")
    assert made.bits == 4
    assert made.weights.tolist() == [[0.5, -4.0, 3.5, 0.0], [0.5, 0.75, -1.0, 1.25]]


def test_group_wise_codes_are_refused_by_name():
    codes = Codes(np.ones((2, 4), np.int8), np.array([[0.5, 0.25], [1, 1]], np.float16), 2)
    with pytest.raises(ConfigError, match="a scale for every 2 columns") as caught:
        per_channel("layers.3.down_proj.weight", codes, "packed")
    assert caught.value.who == "layers.3.down_proj.weight"
    assert "one scale per row" in caught.value.fix


def test_codes_without_scales_are_refused():
    with pytest.raises(ConfigError, match="no integer codes"):
        per_channel("x", Codes(np.ones((2, 2), np.float16), np.zeros((2, 0), np.float16), 1), "packed")


class Trained(nn.Module):
    """A matrix on a grid, as training with fake quantisation leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.values = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
        self.scales = np.array([[0.5], [0.25], [0.125]], np.float16)
        self.weight = nn.Parameter(torch.from_numpy(self.codes().weights()))

    def codes(self) -> Codes:
        return Codes(self.values, self.scales, 4)

    def input_range(self) -> None:
        return None


def test_the_codes_of_training_come_before_rounding():
    model = nn.ModuleDict({"one": Trained(), "two": nn.Linear(4, 3)})
    book = Codebook.of(model)
    one, two = book.matrix("one.weight", 8), book.matrix("two.weight", 8)
    assert (one.codes == model["one"].values).all()
    assert (one.source, one.bits, two.source, two.bits) == ("trained", 4, "rounded", 8)
    with pytest.raises(ConfigError, match="no such matrix"):
        book.matrix("three.weight", 8)
