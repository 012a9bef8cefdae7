"""Scores of lmms-eval 0.7.3's own functions, for `eval_parity.py`; runs in the environment of `nox -s lmms`.

Reads one case a line on stdin: task, doc (a row in the layout of lmms-eval's data set), said. Writes one JSON list of
scores on stdout. What prints on stdout in between is sent to stderr. Where lmms-eval draws a random letter, it gets
none.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Doc = dict[str, Any]


@cache
def module(name: str) -> Any:
    return importlib.import_module(f"lmms_eval.tasks.{name}")


def exact(said: str, right: str) -> float:
    """lmms-eval's `exact_match`, with what AI2D and CRPE tell it to ignore."""
    metrics = importlib.import_module("lmms_eval.api.metrics")
    given = {"predictions": [said], "references": [right], "ignore_case": True, "ignore_punctuation": True}
    return float(metrics.exact_match_hf_evaluate(**given)["exact_match"])


def chartqa(doc: Doc, said: str) -> float:
    return module("chartqa.utils").chartqa_process_results({"type": "human_test", **doc}, [said])["relaxed_overall"]


def docvqa(doc: Doc, said: str) -> float:
    return importlib.import_module("lmms_eval.api.metrics").anls(doc["answers"], [said])["anls"]


def textvqa(doc: Doc, said: str) -> float:
    found = module("textvqa.utils").textvqa_process_results({"question_id": 0, **copy.deepcopy(doc)}, [said])
    return found["exact_match"]


def ocrbench(doc: Doc, said: str) -> float:
    return module("ocrbench.utils").ocrbench_process_results(doc, [said])["ocrbench_accuracy"]["score"]


def mtvqa(doc: Doc, said: str) -> float:
    return module("mtvqa.utils").mtvqa_process_results(doc, [said])["mtvqa_score"]["score"]


def pope(doc: Doc, said: str) -> float:
    return module("pope.utils").pope_process_results({"question_id": 0, **doc}, [said])["pope_accuracy"]["score"]


def mme(doc: Doc, said: str) -> float:
    found = module("mme.utils").mme_process_results({"question_id": 0, **doc}, [said])
    return next(iter(found.values()))["score"]


def ai2d(doc: Doc, said: str) -> float:
    utils = module("ai2d.utils")
    (read,) = utils.MultiChoiceRegexFilter().apply([[said]], [doc])
    return exact(read, utils.ai2d_doc_to_target(doc, "mcq"))


def mmmu(doc: Doc, said: str) -> float:
    utils = module("mmmu.utils")
    found = utils.mmmu_process_results(doc, [said])["mmmu_acc"]
    return float(utils.evaluate_mmmu([found])[1]["acc"])


def mmmu_pro(doc: Doc, said: str) -> float:
    utils = module("mmmu_pro.utils")
    found = utils.mmmu_pro_process_results({"subject": "Art", **doc}, [said])["mmmu_acc"]
    return float(utils.eval_multi_choice(found["answer"], found["parsed_pred"]))


def q_bench(doc: Doc, said: str) -> float:
    utils = module("qbench.utils")
    given = {"id": 0, "question_concern": 0, "question_type": 0, **doc}
    found = utils.q_bench_process_results(given, [said])["qbench_acc"]
    return float(found["answer"] == found["parsed_pred"])


def mmbench(doc: Doc, said: str) -> float:
    import pandas

    evaluator = module("mmbench.mmbench_evals").MMBench_Evaluator()
    frame = pandas.DataFrame([{**doc, "prediction": said}])
    return float(evaluator.eval_sub_data(frame, {doc["index"]: doc["answer"]}, static_only=True))


def mmstar(doc: Doc, said: str) -> float:
    given = {"category": "c", "l2_category": "l", "index": 0, **doc}
    return module("mmstar.utils").mmstar_process_results(given, [said])["average"]["score"]


def realworldqa(doc: Doc, said: str) -> float:
    return module("realworldqa.utils").realworldqa_process_results(doc, [said])["exact_match"]


def blink(doc: Doc, said: str) -> float:
    given = {"idx": 0, "sub_task": "s", **doc}
    return float(module("blink.utils").blink_process_results(given, [said])["blink_acc"]["is_correct"])


def mmt(doc: Doc, said: str) -> float:
    return module("mmt.utils").mmt_process_results(doc, [said])["accuracy"]["overall"]


def muirbench(doc: Doc, said: str) -> float:
    utils = module("muirbench.utils")
    (read,) = utils.MultiChoiceRegexFilter().apply([[said]], [doc])
    given = {"task": "t", "idx": 0, "image_relation": "r", "image_type": "i", **doc}
    return float(utils.muir_aggregation([utils.muir_process_results(given, [read])["muirbench_score_overall"]]))


def seed_2_plus(doc: Doc, said: str) -> float:
    utils = module("seedbench_2_plus.utils")
    found = utils.seed_process_result({"question_id": 0, "question_image_type": "chart", **doc}, [said])
    return float(utils.seed_aggregation_result([found["seedbench_2_plus_all"]]))


def crpe(doc: Doc, said: str) -> float:
    (read,) = module("crpe_relation.utils").MultiChoiceRegexFilter().apply([[said]], [doc])
    return exact(read, doc["correct_option"])


def screenspot(doc: Doc, said: str) -> list[float]:
    utils = module("screenspot.utils_rec")
    given = {"file_name": "f", "data_type": "text", "data_source": "ios", **doc}
    found = utils.screenspot_rec_process_result(given, [said])["screenspot_IoU"]
    return [float(utils.compute_center_accuracy(found["bbox"], found["pred"])),
            float(utils.compute_iou(found["bbox"], found["pred"]))]  # fmt: skip


def screenspot_v2(doc: Doc, said: str) -> float:
    found = module("screenspot_v2.utils").screenspot_v2_process_results(doc, [said])
    return float(found["screenspot_v2_action_acc"]["correct"])


def screenspot_pro(doc: Doc, said: str) -> float:
    found = module("screenspot_pro.utils").screenspot_pro_process_results(doc, [said])
    return float(found["screenspot_pro_action_acc"]["correct"])


def mathvista(doc: Doc, said: str) -> float:
    evaluator = module("mathvista.mathvista_evals").MathVistaEvaluator()
    evaluator.get_chat_response = lambda prompt, **_: said  # no model extracts: the answer stands for itself
    read = evaluator.extract_answer(said.strip(), {**doc, "query": ""})
    form = (doc["choices"], doc["question_type"], doc["answer_type"], doc["precision"])
    return float(evaluator.safe_equal(evaluator.normalize_extracted_answer(read, *form), doc["answer"]))


def pope_set(docs: Sequence[Doc], said: Sequence[str]) -> list[float]:
    """Accuracy, precision, recall and F1 of many answers."""
    utils = module("pope.utils")
    found = [utils.pope_process_results({"question_id": i, **d}, [s])["pope_f1_score"]
             for i, (d, s) in enumerate(zip(docs, said, strict=True))]  # fmt: skip
    names = ("accuracy", "precision", "recall", "f1_score")
    return [float(getattr(utils, f"pope_aggregate_{name}")(found)) for name in names]


def mme_set(docs: Sequence[Doc], said: Sequence[str]) -> list[float]:
    """The total over the kinds of many pictures."""
    utils = module("mme.utils")
    found = [next(iter(utils.mme_process_results(d, [s]).values())) for d, s in zip(docs, said, strict=True)]
    return [float(utils.mme_aggregate_results(found))]


SCORERS: dict[str, Callable[..., Any]] = {
    "chartqa": chartqa, "docvqa": docvqa, "infovqa": docvqa, "textvqa": textvqa, "ocrbench": ocrbench, "mtvqa": mtvqa,
    "pope": pope, "mme": mme, "ai2d": ai2d, "mmmu": mmmu, "mmmu-pro": mmmu_pro,
    "q-bench": q_bench, "mmbench-en": mmbench, "mmbench-cn": mmbench, "mmstar": mmstar,
    "realworldqa": realworldqa, "blink": blink, "mmt-bench": mmt, "muirbench": muirbench, "seed-2-plus": seed_2_plus,
    "crpe-relation": crpe, "screenspot": screenspot, "screenspot-v2": screenspot_v2, "screenspot-pro": screenspot_pro,
    "mathvista": mathvista, "pope, whole": pope_set, "mme, whole": mme_set,
}  # fmt: skip


def main() -> None:
    from loguru import logger

    logger.remove()
    found = []
    random.choice = lambda seq: ""  # type: ignore[assignment]
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            case = json.loads(line)
            found.append(SCORERS[case["task"]](case["doc"], case["said"]))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
