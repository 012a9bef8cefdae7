"""Write the model card of the first-light model, and the figures in the README, from the measured results.

python benchmarks/first_light.py --json > docs/results/first_light.json
python examples/first_light/card.py
"""

from __future__ import annotations

import json
from pathlib import Path

from andes_training.recipe import load_recipe

from andes_sdk import Pipeline

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "docs" / "results" / "first_light.json"

TEXT = """# first-light

{parameters:,} parameters in the architecture of AndesVL: {parts}. Trained from random weights on two CPU cores by
[`recipe.toml`](../recipe.toml) with andes_sdk {sdk}; nothing pre-trained went into it. The weights are bfloat16
safetensors.

It answers the questions of easy-vqa about coloured shapes, in those wordings, and reads single handwritten digits.
It knows nothing else: another picture gets an answer from the same {answers} words.

| on data it has never seen | this model | without the picture | majority answer |
|---|---|---|---|
| easy-vqa, test split ({questions:,} questions) | **{easy_vqa:.1%}** | {easy_vqa_blind:.1%} | {easy_vqa_majority:.1%} |
{kinds}| scikit-learn digits, {digits_held_out} held out | **{digits:.1%}** | | |

An answer counts when the greedy text equals the truth. Made again by `python benchmarks/first_light.py --json`.

Data: [easy-vqa](https://pypi.org/project/easy-vqa/) 1.0 (MIT, Victor Zhou), its own train split; the 1 797 digits of
scikit-learn (UCI, Alpaydin and Kaynak 1998), all but the {digits_held_out} held out. Pictures are mirrored (easy-vqa)
or shifted and turned (digits) at random.

Stages: {stages}. Licence of the weights: Apache-2.0.
"""


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    pipeline = Pipeline.from_pretrained(HERE / "model")
    recipe = load_recipe(HERE / "recipe.toml")
    parts = ", ".join(
        f"{name} {sum(p.numel() for p in m.parameters()):,}" for name, m in pipeline.model.parts().items()
    )
    stages = "; ".join(f"{s.stage} {s.steps} steps on {', '.join(d.path.name for d in s.data)}" for s in recipe.stages)
    kinds = "".join(f"| – {kind} | {value:.1%} | | |\n" for kind, value in results["kinds"].items())
    text = TEXT.format(**{**results, "kinds": kinds}, parts=parts, stages=stages, sdk=pipeline.plan.sdk, answers=23)
    (HERE / "model" / "README.md").write_text(text, encoding="utf-8")
    table = text[text.index("| on data") : text.index("An answer counts")].strip()
    readme = HERE.parents[1] / "README.md"
    before, marker, rest = readme.read_text(encoding="utf-8").partition("<!-- first-light -->\n")
    _, end, after = rest.partition("<!-- /first-light -->")
    if not marker or not end:
        raise SystemExit(f"{readme} has lost its first-light markers")
    readme.write_text(f"{before}{marker}\n{table}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
