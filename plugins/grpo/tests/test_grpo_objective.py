"""The objective against TRL's own code, on the same tensors, with gradients."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from andes_grpo import GRPO
from andes_grpo.objective import advantages, grpo_loss, overlong_penalty, weight
from andes_grpo.stage import FIGURES, GroupRelative
from andes_qwen3.model import Qwen3LanguageModel
from andes_training.packing import Row, collate
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from andes_sdk.runtime.attention import Segment

V = 40
FIELDS = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
PROMPTS = ((1, 2, 3), (7, 8, 9, 10, 11))
LENGTHS = ((4, 1, 6), (2, 6, 3))
LIMIT = 6


class Text(torch.nn.Module):
    """Our composition without pictures; image token V is none of theirs, so that both softmaxes have V entries."""

    def __init__(self, theirs):
        super().__init__()
        self.language_model = Qwen3LanguageModel.build({**FIELDS, "vocab_size": V + 1})
        state = theirs.state_dict()
        extra = torch.zeros(1, FIELDS["hidden_size"])
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], extra])
        self.language_model.load_state_dict(state)
        self.tokenizer = SimpleNamespace(placeholder=lambda kind: V)
        self.kinds = ("image",)
        self.text = self.language_model.spec

    def encode(self, media):
        assert not media
        return {}

    def embed(self, ids, rows):
        return self.language_model.embed(ids)

    def hidden_states(self, embeds, positions, attend):
        return self.language_model.hidden_states(embeds, positions, attend)

    def logits(self, hidden):
        return self.language_model.logits(hidden)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A real GRPOTrainer whose options each test sets."""
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**FIELDS, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4.0) if p.ndim > 1 else None
    bare = Tokenizer(models.WordLevel({f"t{i}": i for i in range(V)}, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="t0", eos_token="t1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages warn of at import
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=6, num_generations=3,
            max_completion_length=LIMIT, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        )  # fmt: skip
        made = GRPOTrainer(
            model, lambda completions, **_: [0.0] * len(completions), config,
            Dataset.from_list([{"prompt": "t1"}] * 8), processing_class=tokenizer,
        )  # fmt: skip
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def tensors(seed=3):
    """Answers, rewards and log-probabilities of an older policy, a reference and a sampler."""
    g = torch.Generator().manual_seed(seed)
    answers = [[torch.randint(2, V, (n,), generator=g) for n in ns] for ns in LENGTHS]
    rewards = torch.rand(2, 3, generator=g)
    noise = {
        k: [0.5 * torch.randn(n, generator=g) for ns in LENGTHS for n in ns] for k in ("old", "reference", "sampled")
    }
    return answers, rewards, noise


def theirs(trainer, options, answers, noise, gains, keep, logps=None):
    """TRL's loss on padded tensors; `logps` None: only what its model gives for the answers."""
    o, flat = options, [a for group in answers for a in group]
    trainer.loss_type, trainer.importance_sampling_level = o["loss_type"], o["level"]
    trainer.epsilon_low, trainer.epsilon_high = o["clip_low"], o["clip_high"]
    trainer.beta, trainer.args.use_bias_correction_kl = o["kl"], o["kl_correction"]
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = o["mismatch_cap"] is not None
    longest = max(map(len, PROMPTS))
    prompts = [PROMPTS[i] for i, group in enumerate(answers) for _ in group]
    pad = [longest - len(p) for p in prompts]
    right = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # noqa: E731
    mask = right([torch.full((len(a),), int(k)) for a, k in zip(flat, keep, strict=True)])
    inputs = {
        "prompt_ids": torch.tensor([[0] * n + list(p) for n, p in zip(pad, prompts, strict=True)]),
        "prompt_mask": torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts, strict=True)]),
        "completion_ids": right(flat),
        "completion_mask": mask,
        "advantages": gains,
        "num_items_in_batch": mask.sum(),
    }
    if logps is None:
        full = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], right([torch.ones(len(a), dtype=torch.long) for a in flat])], 1)
        with torch.no_grad():
            return trainer._get_per_token_logps_and_entropies(trainer.model, full, attention, mask.shape[1])[0]
    given = {k: logps + right(v) for k, v in noise.items()}
    inputs["ref_per_token_logps"] = given["reference"]
    if o["off_policy"]:
        inputs["old_per_token_logps"] = given["old"]
    if o["mismatch_cap"] is not None:
        old = given["old"] if o["off_policy"] else logps
        # TRL's mode "token_truncate"
        inputs["importance_sampling_ratio"] = (old - given["sampled"]).exp().clamp(max=o["mismatch_cap"])
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters()}


def ours(trainer, options, answers, noise, gains, keep, logps):
    o = options
    names = {"grpo": "sequence", "dr_grpo": "constant", "bnpo": "token", "dapo": "token"}
    stage = GroupRelative(
        GRPO(
            normalise=names[o["loss_type"]],
            level=o["level"],
            clip_low=o["clip_low"],
            clip_high=o["clip_high"],
            kl=o["kl"],
            kl_correction=o["kl_correction"],
            mismatch_cap=o["mismatch_cap"],
            max_answer=LIMIT,
        )
    )
    rows, at = [], 0
    for prompt, group in zip(PROMPTS, answers, strict=True):
        part = range(at, at := at + len(group))
        p = torch.tensor(prompt)
        flat = {
            k: torch.cat([logps[i, : len(a)] + noise[k][i] for i, a in zip(part, group, strict=True)]) for k in noise
        }
        if not o["off_policy"]:
            del flat["old"]
        rows.append(
            Row(
                ids=torch.cat([p[:-1], *(torch.cat([p[-1:], a[:-1]]) for a in group)]),
                labels=torch.cat([torch.full((len(p) - 1,), -100), *group]),
                segment=Segment(len(p) - 1, tuple(map(len, group))),
                media={},
                extras={
                    "advantage": gains[list(part)],
                    "keep": torch.tensor([keep[i] for i in part]),
                    "length": torch.tensor([len(a) for a in group]),
                    **flat,
                },
            )
        )
    batch = collate(rows)
    batch.extras["figures"] = torch.zeros(len(FIGURES))
    model = Text(trainer.model)
    loss, figures = stage.loss(model, batch)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.language_model.named_parameters()}, figures


BASE = {
    "loss_type": "dapo", "level": "token", "clip_low": 0.2, "clip_high": 0.28, "kl": 0.0, "kl_correction": True,
    "mismatch_cap": None, "off_policy": True,
}  # fmt: skip
CASES = [
    *({"loss_type": t, "level": level} for t in ("grpo", "bnpo", "dr_grpo", "dapo") for level in ("token", "sequence")),
    *({"loss_type": t, "kl": 0.1, "mismatch_cap": 1.3} for t in ("grpo", "bnpo", "dr_grpo", "dapo")),
    {"clip_high": 0.2},
    {"kl": 0.5, "kl_correction": False},
    {"kl": 0.5, "level": "sequence"},
    {"mismatch_cap": 1.1, "off_policy": False},
    {"off_policy": False, "loss_type": "grpo"},
]


@pytest.mark.parametrize("change", CASES, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()))
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "one answer masked"])
def test_loss_and_gradients_are_those_of_trl(trainer, change, cut):
    options = {**BASE, **change}
    answers, rewards, noise = tensors()
    gains = advantages(rewards).flatten()
    keep = [not (cut and i == 2) for i in range(6)]
    logps = theirs(trainer, options, answers, noise, gains, [True] * 6)
    want, wanted_grads = theirs(trainer, options, answers, noise, gains, keep, logps)
    got, grads, _ = ours(trainer, options, answers, noise, gains, keep, logps)
    # float32 sums in another order: padded there, packed here
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for name, grad in wanted_grads.items():
        mine = grads[name][: len(grad)]
        torch.testing.assert_close(mine, grad, rtol=1e-4, atol=1e-6 * max(1.0, float(grad.abs().max())), msg=name)


def test_defaults_are_the_loss_that_trl_takes_by_default_but_for_the_higher_clip():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import GRPOConfig

        config = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to=[])
    own = GRPO()
    assert config.loss_type == "dapo"
    assert own.normalise == "token"
    assert (config.importance_sampling_level, config.scale_rewards) == (own.level, own.scale) == ("token", "group")
    assert (config.epsilon, config.beta, config.num_iterations) == (own.clip_low, own.kl, own.epochs)
    assert (config.temperature, config.num_generations) == (own.temperature, own.group)
    assert config.use_bias_correction_kl == own.kl_correction
    assert config.epsilon_high is None
    assert own.clip_high == 0.28


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    plain = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(advantages(rewards, scale="none"), plain)
    deviation = (4 * 0.25 / 3) ** 0.5
    torch.testing.assert_close(advantages(rewards)[0], plain[0] / (deviation + 1e-4))
    assert torch.equal(advantages(rewards)[1], torch.zeros(4))


def test_the_overlong_penalty_falls_from_nought_to_minus_one_within_the_buffer():
    lengths = {0: 0.0, 80: 0.0, 85: -0.25, 90: -0.5, 100: -1.0}
    assert {n: overlong_penalty(n, max_answer=100, buffer=20) for n in lengths} == lengths


def test_batches_of_a_step_weigh_so_that_their_mean_is_that_of_one_batch():
    g = torch.Generator().manual_seed(1)
    lengths, gains = torch.tensor([3, 5, 1, 4]), torch.randn(4, generator=g)
    keep = torch.tensor([True, True, False, True])
    logps, old = (torch.randn(13, generator=g) for _ in range(2))
    for normalise in ("token", "sequence", "constant"):
        surrogate = GroupRelative(GRPO(normalise=normalise, max_answer=8)).surrogate

        def loss(answers, normalise=normalise, surrogate=surrogate):
            rows = torch.repeat_interleave(torch.arange(4), lengths)
            mine = torch.isin(rows, torch.tensor(answers))
            value, _ = grpo_loss(
                logps[mine], old=old[mine], advantages=gains[answers], answer=rows[mine] - answers[0],
                keep=keep[answers], surrogate=surrogate,
            )  # fmt: skip
            return value * (n := weight(normalise, keep[answers], lengths[answers])), n

        (whole, n), (one, n1), (two, n2) = loss([0, 1, 2, 3]), loss([0, 1]), loss([2, 3])
        assert n == n1 + n2 == {"token": 12, "sequence": 4, "constant": 4}[normalise]
        torch.testing.assert_close(one + two, whole, msg=normalise)


def test_a_step_whose_answers_are_all_masked_has_no_gradient():
    logps = torch.randn(5, requires_grad=True)
    loss, _ = grpo_loss(
        logps, advantages=torch.ones(1), answer=torch.zeros(5, dtype=torch.long), keep=torch.tensor([False]),
        surrogate=GroupRelative(GRPO()).surrogate,
    )  # fmt: skip
    loss.backward()
    assert loss == 0.0
    assert not logps.grad.any()
