"""The tasks by name. Add one here, or bring a whole benchmark by the hook `andes_benchmarks`."""

from __future__ import annotations

from collections.abc import Iterable

from andes_evaluation.rows import Place
from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError

from . import choice, judged, maths, places, text, yes_no
from .base import SHORT, Task

_SPOT = (
    "You are a GUI agent. You are given a task and a screenshot of the screen. You need to locate and generate the "
    "bounding box coordinate of the target area that corresponds to the command.\n"
    "Please locate and generate the bounding box coordinate of the target area or component corresponds to the "
    "following instruction: <|obj_ref_start|>{instruction}<|obj_ref_end|>"
)
LANGUAGES = ("en", "cn", "pt", "ar", "tr", "ru")


def _at(*names: str, hub: str = "", config: str = "", split: str = "test") -> Place:
    return Place(names=names, hub=hub, config=config, split=split)


def _screens() -> Iterable[Task]:
    for part in ("mobile", "desktop", "web"):
        name = part.capitalize()
        yield places.Grounding(
            name=f"screenspot-{part}", place=_at(f"ScreenSpot_{name}"), instruction=_SPOT, corners=False
        )
        yield places.Grounding(
            name=f"screenspot-v2-{part}", place=_at(f"ScreenSpot_v2_{name}"), instruction=_SPOT, corners=False
        )
    yield places.Grounding(
        name="screenspot", place=_at("ScreenSpot", hub="rootsautomation/ScreenSpot"), instruction=_SPOT
    )
    yield places.Grounding(
        name="screenspot-v2", place=_at("ScreenSpot_v2", hub="lmms-lab-encoder/ScreenSpot-v2", split="train"),
        instruction=_SPOT, corners=False,
    )  # fmt: skip
    yield places.Grounding(
        name="screenspot-pro", place=_at("ScreenSpot_Pro", hub="lmms-lab-encoder/ScreenSpot-Pro", split="train"),
        instruction=_SPOT,
    )  # fmt: skip
    yield places.Grounding(name="andesui-grounding", place=_andesui("grounding"))
    yield places.Grounding(name="andesui-qa", place=_andesui("QA"))
    yield places.Referring(name="andesui-referring", place=_andesui("referring"))
    yield text.Description(name="andesui-description", place=_andesui("description"))


def _andesui(kind: str) -> Place:
    """A file of its own name, of the published evaluation, or of the published part of the data."""
    names = (kind.lower(), f"AndesUI_test_{kind}_data", f"AndesUI_Test_{kind}_sub")
    return _at(*names, hub="OPPOer/AndesUI_Benchmark")


def _words() -> Iterable[Task]:
    yield text.Chart(name="chartqa", place=_at("ChartQA_TEST", "chartqa", hub="lmms-lab/ChartQA"))
    yield text.Document(
        name="docvqa", place=_at("DocVQA_VAL", "docvqa", hub="lmms-lab/DocVQA", config="DocVQA", split="validation")
    )
    yield text.Document(
        name="infovqa", scale=2.0,
        place=_at("InfoVQA_VAL", "infovqa", hub="lmms-lab/DocVQA", config="InfographicVQA", split="validation"),
    )  # fmt: skip
    yield text.SceneText(
        name="textvqa", place=_at("TextVQA_VAL", "textvqa", hub="lmms-lab/textvqa", split="validation")
    )
    yield text.Ocr(name="ocrbench", place=_at("OCRBench", hub="echo840/OCRBench"), scale=2.0)
    yield text.Multilingual(name="mtvqa", place=_at("MTVQA_TEST", "mtvqa", hub="ByteDance/MTVQA"))


def _choices() -> Iterable[Task]:
    directly = choice.DIRECTLY
    yield choice.Whole(name="ai2d", place=_at("AI2D_TEST", "ai2d", hub="lmms-lab/ai2d"), scale=2.0)
    yield choice.Mentioned(
        name="mmmu", place=_at("MMMU_DEV_VAL", "mmmu", hub="lmms-lab/MMMU", split="validation"), scale=2.0,
        suffix=directly, penalty=1.0,
    )  # fmt: skip
    yield choice.Mentioned(
        name="mmmu-pro", suffix=directly, penalty=1.0,
        place=_at("MMMU_Pro_10c", "mmmu_pro", hub="MMMU/MMMU_Pro", config="standard (10 options)"),
    )  # fmt: skip
    yield choice.Circular(name="mmbench-en", place=_at("MMBench_DEV_EN_V11", "MMBench_V11", "mmbench_en"))
    yield choice.Circular(name="mmbench-cn", place=_at("MMBench_DEV_CN_V11", "MMBench_CN_V11", "mmbench_cn"), scale=4.0)
    yield choice.Circular(name="ccbench", place=_at("CCBench"), scale=2.0, suffix=choice.SELECT)
    yield choice.Ranked(name="mmstar", place=_at("MMStar", hub="Lin-Chen/MMStar", split="val"), suffix=choice.STEPS)
    yield choice.Stated(name="blink", place=_at("BLINK"))
    yield choice.Spaced(name="mmt-bench", place=_at("MMT-Bench_VAL"))
    yield choice.Spaced(name="mmt-bench-mi", place=_at("MMT-Bench_VAL_MI"))
    yield choice.Muir(name="muirbench", place=_at("MUIRBench", hub="MUIRBENCH/MUIRBENCH"))
    yield choice.RealWorld(name="realworldqa", place=_at("RealWorldQA", hub="lmms-lab/RealWorldQA"), scale=2.0)
    yield choice.FirstLetter(
        name="seed-2-plus", place=_at("SEEDBench2_Plus", hub="doolayer/SEED-Bench-2-Plus"), scale=2.0
    )
    yield choice.Written(name="crpe-relation", place=_at("CRPE_RELATION", hub="nv-njb/CRPE"))
    yield choice.Written(name="crpe-exist", place=_at("CRPE_EXIST"))
    yield choice.Mentioned(name="q-bench", place=_at("Q-Bench1_VAL"))
    yield choice.Choice(name="r-bench", place=_at("R-Bench-Dis"))
    for language in LANGUAGES:
        yield choice.Choice(name=f"mmmb-{language}", place=_at(f"MMMB_{language}"))
        yield choice.Circular(
            name=f"mtl-mmbench-{language}", place=_at(f"MMBench_dev_{language}"), suffix=choice.SELECT
        )
    yield choice.WeMath(name="wemath", place=_at("WeMath"), penalty=1.0)
    yield choice.Several(name="logicvista", place=_at("LogicVista"), penalty=1.0)


def _others() -> Iterable[Task]:
    yield yes_no.Pope(name="pope", place=_at("POPE", hub="lmms-lab/POPE"))
    yield yes_no.Mme(name="mme", place=_at("MME", hub="lmms-lab/MME"), scale=2.0)
    yield yes_no.Hallusion(name="hallusionbench", place=_at("HallusionBench", hub="lmms-lab/HallusionBench",
                                                           split="image"))  # fmt: skip
    yield maths.Vista(name="mathvista", place=_at("MathVista_MINI", hub="AI4Math/MathVista", split="testmini"))
    yield maths.Mathematics(name="mathverse", place=_at("MathVerse_MINI", hub="AI4Math/MathVerse", split="testmini"))
    yield maths.Mathematics(name="mathverse-vision-only", place=_at("MathVerse_MINI_Vision_Only"))
    yield maths.Vision(name="mathvision", place=_at("MathVision", hub="MathLLMs/MathVision"))
    yield maths.Vision(
        name="mathvision-mini", place=_at("MathVision_MINI", hub="MathLLMs/MathVision", split="testmini")
    )
    yield maths.Dyna(name="dynamath", place=_at("DynaMath"))
    yield judged.Vet(name="mmvet", place=_at("MMVet", hub="lmms-lab/MMVet"), scale=2.0)


TASKS: dict[str, Task] = {task.name: task for family in (_screens, _words, _choices, _others) for task in family()}
"""Task by name."""


def task_of(name: str) -> Task:
    """A task by its name, in any case.

    Raises:
        ConfigError: there is none of that name.
    """
    if name.lower() not in TASKS:
        raise ConfigError(f"no task {name!r}", who="andes eval", fix=suggestion(name.lower(), TASKS))
    return TASKS[name.lower()]


__all__ = ["SHORT", "TASKS", "Task", "task_of"]
