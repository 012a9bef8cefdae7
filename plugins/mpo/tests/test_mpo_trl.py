"""Loss and gradients against TRL's own DPOTrainer, on the same weights and the same pairs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_mpo.losses import mixed_loss, rewards_of
from andes_mpo.stage import MixedPreference, RewardShift, answer_logps
from andes_training.packing import Batch, collate, make_row
from attrs import evolve

from andes_sdk import Pipeline

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL, which the loss is compared with, is not installed")
datasets = pytest.importorskip("datasets", reason="TRL needs datasets")
# TRL still asks transformers by names that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

WEIGHTS = (0.8, 0.2, 1.0)
PAIRS = [
    ("What is 2 + 2?", "4", "It is five, or more."),
    ("Is the sky blue?", "Yes, by day, where there are no clouds.", "No."),
    ("Name a colour.", "red", "seven"),
]


def pipeline(seed: int) -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=seed)


def stage(running: bool = False) -> MixedPreference:
    rates = {"language_model": 1e-3}
    return MixedPreference(learning_rates=rates, beta=0.1, weights=WEIGHTS, running=running, online=False)


def batch_of(pipe: Pipeline) -> tuple[Batch, dict[str, torch.Tensor]]:
    """The pairs as a pack of ours, and padded as TRL has them: chosen above rejected."""
    rows, padded = [], []
    for prompt, chosen, rejected in PAIRS:
        entry = {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected}
        both = [pipe.processor.prepare(c, generate=False) for c in stage().conversations(entry)]
        rows.append(make_row(both))
        padded.append([(p.ids, p.supervised) for p in both])
    sequences = [pair[side] for side in (0, 1) for pair in padded]
    width = max(len(ids) for ids, _ in sequences)
    inputs = {k: torch.zeros(len(sequences), width, dtype=torch.int64) for k in ("input_ids", "attention_mask")}
    inputs["completion_mask"] = torch.zeros(len(sequences), width, dtype=torch.int64)
    for i, (ids, supervised) in enumerate(sequences):
        inputs["input_ids"][i, : len(ids)] = ids
        inputs["attention_mask"][i, : len(ids)] = 1
        inputs["completion_mask"][i, : len(ids)] = supervised.long()
    return collate(rows), inputs


def twin(pipe: Pipeline) -> Any:
    """transformers' Qwen3 with the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    ours: Any = pipe.model.language_model
    config = Qwen3Config(**{k: v for k, v in ours.config.to_dict().items() if not k.startswith("_")})
    stock = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
    stock.load_state_dict(ours.state_dict())
    return stock


def trainer(model: Any, reference: Any, folder: Path, beta: float = 0.1) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<pad>": 2, "<eos>": 3}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    known = {field.name for field in dataclasses.fields(trl.DPOConfig)}
    off = (
        "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    )  # transformers 5.10
    options = trl.DPOConfig(
        output_dir=str(folder), loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=list(WEIGHTS), beta=beta,
        report_to=[], use_cpu=True, bf16=False, disable_dropout=True, **{off: False},
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "a"}])
    return trl.DPOTrainer(
        model=model, ref_model=reference, args=options, train_dataset=data, processing_class=tokenizer
    )


def test_loss_figures_and_gradients_equal_trls(tmp_path: Path) -> None:
    policy, reference = pipeline(1), pipeline(2)
    batch, inputs = batch_of(policy)
    theirs = twin(policy)
    peer = trainer(theirs, twin(reference), tmp_path)
    wanted = peer._compute_loss(theirs, inputs, False)
    wanted.backward()

    with torch.no_grad():
        known = answer_logps(reference.model, batch)[0].reshape(-1)
    batch = evolve(batch, tokens=3, extras={"reference": known})
    policy.model.train()
    loss, figures = stage().loss(policy.model, batch)
    loss.backward()

    # one part in a million: ours is packed and theirs padded, in float32
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    told = {name: values[-1] for name, values in peer._metrics["train"].items()}
    assert figures["margin"] == pytest.approx(told["rewards/margins"], abs=1e-6)
    assert figures["preference"] == told["rewards/accuracies"]
    assert figures["reward_chosen"] == pytest.approx(told["rewards/chosen"], abs=1e-6)
    gradients = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in policy.model.language_model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-6)
        compared += 1
    assert compared == len(gradients) > 20


@pytest.mark.parametrize("index", range(3))
def test_each_part_alone_equals_trls(tmp_path: Path, index: int) -> None:
    policy, reference = pipeline(3), pipeline(4)
    batch, inputs = batch_of(policy)
    theirs = twin(policy)
    peer = trainer(theirs, twin(reference), tmp_path)
    peer.loss_weights = [float(i == index) for i in range(3)]
    with torch.no_grad():
        wanted = float(peer._compute_loss(theirs, inputs, False))
        known = answer_logps(reference.model, batch)[0]
        rewards, nll = (
            rewards_of(answer_logps(policy.model, batch)[0], known, 0.1),
            answer_logps(policy.model, batch)[1],
        )
        parts = mixed_loss(rewards, nll, weights=WEIGHTS, shift=0.0)
    assert float((parts.dpo, parts.bco, parts.sft)[index]) == pytest.approx(wanted, rel=1e-6)


def test_the_running_shift_equals_that_of_trl_when_it_had_one() -> None:
    # made by TRL 0.19.1, the DPOTrainer.dpo_loss of three batches with loss_type "bco_pair"
    for case in json.loads((Path(__file__).parent / "oracle_trl_bco.json").read_text(encoding="utf-8")):
        shift = RewardShift()
        for step in case["steps"]:
            rewards = rewards_of(torch.tensor(step["policy"]), torch.tensor(step["reference"]), case["beta"])
            shift.update(rewards)
            mixed = mixed_loss(rewards, torch.zeros(()), weights=(0.0, 1.0, 0.0), shift=shift.mean)
            assert shift.mean == pytest.approx(step["mean"], rel=1e-6)
            assert float(mixed.loss) == pytest.approx(step["loss"], rel=1e-6)
