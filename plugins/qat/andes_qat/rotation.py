"""Hadamard rotations folded into weights, so that no input or weight of a matrix stands out (QuaRot, arXiv 2404.00456).

The float model computes the same numbers but for rounding; that is tried. Two places, neither costs anything later:

- `heads`: the values of each head, in the rows of `v` and the columns of `o`.
- `all`: that, and the stream between layers. The weights of the norms go into the matrices behind them first, as an
  RMSNorm without weights commutes with a rotation. Embedding, projector, `o` and `down` write rotated rows, and what
  reads them turns them back. The weight of the last norm goes into the head, so it may not be the embedding, too.

Left out: the input of `down`, and queries and keys behind their rotary positions, which need a rotation while the model
runs; the vision encoder. Widths that are no power of two are turned by a Hadamard matrix of their largest such factor,
times a random orthogonal one of the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from andes_sdk.errors import ConfigError
from andes_sdk.runtime.attention import PackedAttention, Segment

from .layers import Held, in_float32

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

ROTATIONS = ("", "heads", "all")
BOUND = 1e-4
"""Most that a logit may move, ÷ the largest one, in float32: what is above is no rounding."""
READERS = {"input_layernorm": ("q", "k", "v"), "post_attention_layernorm": ("gate", "up")}
"""Norm of a layer -> roles that read it."""


def orthogonal(size: int, seed: int = 0) -> Tensor:
    """(size, size) float64: a Hadamard matrix with columns of random signs, times a random one for an odd factor."""
    source = torch.Generator().manual_seed(seed)
    made = torch.ones(1, 1, dtype=torch.float64)
    while size % (2 * len(made)) == 0:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)]) / 2**0.5
    if (odd := size // len(made)) > 1:
        rest = torch.linalg.qr(torch.randn(odd, odd, generator=source, dtype=torch.float64))[0]
        made = torch.kron(made, rest.contiguous())
    signs = torch.randint(0, 2, (size,), generator=source, dtype=torch.float64) * 2 - 1
    return made * signs


@torch.no_grad()
def rotate(model: VisionLanguageModel, kind: str) -> float:
    """Rotate a float model in place -> how far its logits moved on a few rows, ÷ the largest.

    It is computed in float32; weights of 16 bits are rounded to their type at the end. Nothing happens to layers that
    hold codes which were trained after this very rotation; a model without storage is only looked at.

    Args:
        kind: `heads` or `all`.

    Raises:
        ConfigError: a model whose embedding is its head, or that is built otherwise; it is left as it was.
    """
    held = any(isinstance(module, Held) for module in model.modules())
    if held and getattr(model, "rotated", "") == kind:
        return 0.0
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with in_float32(model):
            moved = _turn(model, kind)
    except BaseException as error:
        for name, tensor in model.state_dict().items():
            tensor.copy_(kept[name])
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        why = f"{type(error).__name__}: {error}"
        raise ConfigError("the model cannot be rotated", who="qat.rotate", why=why, fix="set rotate = ''") from None
    cast("Any", model).rotated = kind
    return moved


def _turn(model: VisionLanguageModel, kind: str) -> float:
    parts = _Parts(model)
    last = parts.last_writer() if kind == "all" else None
    if model.device.type == "meta":
        return 0.0
    before = _probe(model)
    parts.heads()
    if last is not None:
        parts.stream(last)
    moved = float((_probe(model) - before).abs().max() / before.abs().max())
    if not moved <= BOUND:
        why = f"logits move by {moved:.2g} of the largest: it is built otherwise than Llama and Qwen"
        raise ConfigError("the model cannot be rotated", who="qat.rotate", why=why, fix="set rotate = ''")
    return moved


def _probe(model: VisionLanguageModel) -> Tensor:
    """Logits of a few rows of a random picture, and of the tokens behind them."""
    ids = torch.arange(7, device=model.device) * 37 % model.text.vocab_size
    shape = (4 * model.vision.merge**2, model.vision.width)
    patches = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    rows = torch.cat([model.projector(patches), model.llm.embed(ids)])
    segment = Segment(len(rows), ())
    positions = segment.positions().to(model.device)
    return model.logits(model.hidden_states(rows, positions, PackedAttention([segment]))).float()


class _Parts:
    """The matrices and norms of a model by what they read and write."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model, self.decoder = model, cast("Any", model.language_model).model
        self.roles: dict[int, dict[str, nn.Linear]] = {}
        for name, (layer, role) in model.llm.linears().items():
            module = model.language_model.get_submodule(name)
            if type(module) is not nn.Linear:
                why, fix = f"{name} is {type(module).__name__}", "rotate the float checkpoint"
                raise ConfigError("only plain layers can be rotated", who="qat.rotate", why=why, fix=fix)
            self.roles.setdefault(layer, {})[role] = module

    def heads(self) -> None:
        """Values of each head."""
        size = self.model.text.head_dim
        turn = orthogonal(size)
        for roles in self.roles.values():
            v, o = roles["v"], roles["o"]
            rows = v.weight.double().unflatten(0, (-1, size))  # (heads, size, columns)
            v.weight.copy_((turn.T @ rows).flatten(0, 1))
            if v.bias is not None:
                v.bias.copy_((v.bias.double().unflatten(0, (-1, size)) @ turn).flatten())
            o.weight.copy_((o.weight.double().unflatten(1, (-1, size)) @ turn).flatten(1))

    def last_writer(self) -> nn.Linear:
        """What writes the rows of pictures.

        Raises:
            ConfigError: the rows between layers cannot be rotated.
        """
        language = cast("Any", self.model.language_model)
        if language.lm_head.weight is self.decoder.embed_tokens.weight:
            why, fix = "the weight of its last norm would go into the head alone", "set rotate = 'heads'"
            raise ConfigError("the model's embedding is its head", who="qat.rotate = 'all'", why=why, fix=fix)
        if self.model.modalities:
            why, fix = f"it also hears or sees by {', '.join(self.model.modalities)}", "set rotate = 'heads'"
            raise ConfigError("not every writer of its rows is known", who="qat.rotate = 'all'", why=why, fix=fix)
        last = [module for module in self.model.mlp.modules() if not list(module.children())][-1]
        if type(last) is not nn.Linear:
            why, fix = f"it ends in {type(last).__name__}, no linear layer", "set rotate = 'heads'"
            raise ConfigError("the projector's rows cannot be rotated", who="qat.rotate = 'all'", why=why, fix=fix)
        return last

    def stream(self, last: nn.Linear) -> None:
        """The rows between layers; `last` writes those of pictures."""
        language, turn = cast("Any", self.model.language_model), orthogonal(self.model.text.width, 1)
        for number, roles in self.roles.items():
            for norm, readers in READERS.items():
                _read([roles[r] for r in readers], getattr(self.decoder.layers[number], norm), turn)
            for role in ("o", "down"):
                _write(roles[role], turn)
        _read([language.lm_head], self.decoder.norm, turn)
        embedding = self.decoder.embed_tokens.weight
        embedding.copy_(embedding.double() @ turn)
        _write(last, turn)


def _read(modules: list[nn.Linear], norm: Any, turn: Tensor) -> None:
    for module in modules:
        module.weight.copy_((module.weight.double() * norm.weight.double()) @ turn)
    norm.weight.fill_(1.0)


def _write(module: nn.Linear, turn: Tensor) -> None:
    module.weight.copy_(turn.T @ module.weight.double())
    if module.bias is not None:
        module.bias.copy_(module.bias.double() @ turn)
