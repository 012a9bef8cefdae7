"""lmms-eval itself runs a pipeline on local tasks; `nox -s lmms` has an environment with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is in the environment of `nox -s lmms` only")

from andes_evaluation.lmms_model import AndesChat, cut, ours
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, InputError
from andes_sdk.runtime.options import GenerationOptions

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
CODE = """
def visual(doc):
    return [doc["image"].convert("RGB")]

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 2:
        return None, None, True, previous_output, None
    return visual(doc), "And then?", False, previous_output, None

def judged(doc, results):
    return {"said": results[0] if isinstance(results[0], list) else [results[0]]}

def gathered(results):
    with open("SAID", "a") as file:
        file.writelines(repr(one) + "\\n" for one in results)
    return float(len(results))
"""
TASK = """
task: {name}
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: {kind}
doc_to_visual: !function code.visual
doc_to_text: {text}
doc_to_target: {target}
{more}
"""
GIVEN = "generation_kwargs: {max_new_tokens: 5, temperature: 1.0, do_sample: true, until: []}"
OWN = f"""process_results: !function code.judged
{GIVEN}
metric_list:
  - metric: said
    aggregation: !function code.gathered
    higher_is_better: true"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import datasets

    folder = tmp_path_factory.mktemp("lmms")
    rows = {"image": [Image.new("RGB", (56, 28), c) for c in ("red", "blue")], "question": ["What?", "Which colour?"],
            "options": [["red", "blue"]] * 2, "right": [0, 1]}  # fmt: skip
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(folder / "data")
    Pipeline.from_plugins(MODEL, image={"min_size": 28}).save_pretrained(folder / "model")
    (folder / "code.py").write_text(CODE.replace("SAID", str(folder / "said.txt")))
    tasks = {
        "andes_local": ("generate_until", "question", "right", OWN),
        "andes_rounds": ("generate_until_multi_round", "!function code.rounds", "right", OWN),
        "andes_choice": (
            "multiple_choice",
            "question",
            "right",
            "doc_to_choice: options\nmetric_list:\n  - metric: acc",
        ),
    }
    for name, (kind, text, target, more) in tasks.items():
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, data=folder / "data", kind=kind, text=text, target=target, more=more)
        )
    return folder


def evaluated(place: Path, task: str, **options: Any) -> Any:
    (place / "said.txt").unlink(missing_ok=True)
    manager = TaskManager(include_path=str(place), include_defaults=False)
    arguments = f"pretrained={place / 'model'},image_size=56"
    return evaluator.simple_evaluate(
        model="andes", model_args=arguments, tasks=[task], batch_size=2, task_manager=manager, bootstrap_iters=0,
        **options,
    )  # fmt: skip


def own(place: Path, messages: Any) -> str:
    pipeline = Pipeline.from_pretrained(place / "model")
    return pipeline.generate(messages, GenerationOptions(max_tokens=5, image_size=56, temperature=1.0)).text


def asked(colour: str, question: str) -> dict[str, Any]:
    picture = {"type": "image", "image": Image.new("RGB", (56, 28), colour)}
    return {"role": "user", "content": [picture, {"type": "text", "text": question}]}


def said(place: Path) -> list[Any]:
    import ast

    return [ast.literal_eval(line) for line in (place / "said.txt").read_text().splitlines()]


def test_lmms_eval_gets_the_pipelines_own_answers(place: Path) -> None:
    evaluated(place, "andes_local")
    expected = [own(place, [asked("red", "What?")]), own(place, [asked("blue", "Which colour?")])]
    assert all(text.strip() for text in expected)
    assert said(place) == [[text.strip()] for text in expected]  # lmms-eval strips answers


def test_a_task_of_several_rounds_gets_all_their_answers(place: Path) -> None:
    evaluated(place, "andes_rounds", limit=1)
    expected = [own(place, [asked("red", "What?")]), own(place, [asked("red", "And then?")])]
    assert said(place) == [expected]


def test_log_likelihoods_are_those_of_the_models_own_logits(place: Path) -> None:
    from andes_evaluation.lmms_model import AndesSimple

    found = evaluated(place, "andes_choice", force_simple=True)
    assert found["results"]["andes_choice"]["acc,none"] in (0.0, 0.5, 1.0)
    model = AndesSimple(str(place / "model"), image_size=56)
    model.task_dict = {"t": {"test": [{"image": Image.new("RGB", (56, 28), "red")}]}}
    (request,) = [("What?", "red", lambda doc: [doc["image"]], 0, "t", "test")]
    likelihood, greedy = model._likelihood(*request)
    pipe = model.pipeline
    ids = pipe.tokenizer.encode("red")
    session = pipe.session()
    logits, total = session.prefill(pipe.prepare([asked("red", "What?")], think=False)), 0.0
    for number, token in enumerate(ids):  # one token at a time, where the model's class reads them together
        total += float(logits.double().log_softmax(-1)[token])
        if number + 1 < len(ids):
            logits = session.extend([token])[0][-1]
            session.commit()
    session.close()
    assert math.isclose(likelihood, total, rel_tol=1e-5)
    assert greedy is False or likelihood > -len(ids)


def test_what_a_pipeline_cannot_do_is_told(place: Path) -> None:
    with pytest.raises(ConfigError, match="no argument 'beam'"):
        AndesChat(str(place / "model"), beam=2)
    with pytest.raises(ConfigError, match="beam search with 4 beams"):
        AndesChat(str(place / "model"))._options({"num_beams": 4})
    with pytest.raises(InputError, match="a part of type 'video'"):
        ours([{"role": "user", "content": [{"type": "video", "url": "x"}]}])


def test_stop_texts_hold_behind_thinking() -> None:
    assert cut("<think>a\n\nb</think>yes\n\nno", ["\n\n"]) == "<think>a\n\nb</think>yes"
    assert cut("yes. no", ".") == "yes"
    assert cut("yes", []) == "yes"
