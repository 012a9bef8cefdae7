"""A model that describes itself -> plain tables of codes, scales and floats: what the worker makes graphs of.

The same tables feed the integer reference, so that both compute with the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import field, frozen

from andes_sdk.errors import ConfigError
from andes_sdk.inputs.patches import block_order

from .codes import BITS, Codebook, Matrix, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Grid

    from .options import Options

ROLES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@frozen(eq=False)
class Part:
    """One graph: its plan, its matrices as codes, and what stays float.

    Attributes:
        plan: sizes and choices, plain data.
        matrices: by name of the tensor in the graph. floats: norms, biases and tables, float32.
        origin: name in the graph -> name in the model, where they differ.
    """

    plan: Mapping[str, Any]
    matrices: Mapping[str, Matrix] = field(factory=dict)
    floats: Mapping[str, NDArray[np.float32]] = field(factory=dict)
    origin: Mapping[str, str] = field(factory=dict)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As the worker reads them."""
        out: dict[str, NDArray[Any]] = dict(self.floats)
        for name, one in self.matrices.items():
            out[f"{name}.codes"], out[f"{name}.scales"] = one.codes, one.scales
        return out


def floats(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor as float32."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def refuse(module: object, why: str) -> ConfigError:
    """The error of a module that has no graph."""
    fix = "use a language model, encoder and projector with a blueprint(), such as qwen3, aimv2 or siglip2, and mlp"
    return ConfigError(f"{type(module).__name__} cannot be lowered", who="dimensity", why=why, fix=fix)


def text_part(model: VisionLanguageModel, book: Codebook, options: Options) -> Part:
    """The language model without its embedding.

    Raises:
        ConfigError: it does not describe itself, has parts that the graph lacks, or codes that the chip cannot take.
    """
    language: Any = model.language_model
    plan = language.blueprint() if hasattr(language, "blueprint") else None
    if plan is None or "inner" not in plan:
        raise refuse(language, "it has no blueprint() of a decoder")
    if plan["activation"] != "silu" or plan["rotary"] is None:
        raise refuse(language, f"activation {plan['activation']!r}, or positions that depend on the text's length")
    spec, prefix, state = model.text, "language_model.", model.language_model.state_dict()
    if options.rows > spec.max_positions:
        why, fix = f"the model has {spec.max_positions} positions", "lower `rows`"
        raise ConfigError(f"a cache of {options.rows} rows", who="dimensity.rows", why=why, fix=fix)
    matrices, plain = {}, {}
    for n in range(spec.layers):
        at = f"model.layers.{n}."
        for role in ROLES:
            matrices[f"{at}{role}.weight"] = book.matrix(f"{prefix}{at}{role}.weight", BITS[options.weights])
            if role in plan["biased"]:
                plain[f"{at}{role}.bias"] = floats(state[f"{at}{role}.bias"])
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["self_attn.q_norm", "self_attn.k_norm"] if plan["head_norms"] else []
        plain |= {f"{at}{name}.weight": floats(state[f"{at}{name}.weight"]) for name in norms}
    matrices[HEAD] = book.matrix(prefix + HEAD, BITS[options.head])
    plain["model.norm.weight"] = floats(state["model.norm.weight"])
    both = plan["rotary"](torch.arange(options.rows + options.prompt))
    plain["cosines"], plain["sines"] = (floats(torch.cat([t, t], -1)) for t in both)
    facts = {
        "width": spec.width, "layers": spec.layers, "query_heads": spec.query_heads, "kv_heads": spec.kv_heads,
        "head": spec.head_dim, "inner": plan["inner"], "vocab": spec.vocab_size, "eps": plan["eps"],
        "scale": plan["scale"], "head_norms": bool(plan["head_norms"]), "rows": options.rows,
        "prompt": options.prompt, "tree": options.tree,
    }  # fmt: skip
    return Part(facts, matrices, plain)


def embedding_part(model: VisionLanguageModel, book: Codebook, text: Part, options: Options) -> Part:
    """The table of the embedding; one that is tied to the head has the head's codes."""
    state = model.language_model.state_dict()
    tied = state[TABLE].data_ptr() == state[HEAD].data_ptr()
    table = text.matrices[HEAD] if tied else book.matrix(f"language_model.{TABLE}", BITS[options.head])
    return Part({"tied": tied}, {TABLE: table})


class Names:
    """Names of a module's parameters by their content, for descriptions that show weights without names."""

    def __init__(self, module: nn.Module, prefix: str) -> None:
        self._by_content = {self._key(p): prefix + n for n, p in module.named_parameters() if p.dim() > 1}

    @staticmethod
    def _key(tensor: Tensor) -> str:
        one = floats(tensor)
        return hashlib.sha1(one.reshape(len(one), -1).tobytes()).hexdigest()

    def of(self, tensor: Tensor) -> list[str]:
        """Names whose rows one above another are this matrix; none where they cannot be found."""
        for count in (1, 3):
            if len(tensor) % count == 0:
                found = [self._by_content.get(self._key(part)) for part in tensor.chunk(count)]
                if None not in found:
                    return [str(name) for name in found]
        return []


def matrix_of(weight: Tensor, names: Names, book: Codebook, bits: int) -> Matrix:
    """The codes of a matrix that a blueprint shows.

    Raises:
        ConfigError: as `Codebook.matrix`, or parts of different bits.
    """
    found = names.of(weight)
    if not found:
        return rounded(floats(weight).reshape(len(weight), -1), bits)
    parts = [book.matrix(name, bits) for name in found]
    codes, scales = np.concatenate([p.codes for p in parts]), np.concatenate([p.scales for p in parts])
    return Matrix(codes, scales, max(p.bits for p in parts), parts[0].source)


def vision_part(
    model: VisionLanguageModel, book: Codebook, options: Options, grids: Sequence[Grid], buckets: Sequence[int] = ()
) -> Part:
    """The vision encoder, for pictures of these grids, or of any shape with at most so many tokens.

    Raises:
        ConfigError: it does not describe itself, or in words that the graph lacks.
    """
    module: Any = model.vision_encoder
    plan = module.blueprint() if hasattr(module, "blueprint") else None
    if plan is None or "embed" not in plan:
        raise refuse(module, "it has no blueprint() of an encoder")
    if plan["norm"] not in ("rms", "layer") or plan["activation"] not in ("swiglu", "gelu", "gelu_tanh"):
        raise refuse(module, f"norm {plan['norm']!r} or activation {plan['activation']!r}")
    spec, names, bits = model.vision, Names(module, "vision_encoder."), BITS[options.vision]
    matrices, plain = {}, {}

    def linear(name: str, pair: Any) -> None:
        matrices[f"{name}.weight"] = matrix_of(pair[0], names, book, bits)
        if pair[1] is not None:
            plain[f"{name}.bias"] = floats(pair[1])

    def norm(name: str, pair: Any) -> None:
        plain[f"{name}.weight"] = floats(pair[0])
        if pair[1] is not None:
            plain[f"{name}.bias"] = floats(pair[1])

    linear("embed", plan["embed"])
    # the graph sees pixels as (row, column, colour), patches of the model are (colour, row, column)
    one, p = matrices["embed.weight"], spec.patch_size
    turned = one.codes.reshape(-1, 3, p, p).transpose(0, 2, 3, 1).reshape(len(one.codes), -1)
    matrices["embed.weight"] = Matrix(np.ascontiguousarray(turned), one.scales, one.bits, one.source)
    if plan.get("embed_norm") is not None:
        norm("embed_norm", plan["embed_norm"])
    layers = 0
    for block in plan["blocks"]:
        for name in ("qkv", "out", "up", "gate", "down"):
            if name in block:
                linear(f"blocks.{layers}.{name}", block[name])
        for name in ("norm1", "norm2"):
            norm(f"blocks.{layers}.{name}", block[name])
        layers += 1
    norm("last", plan["last"])
    head = plan["width"] // plan["heads"]
    for rows, columns in grids:
        plain |= _places(plan, spec.merge, head, rows, columns)
    if buckets:
        plain |= _tables(module, plan, head, max(buckets) * spec.merge)
    facts = {
        "side": len(plan["table"]) if buckets and plan["positions"] is not None else 0,
        "width": plan["width"], "layers": layers, "heads": plan["heads"], "norm": plan["norm"], "eps": plan["eps"],
        "activation": plan["activation"], "patch": p, "merge": spec.merge, "mean": list(spec.mean),
        "std": list(spec.std), "rotary": plan["rotary"],
    }  # fmt: skip
    return Part(facts, matrices, plain)


def _places(plan: Mapping[str, Any], merge: int, head: int, rows: int, columns: int) -> dict[str, NDArray[np.float32]]:
    """What a grid's patches get for where they stand, in raster order."""
    out, name = {}, f"{rows}x{columns}"
    order = block_order(torch.arange(rows * columns).reshape(rows, columns), merge)
    if plan["positions"] is not None:
        table = torch.empty(rows * columns, plan["width"])
        table[order] = plan["positions"](rows, columns).detach().float()
        out[f"positions.{name}"] = floats(table)
    if plan["rotary"] is not None:
        quarter = head // 4
        frequencies = 1.0 / plan["rotary"] ** (torch.arange(quarter, dtype=torch.float32) / quarter)
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
        angles = (places[:, :, None] * frequencies).flatten(1)
        wide = torch.cat([angles, angles], -1)[None, None]
        out[f"cos.{name}"], out[f"sin.{name}"] = floats(wide.cos()), floats(wide.sin())
    return out


def _tables(module: object, plan: Mapping[str, Any], head: int, longest: int) -> dict[str, NDArray[np.float32]]:
    """What patches get for where they stand in pictures of any shape: position table and turns of a row or column."""
    out = {}
    if plan["positions"] is not None:
        table = plan.get("table")
        if table is None:
            raise refuse(module, "its positions are not resized bicubically, which pictures of any shape need")
        wide = torch.nn.functional.pad(table.permute(2, 0, 1)[None].float(), (2, 2, 2, 2), mode="replicate")
        out["places"] = floats(wide[0].permute(1, 2, 0).flatten(0, 1))
    if plan["rotary"] is not None:
        quarter = head // 4
        frequencies = 1.0 / plan["rotary"] ** (torch.arange(quarter, dtype=torch.float32) / quarter)
        angles = torch.arange(longest).float()[:, None] * frequencies
        out["turns.cos"], out["turns.sin"] = floats(angles.cos()), floats(angles.sin())
    return out


def projector_part(model: VisionLanguageModel, book: Codebook, options: Options) -> Part:
    """The projector.

    Raises:
        ConfigError: it does not describe itself.
    """
    module: Any = model.projector
    plan = module.blueprint() if hasattr(module, "blueprint") else None
    if plan is None or "first" not in plan:
        raise refuse(module, "it has no blueprint() of a projector")
    names, matrices, plain = Names(module, "mlp."), {}, {}
    for name in ("first", "second"):
        matrices[f"{name}.weight"] = matrix_of(plan[name][0], names, book, BITS[options.vision])
        if plan[name][1] is not None:
            plain[f"{name}.bias"] = floats(plan[name][1])
    facts = {"merge": plan["merge"], "activation": plan["activation"], "features": model.vision.width}
    return Part(facts, matrices, plain)
