import importlib
import importlib.metadata
import subprocess
import sys
import tomllib

import pytest
import torch

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.scaffold import KINDS, create
from andes_sdk.testing import run_checks

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Scaffold a kind and import it as an installed distribution would be: by its entry point."""

    def make(kind, name):
        created = create(name, kind, tmp_path)
        monkeypatch.syspath_prepend(str(created.folder))
        project = tomllib.loads((created.folder / "pyproject.toml").read_text())["project"]
        ((entry, target),) = project["entry-points"]["andes_sdk.v1.plugins"].items()
        assert entry == name
        module, _, cls = target.partition(":")
        return getattr(importlib.import_module(module), cls), created, project

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_keeps_the_contract_as_it_is_made(kind, made):
    cls, _, _ = made(kind, f"fresh-{kind}")
    results = run_checks(cls)
    assert [(r.id, r.reason) for r in results if r.status == "failed"] == []
    assert sum(r.status == "passed" for r in results) >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_distribution_names_its_parts_after_the_plugin_and_leaves_no_placeholder(kind, made):
    cls, created, project = made(kind, f"named-{kind}")
    assert project["name"] == f"andes-named-{kind}"
    assert cls.__module__ == f"andes_named_{kind.replace('-', '_')}"
    assert set(created.files) >= {"LICENSE", "README.md", "pyproject.toml", "tests/test_conformance.py"}
    for path in created.files:
        text = (created.folder / path).read_text(encoding="utf-8")
        assert "noqa" not in text
        assert path == "LICENSE" or ("Example" not in text and '"example"' not in text and "NAME" not in text), path
    requirements = " ".join(project["dependencies"])
    source = "".join((created.folder / p).read_text() for p in created.files if p.endswith(".py"))
    assert ("import torch" in source or "from torch" in source) <= ("torch" in requirements)
    assert ("from PIL" in source) <= ("pillow" in requirements)


def test_importing_a_new_encoder_does_not_import_torch(tmp_path):
    folder = create("lazy", "encoder", tmp_path).folder
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import andes_lazy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_new_decoder_changes_nothing_but_the_number_of_passes(made):
    cls, _, _ = made("decoder", "lookup")
    options = GenerationOptions(max_tokens=24, temperature=0.7, seed=3)
    asked = [{"role": "user", "content": "one two one two one two"}]
    plain = Pipeline.from_plugins(TINY, seed=1).generate(asked, options)
    guessed = Pipeline.from_plugins([*TINY, cls()], seed=1).generate(asked, options)
    assert guessed.tokens == plain.tokens
    assert guessed.finish == plain.finish


def test_the_new_backend_gives_a_row_the_same_bits_alone_and_among_others(made):
    cls, _, _ = made("backend", "rows")
    layer = torch.nn.Linear(96, 80)
    rows = torch.randn(33, 96, generator=torch.Generator().manual_seed(0))
    module = importlib.import_module(f"{cls.__module__}.backend")
    ours = module.RowLinear(layer)
    assert torch.equal(ours(rows)[7], ours(rows[7:8])[0])
    assert ours(rows[None, :0]).shape == (1, 0, 80)
    # the same products in another order of additions
    torch.testing.assert_close(ours(rows), layer(rows), atol=1e-5, rtol=0)


def test_the_new_compressor_reports_bits_and_error_of_what_it_rounded(made):
    cls, _, _ = made("compressor", "rounder")
    (rounding,) = cls(bits=4).andes_compressors()
    model = torch.nn.ModuleList([torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(4, 2)])
    model[1].weight = model[0].weight  # a tied head keeps the embedding's precision
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[7.0, -7.0, 2.4, 0.0], [0.7, 0.1, 0.24, -0.06]]))
    table = model[0].weight.clone()
    report = rounding.compress(model).report
    assert torch.equal(model[0].weight, table)
    # 4 bits: levels -7..7; steps are 1 and 0.1, so 2.4 -> 2, 0.24 -> 0.2, -0.06 -> -0.1
    wanted = torch.tensor([[7.0, -7.0, 2.0, 0.0], [0.7, 0.1, 0.2, -0.1]])
    torch.testing.assert_close(model[2].weight.detach(), wanted, atol=1e-6, rtol=0)
    assert report["layers"] == 1
    assert report["bits_per_weight"] == 4 + 16 * 2 / 8
    with pytest.raises(ConfigError, match="unknown options"):
        rounding.compress(model, bit=3)


def test_the_new_modality_is_heard_by_the_new_language_model(made):
    hearing, _, _ = made("modality", "hearing")
    words, _, _ = made("language-model", "words")
    plugins = [TINY[0], "mlp", words(layers=1, heads=2, kinds=["audio"]), hearing(hop=2, stack=3)]
    pipe = Pipeline.from_plugins(plugins)
    (sense,) = pipe.model.senses.values()
    packed = sense.pack([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [8.0]])
    # 2 x 3 samples a row: seven samples are two rows, of which the second has five numbers of silence
    assert packed.data.tolist()[:5] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 0.0], [0.0, 0.0]]
    assert packed.sizes == ((2, 3), (1, 3))
    assert packed.rows == (2, 1)
    parts = [{"type": "audio", "audio": [0.5] * 7}, {"type": "text", "text": "what is that? ÿ"}]
    asked = [{"role": "user", "content": parts}]
    assert int((pipe.prepare(asked).ids == 255).sum()) == 2
    louder = [{"role": "user", "content": [{"type": "audio", "audio": [9.0] * 7}, parts[1]]}]
    logits = [pipe.session().prefill(pipe.prepare(messages)) for messages in (asked, louder)]
    assert not torch.equal(*logits)


def test_the_new_head_is_saved_and_a_checkpoint_may_lack_it(made, tmp_path):
    cls, _, _ = made("modules", "ahead")
    pipe = Pipeline.from_plugins([*TINY, cls(rank=3)], seed=1)
    text = pipe.model.text
    assert pipe.model.ahead(torch.zeros(5, text.width)).shape == (5, text.vocab_size)
    plain = Pipeline.from_plugins(TINY, seed=1).save_pretrained(tmp_path / "plain")
    opened = Pipeline.from_pretrained(plain, plugins=[*TINY, cls(rank=3)])
    assert torch.equal(opened.model.ahead.up.weight, pipe.model.ahead.up.weight)


def test_the_new_reward_reads_what_follows_the_thinking(made):
    cls, _, _ = made("reward", "exact")
    (reward,) = cls().andes_rewards()
    assert reward.score({"answer": "red"}, "<think>blue?</think>\n Red. ") == 1.0
    assert reward.score({"answer": "red"}, "dark red") == 0.0


def test_the_new_filter_passes_every_sample_on_and_says_why_one_is_dropped(made):
    cls, _, _ = made("data-filter", "sieve")
    (sieve,) = cls(shortest=3).andes_data_filters()

    def sample(answer):
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}

    samples = [sample("yes"), sample("no"), sample("yes"), {"messages": []}]
    reasons = [reason for _, reason in sieve.apply(samples)]
    assert reasons == [None, "an answer has 2 characters, fewer than 3", "occurred before", "has no answer"]


@pytest.mark.parametrize("name", ["", "Upper", "two words", "-dash", "dash-", "a--b", "9lives", "ü", "../up", "sdk"])
def test_a_name_that_cannot_be_a_distribution_is_refused(name, tmp_path):
    with pytest.raises(ConfigError):
        create(name, "reward", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_an_installed_plugin_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="andes-mlp registers this name"):
        create("mlp", "projector", tmp_path)


def test_nothing_is_overwritten(tmp_path):
    created = create("twice", "reward", tmp_path)
    before = {p: p.read_bytes() for p in created.folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="exists already"):
        create("twice", "decoder", tmp_path)
    assert {p: p.read_bytes() for p in created.folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["andes-twice"]
