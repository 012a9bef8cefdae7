"""From an assembly to modules, and what fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from andes_sdk import config
from andes_sdk.assembling.assembly import blaming
from andes_sdk.errors import AndesError, AssemblyError, BackendUnavailable, ConfigError, PluginBroken

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import Assembly
    from andes_sdk.inputs.processor import Processor
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan
    from andes_sdk.types import Tokenizer


def device_error(name: str) -> AndesError | None:
    """Why a device cannot be used, or None."""
    kind, _, index = str(name).partition(":")
    if kind == "cpu" and not index:
        return None
    import torch

    try:
        torch.device(name)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        return BackendUnavailable(f"no device {name!r}", who="device", why=why, fix="use cpu, cuda or mps")
    cuda = torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()
    if not {"cuda": cuda, "mps": torch.backends.mps.is_available()}.get(kind):
        fix = "use device='cpu', or run elsewhere"
        return BackendUnavailable(f"this machine has no {name!r}", who="device", fix=fix)
    return None


DTYPES = ("float32", "bfloat16", "float16")


def run_errors(device: str, dtype: str, image: Mapping[str, Any], own: Sequence[str] = ()) -> list[AndesError]:
    """Every problem with what a pipeline runs on; `own` are device names of its backend."""
    errors: list[AndesError] = []
    if dtype not in DTYPES:
        errors.append(ConfigError(f"no dtype {dtype!r}", who="dtype", fix=config.suggestion(str(dtype), DTYPES)))
    if device not in own and (error := device_error(device)) is not None:
        errors.append(error)
    return errors + image_errors(image)


def image_errors(image: Mapping[str, Any]) -> list[AndesError]:
    """Every problem with the preprocessor's options."""
    from andes_sdk.inputs.preprocess import Preprocessor

    fixed = {"patch_size", "merge", "mean", "std"}
    options = {k: v for k, v in image.items() if k not in fixed}
    errors: list[AndesError] = [
        ConfigError(f"option {k!r} belongs to the encoder", who="image", fix="remove it") for k in image if k in fixed
    ]
    try:
        base = {"patch_size": 14, "merge": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        config.structure(Preprocessor, {**base, **options}, "image")
    except AssemblyError as group:
        errors += group.problems
    return errors


def build_meta(assembly: Assembly, tokenizer: Tokenizer) -> VisionLanguageModel:
    """The modules without memory for weights."""
    import torch

    from andes_sdk.assembling.hollow import Undrawn

    with torch.device("meta"), Undrawn():
        return build(assembly, tokenizer)


def build(
    assembly: Assembly, tokenizer: Tokenizer, *, hollow: bool = False, packed: bool = False
) -> VisionLanguageModel:
    """The modules on torch's default device, with weights from torch's random numbers or of the plugins' own.

    Args:
        hollow: to read weights into: slots and modalities on the meta device; what `andes_modules` adds has values.
        packed: as for `andes_language_model`.

    Raises:
        PluginBroken: a hook `andes_modules` that fails, or returns what are no prefixes of weights of the model.
    """
    import torch

    from andes_sdk.assembling.hollow import Undrawn
    from andes_sdk.model import VisionLanguageModel

    with torch.device("meta") if hollow else nullcontext(), Undrawn() if hollow else nullcontext():
        encoder = assembly.slot("vision_encoder")
        language_model = assembly.slot("language_model", packed=packed)
        projector = assembly.slot("projector", vision=encoder.spec, text=language_model.spec)
        senses = assembly.collections["modalities"]
        model = VisionLanguageModel(encoder, projector, language_model, tokenizer, senses)
    return _changed(assembly, model)


def _changed(assembly: Assembly, model: VisionLanguageModel) -> VisionLanguageModel:
    """The model after every `andes_modules`, each of which draws from the plan's seed anew."""
    import torch

    hook = "andes_modules"
    prefixes: list[str] = []
    for name in (p.name for p in assembly.plan.plugins if hook in p.hooks):
        with blaming(name, hook), torch.random.fork_rng(devices=[]):
            torch.manual_seed(assembly.plan.seed)
            returned = getattr(assembly.manager.get_plugin(name), hook)(model=model)
        prefixes += _prefixes(name, returned, model)
    model.may_lack = tuple(prefixes)
    return model


def _prefixes(name: str, returned: Any, model: VisionLanguageModel) -> list[str]:
    hook, fix = "andes_modules", 'return prefixes of weights, such as ["draft."], or []'
    if isinstance(returned, str) or not isinstance(returned, Sequence) or not all(isinstance(p, str) for p in returned):
        raise PluginBroken(f"{hook} returned {returned!r}", who=name, fix=fix)
    weights = model.state_dict()
    idle = [p for p in returned if not p or not any(w.startswith(p) for w in weights)]
    if idle:
        raise PluginBroken(f"{hook} returned prefixes that no weight has", who=name, why=repr(idle), fix=fix)
    return list(returned)


def build_processor(model: VisionLanguageModel, plan: Plan) -> Processor:
    """The processor that fits this model's encoder and tokenizer."""
    from andes_sdk.inputs.preprocess import Preprocessor
    from andes_sdk.inputs.processor import Pictures, Processor

    vision = model.vision
    own: dict[str, Any] = attrs.asdict(vision)
    own.pop("width")
    preprocessor = Preprocessor(**own, **plan.image)
    return Processor(model.tokenizer, {"image": Pictures(preprocessor), **model.senses}, model.text.max_positions)
