"""Qwen3 in plain torch, bit for bit what transformers' class computes; and packed models run without transformers."""

import subprocess
import sys

import pytest
import torch
from andes_qwen3 import Qwen3
from andes_qwen3.plain import PlainQwen3

from andes_sdk.runtime.attention import PackedAttention, Segment


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False, "attention_bias": True, "rope_theta": 5000.0}])
def test_names_hidden_states_taps_and_logits_are_those_of_transformers(config, dtype):
    torch.manual_seed(0)
    plugin = Qwen3(preset="tiny", config=config)
    stock = plugin.andes_language_model(packed=False).to(dtype).eval()
    plain = plugin.andes_language_model(packed=True)
    assert isinstance(plain, PlainQwen3)
    assert list(plain.state_dict()) == list(stock.state_dict())
    plain = plain.to(dtype).eval()
    plain.load_state_dict(stock.state_dict())
    plain.tie_weights()
    assert (plain.spec, plain.tied, plain.linears()) == (stock.spec, stock.tied, stock.linears())
    ids = torch.tensor([3, 250, 17, 99, 400, 8, 8, 511, 0, 42, 77])
    positions = torch.cat([torch.arange(6), torch.arange(5)])
    seen = []
    with torch.no_grad():
        for model in (stock, plain):
            taps = []
            attend = PackedAttention([Segment(6), Segment(5)])
            hidden = model.hidden_states(model.embed(ids), positions, attend, lambda n, x, to=taps: to.append((n, x)))
            seen.append((taps, hidden, model.logits(hidden)))
    for (taps, *rest), (others, *right) in [seen]:
        assert [n for n, _ in taps] == [n for n, _ in others] == [0, 1, 2]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(taps, others, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(rest, right, strict=True))


def test_other_rotary_positions_are_left_to_transformers():
    scaled = Qwen3(preset="tiny", config={"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert not isinstance(scaled.andes_language_model(packed=True), PlainQwen3)


def test_nothing_of_it_imports_transformers():
    code = "import sys, andes_qwen3.plain, andes_qwen3.tokenizer; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
