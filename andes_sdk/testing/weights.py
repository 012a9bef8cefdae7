"""What holds for every module whatever its slot: weights, seeds, gradients, precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from andes_sdk.testing.require import Nonconformance, require, require_bits, require_close, require_finite

Forward = Callable[[Any], Tensor]
"""A module -> one tensor that depends on all of its weights."""


def randomised(module: Any) -> Any:
    """The module with normal weights of ordinary size, so that near-zero initial values hide nothing."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p.shape[-1] ** 0.5 if p.ndim > 1 else 1.0 + 0.1 * noise)
    return module


def score(values: Tensor) -> Tensor:
    """A scalar with a different weight on every element."""
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(6)).to(values.dtype)
    return (values * weights).sum()


def gradients(module: nn.Module, forward: Forward) -> dict[str, Tensor]:
    """Gradient of every parameter; Nonconformance names those that get none."""
    module.zero_grad()
    score(forward(module)).backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    lost = [name for name, g in found.items() if g is None or not bool(g.abs().max() > 0)]
    require(not lost, f"no gradient reaches {', '.join(lost[:8])}")
    for name, g in found.items():
        if g is not None:
            require_finite(g, f"gradient of {name}")
    return {name: g for name, g in found.items() if g is not None}


def check_meta(build: Callable[[], nn.Module], real: nn.Module) -> None:
    """Built under `torch.device("meta")`: same names and shapes, and nothing allocated."""
    with torch.device("meta"):
        shadow = build()
    require(all(p.is_meta for p in shadow.parameters()), "built on the meta device, some parameters are not on it")
    shapes = {n: tuple(t.shape) for n, t in real.state_dict().items()}
    other = {n: tuple(t.shape) for n, t in shadow.state_dict().items()}
    wrong = sorted(set(shapes.items()) ^ set(other.items()))
    require(not wrong, f"on the meta device names or shapes differ: {wrong[:4]}")


def check_saved(first: nn.Module, second: nn.Module, forward: Forward) -> None:
    """Weights written to safetensors and read into a module of another seed give the same output to the bit."""
    from safetensors.torch import load_file, save_file

    with TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "weights.safetensors"
        save_file({n: t.detach().clone().contiguous() for n, t in first.state_dict().items()}, path)
        second.load_state_dict(load_file(path))
        require_bits(forward(second), forward(first), "output after saving and loading the weights")


def check_seed(build: Callable[[int], nn.Module]) -> None:
    """Same seed, same weights. Another seed may give the same too: a plugin may bring trained weights."""
    one, again = (list(build(1).parameters()) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        require_bits(a, b, "weights built twice from one seed")


def check_twice(module: nn.Module, forward: Forward) -> None:
    """Two passes give the same bits."""
    with torch.no_grad():
        require_bits(forward(module), forward(module), "output of two passes")


def check_bfloat16(module: nn.Module, forward: Forward) -> None:
    """In bfloat16 the output is finite, of that type, and near the float32 one (3 decimal digits, a few layers)."""
    with torch.no_grad():
        exact = forward(module)
        low = forward(module.to(torch.bfloat16))
    require(low.dtype is torch.bfloat16, f"with bfloat16 weights the output is {low.dtype}")
    require_finite(low, "bfloat16 output")
    require_close(low.float(), exact, 0.1, "bfloat16 output against float32")


def check_checkpointing(plain: nn.Module, saving: nn.Module, forward: Forward) -> None:
    """Gradient checkpointing leaves output and gradients as they are."""
    saving.load_state_dict(plain.state_dict())
    wanted, got = gradients(plain.train(), forward), gradients(saving.train(), forward)
    require(wanted.keys() == got.keys(), "gradient checkpointing changes which parameters get a gradient")
    for name, value in got.items():
        require_close(value, wanted[name], 1e-5, f"gradient of {name} with gradient checkpointing")


def expect_refusal(
    action: Callable[[], object], message: str, kinds: tuple[type[Exception], ...] = (Exception,)
) -> None:
    """Nonconformance unless the action raises one of these errors."""
    try:
        action()
    except kinds:
        return
    except Exception as error:
        raise Nonconformance(f"{message}: raised {type(error).__name__} instead: {error}") from error
    raise Nonconformance(message)
