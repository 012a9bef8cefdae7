"""Compressors, backends, rewards, data filters and benchmarks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import define, evolve, field
from torch import Tensor

from andes_sdk.errors import BackendUnavailable, SessionError
from andes_sdk.numbers import quantised, range_problem
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.runtime.torch_backend import TorchBackend
from andes_sdk.testing.material import answer_to_everything, conversation, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_bits, require_close, require_finite
from andes_sdk.testing.weights import expect_refusal
from andes_sdk.types import Backend, Benchmark, Cache, Compressed, Compressor, DataFilter, Reward, Rows, Work

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

SAMPLES: tuple[dict[str, Any], ...] = tuple(
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "answer": a, "id": i}
    for i, (q, a) in enumerate(
        [("2 + 2?", "4"), ("Say nothing.", ""), ("2 + 2?", "4"), ("颜色？", "红" * 500), ("?", "?")]
    )
)


# ---------------------------------------------------------------- compressors


@check("compressors", "every compressor has a name of its own")
def _compressor_names(subject: Subject) -> None:
    subject.objects("andes_compressors", Compressor)


@check("compressors", "the compressed model computes, and facts are told")
def _compresses(subject: Subject) -> None:
    for compressor in subject.objects("andes_compressors", Compressor):
        pipe = subject.pipeline()
        told = compressor.compress(pipe.model)
        require(isinstance(told, Compressed), f"{compressor.name!r} returns {type(told).__name__}, not Compressed")
        require(isinstance(told.report, Mapping) and told.report, f"{compressor.name!r} tells {told.report!r}")
        logits = answer_to_everything(pipe.model, pipe.prepare(conversation(0)))
        require_finite(logits, f"logits of the model compressed by {compressor.name!r}")


@check("compressors", "codes are the weights of the compressed model, and ranges can be")
def _codes(subject: Subject) -> None:
    for compressor in subject.objects("andes_compressors", Compressor):
        model = subject.pipeline().model
        told = compressor.compress(model)
        own, ranges = quantised(model)
        codes, state = {**own, **told.codes}, model.state_dict()
        for name, one in codes.items():
            require(name in state, f"{compressor.name!r} gives codes of {name}, which the model does not have")
            weights = torch.from_numpy(one.weights()).reshape(state[name].shape)
            require_close(state[name].float(), weights, 1e-6, f"{name} against the codes of {compressor.name!r}")
        for name, one in {**ranges, **told.ranges}.items():
            require(f"{name}.weight" in state, f"{compressor.name!r} gives a range of {name}, which has no weight")
            require(not range_problem(one), f"range of {name}: {range_problem(one)}")


# ---------------------------------------------------------------- backends


def backends_of(subject: Subject) -> list[Any]:
    """The backends that a plugin brings."""
    return subject.objects("andes_backends", Backend)


def compiled_of(subject: Subject, backend: Any, taps: Sequence[int] = ()) -> Any:
    """The subject's model, compiled anew."""
    return backend.compile(subject.pipeline().model, device="cpu", dtype="float32", taps=taps)


def tolerance_of(backend: Any) -> float:
    """How far from torch a backend's numbers may be, relative to the largest."""
    return float(getattr(backend, "tolerance", 1e-4))


@check("backends", "every backend has a name of its own, says its rows, and facts that are texts")
def _backend_names(subject: Subject) -> None:
    for backend in backends_of(subject):
        require(backend.name != "torch", "a backend takes the core's name, 'torch'")
        rows = backend.rows
        require(rows is None or (type(rows) is int and rows > 0), f"backend {backend.name!r} has rows {rows!r}")
        told = compiled_of(subject, backend).facts()
        texts = all(isinstance(k, str) and isinstance(v, str) for k, v in told.items())
        require(told and texts, f"backend {backend.name!r} tells {told!r}")


def _parts(rows: Sequence[Rows]) -> dict[str, Tensor]:
    names = ("logits", "hidden", "embeds", "features")
    return {name: torch.cat([getattr(one, name) for one in rows]) for name in names}


@check("backends", "logits and tapped rows equal the torch backend's")
def _backend_logits(subject: Subject) -> None:
    layers = subject.pipe.model.text.layers
    for backend in backends_of(subject):
        answers = []
        for compiled in (compiled_of(subject, one, (0, layers)) for one in (TorchBackend(), backend)):
            session, found = compiled.session(KeepAll()), []
            for work in session.chunks(subject.pipe.prepare(conversation(0))):
                found += compiled.step([work])
                session.commit(reading=work.reading)
            found += compiled.step([Work(session=session, tokens=[1, 2, 3, 4], parents=[-1, 0, 0, -1])])
            session.commit([0, 2])
            found += compiled.step([Work(session=session, tokens=[5, 6, 7])])
            session.close()
            answers.append(_parts(found))
        wanted, got = answers
        for part, values in wanted.items():
            message = f"backend {backend.name!r}: {part} of a prompt, a tree and a chain against torch"
            require_close(got[part], values, tolerance_of(backend), message)


def _trio(subject: Subject, compiled: Any) -> list[Work]:
    """A prompt, a chain and a tree, each in a session of its own that has read something else."""
    sessions = [compiled.session(KeepAll()) for _ in range(3)]
    for number, session in enumerate(sessions):
        session.prefill(plain_inputs(subject.pipe, 5 + number, seed=number))
    prompt = next(iter(sessions[0].chunks(plain_inputs(subject.pipe, 9))))
    chain = Work(session=sessions[1], tokens=[1, 2])
    return [prompt, chain, Work(session=sessions[2], tokens=[3, 4, 5, 6], parents=[-1, 0, 0, -1])]


@check("backends", "several sessions in one step equal each alone, and an error in it changes none")
def _backend_together(subject: Subject) -> None:
    for backend in backends_of(subject):
        compiled, named = compiled_of(subject, backend, (0,)), f"backend {backend.name!r}: "
        alone = [compiled.step([work])[0] for work in _trio(subject, compiled)]
        trio = _trio(subject, compiled)
        for what, guilty, bad in _mistakes(trio):
            _refused(compiled, trio, what=named + what, guilty=guilty, bad=bad)
        together = compiled.step(trio)
        require(len(together) == 3, f"{named}gives {len(together)} answers to 3 works")
        for number, (got, wanted) in enumerate(zip(together, alone, strict=True)):
            for part, values in _parts([wanted]).items():
                message = f"{named}{part} of session {number} in a step of three, after steps that failed"
                require_close(_parts([got])[part], values, tolerance_of(backend), message)
        for work in trio:
            work.session.close()


def _mistakes(trio: Sequence[Work]) -> Iterator[tuple[str, Any, Work]]:
    """What a step must refuse: what it is, the session to blame if that is plain, and the work."""
    _, chain, tree = trio
    yield "a token that does not exist", tree.session, evolve(tree, tokens=[3, 10**9, 5, 6])
    yield "parents that point forward", None, evolve(tree, parents=[-1, 0, 3, -1])
    yield "one session twice", chain.session, chain


def _refused(compiled: Any, trio: Sequence[Work], *, what: str, guilty: Any, bad: Work) -> None:
    """A step of the first two works and a bad one raises, and every session is as it was."""
    before = [(w.session.length, w.session.stats.rows) for w in trio]
    try:
        compiled.step([*trio[:2], bad])
    except SessionError as error:
        blamed = guilty is None or error.session is guilty
        require(blamed, f"{what} in a step: the error does not say which session is to blame")
    else:
        require(False, f"{what} in a step is taken")
    after = [(w.session.length, w.session.stats.rows) for w in trio]
    require(after == before, f"{what} in a step: sessions hold {after}, before {before}")


@check("backends", "a fork and a restored session go on as the original, to the bit, and apart from it")
def _backend_forks(subject: Subject) -> None:
    for backend in backends_of(subject):
        compiled, named = compiled_of(subject, backend), f"backend {backend.name!r}: "
        session = compiled.session(KeepAll())
        session.prefill(subject.pipe.prepare(conversation(0)))
        session.extend([1, 2, 3], [-1, 0, 0])
        session.commit([0, 2])
        state = session.state()
        fork, twin = session.fork(), compiled.restore(state, KeepAll())
        require(fork.length == twin.length == session.length, f"{named}a fork or a restored session has other rows")
        _go_on(fork, [9, 8])  # whatever a fork does, the original and the state know nothing of it
        wanted = _go_on(session, [4, 5])
        require_bits(_go_on(twin, [4, 5]), wanted, f"{named}logits of a restored session against the original's")
        late = compiled.restore(state, KeepAll())
        require_bits(_go_on(late, [4, 5]), wanted, f"{named}logits of a session restored later")
        other = _go_on(compiled.restore(state, KeepAll()), [9, 8], [7])
        require_bits(_go_on(fork, [7]), other[2:], f"{named}logits of a fork after its original went on")


def _go_on(session: Any, *steps: Sequence[int]) -> Tensor:
    """Logits of steps, each committed."""
    found = []
    for tokens in steps:
        found.append(session.extend(tokens)[0])
        session.commit()
    return torch.cat(found)


@define(eq=False)
class Inspector:
    """A policy, and its keeper, that keeps every row and writes down all that it is shown."""

    taps: Sequence[int]
    heads: int
    seen: list[tuple[str, Tensor]] = field(factory=list)
    name: str = "inspector"
    window: int = 3
    replays: bool = True

    def budget(self, seen: int) -> int | None:
        """No limit."""
        return None

    def open(self, state: Mapping[str, Tensor] | None = None) -> Inspector:
        """Itself."""
        return self

    def state(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The first numbers of each row."""
        return hidden[:, : self.heads].T.clone()

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Always."""
        return True

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """All rows."""
        require(cache.embeds is not None and len(cache.embeds) == cache.seen, "a policy that replays gets no inputs")
        embeds, shown = cast("Tensor", cache.embeds), []
        for layer in cache.layers:
            parts = {"keys": layer.keys, "values": layer.values, "positions": layer.positions}
            parts |= {"queries": list(layer.queries), "scores": layer.scores or []}
            self.seen += [(f"{name} of layer {layer.index}", torch.stack(list(p))) for name, p in parts.items() if p]

        def look(layer: int, queries: Tensor, keys: Tensor) -> None:
            shown.append(layer)
            self.seen.extend([(f"replayed queries of layer {layer}", queries.clone())])
            self.seen.extend([(f"replayed keys of layer {layer}", keys.clone())])

        cache.replay(embeds[:4], look)
        require(shown == list(range(len(cache.layers))), f"a replay shows the layers {shown}")
        self.seen.append(("inputs", embeds.clone()))
        return [None] * len(cache.layers)


@check("backends", "a policy sees rows, queries, scores and replays as torch shows them, and a replay leaves no trace")
def _backend_shows(subject: Subject) -> None:
    spec = subject.pipe.model.text
    taps = (spec.layers - 1,)
    for backend in backends_of(subject):
        named, notes, off = f"backend {backend.name!r}: ", [], tolerance_of(backend)
        for one in (TorchBackend(), backend):
            compiled, inspector = compiled_of(subject, one, taps), Inspector(taps, spec.kv_heads)
            watched, plain = compiled.session(inspector), compiled.session(KeepAll())
            for session in (watched, plain):
                session.prefill(subject.pipe.prepare(conversation(0)))
                session.extend([1, 2, 3, 4], [-1, 0, 0, -1])
                session.commit([0, 2])
            notes.append(inspector.seen)
        require_close(_go_on(watched, [5]), _go_on(plain, [5]), off, f"{named}logits after a replay, against none")
        rows = watched.stats.rows
        require(rows == plain.stats.rows, f"{named}holds {rows} rows after replays, {plain.stats.rows} without")
        for (name, got), (wanted, values) in zip(notes[1], notes[0], strict=False):
            require(name == wanted, f"{named}shows {name} where torch shows {wanted}")
            require_close(got.float(), values.float(), off, f"{named}{name} against torch")


@check("backends", "an absent device is refused")
def _backend_device(subject: Subject) -> None:
    for backend in backends_of(subject):
        model = subject.pipeline().model
        for device in ("cuda:99", "abacus"):
            expect_refusal(
                lambda b=backend, d=device, m=model: b.compile(m, device=d, dtype="float32"),  # type: ignore[misc]
                f"backend {backend.name!r} takes the device {device!r}",
                (BackendUnavailable,),
            )


# ---------------------------------------------------------------- rewards


@check("rewards", "every reward has a name of its own")
def _reward_names(subject: Subject) -> None:
    subject.objects("andes_rewards", Reward)


@check("rewards", "a score is a finite number, the same each time")
def _reward_scores(subject: Subject) -> None:
    for reward in subject.objects("andes_rewards", Reward):
        # a reward that wants more of a sample than its answer names samples of its own
        for sample in getattr(subject.cls, "samples", SAMPLES):
            for answer in (str(sample.get("answer", "")), "", "something else 🙂"):
                one, two = (reward.score(copy.deepcopy(sample), answer) for _ in range(2))
                number = isinstance(one, float) and math.isfinite(one)
                require(number, f"reward {reward.name!r} gives {one!r}")
                require(one == two, f"reward {reward.name!r} gives {one} and then {two} for the same answer")


def _pairs(subject: Subject) -> list[tuple[Mapping[str, Any], str]]:
    """Samples with answers of many kinds, and each sample again with another truth: one answer, two truths."""
    pairs = []
    for sample in getattr(subject.cls, "samples", SAMPLES):
        answers = ["", "something else 🙂", "x" * 20_000]
        for value in sample.values():
            if isinstance(value, str):
                answers += [value, f"<think>so</think>\n<answer>{value}</answer>", f"\\boxed{{{value}}}"]
            elif isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
                answers.append("<|box_start|>({},{}),({},{})<|box_end|>".format(*value))
        for truth in (sample, {**sample, "answer": _other(str(sample.get("answer", "")))}):
            pairs += [(truth, answer) for answer in answers]
    return pairs


def _other(truth: str) -> str:
    """Another truth of the same kind: the next number, or another text."""
    return str(int(truth) + 1) if truth.isdecimal() else "another truth"


def _scores(reward: Any, pairs: Sequence[tuple[Mapping[str, Any], str]]) -> list[float]:
    return [reward.score(copy.deepcopy(sample), answer) for sample, answer in pairs]


@check("rewards", "a score depends on sample and answer alone, early and late, in any order")
def _reward_memory(subject: Subject) -> None:
    pairs = _pairs(subject)
    backwards = subject.objects("andes_rewards", Reward)
    for number, reward in enumerate(subject.objects("andes_rewards", Reward)):
        wanted, named = _scores(reward, pairs), f"reward {reward.name!r}: "
        got = _scores(backwards[number], pairs[::-1])[::-1]
        differ = [n for n, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b]
        require(not differ, f"{named}scored in the other order, {len(differ)} of {len(pairs)} scores differ")
        for _ in range(100):
            _scores(reward, pairs[:3])
        late = _scores(reward, pairs)
        require(late == wanted, f"{named}after some hundred scores the same answers are worth something else")


@check("rewards", "answers are not all worth the same")
def _reward_varies(subject: Subject) -> None:
    pairs = _pairs(subject)
    for reward in subject.objects("andes_rewards", Reward):
        scores = set(_scores(reward, pairs))
        require(len(scores) > 1, f"reward {reward.name!r} gives {scores} to {len(pairs)} answers, right and wrong")


@check("rewards", "the right answer is worth no less than a wrong one")
def _reward_direction(subject: Subject) -> None:
    for reward in subject.objects("andes_rewards", Reward):
        for sample in getattr(subject.cls, "samples", SAMPLES):
            right = str(sample.get("answer", ""))
            if right:
                pairs = [(sample, right), (sample, "#" * len(right))]
                good, bad = _scores(reward, pairs)
                require(good >= bad, f"reward {reward.name!r} gives {good} to the right answer, {bad} to a wrong one")


# ---------------------------------------------------------------- data filters


def _filters(subject: Subject) -> list[Any]:
    return subject.objects("andes_data_filters", DataFilter)


@check("data_filters", "every filter has a name of its own")
def _filter_names(subject: Subject) -> None:
    _filters(subject)


@check("data_filters", "every sample comes out once, unchanged, kept or with a reason")
def _filter_complete(subject: Subject) -> None:
    for one in _filters(subject):
        out = list(one.apply(copy.deepcopy(list(SAMPLES))))
        ids = sorted(sample["id"] for sample, _ in out)
        require(
            ids == list(range(len(SAMPLES))), f"filter {one.name!r}: samples 0 to {len(SAMPLES) - 1} come out as {ids}"
        )
        for sample, reason in out:
            require(sample == SAMPLES[sample["id"]], f"filter {one.name!r} changes sample {sample['id']}")
            said = reason is None or (isinstance(reason, str) and reason.strip())
            require(said, f"filter {one.name!r} drops sample {sample['id']} with the reason {reason!r}")
        require(list(one.apply([])) == [], f"filter {one.name!r} makes samples out of nothing")


@check("data_filters", "takes a stream, and decides alike each time")
def _filter_stream(subject: Subject) -> None:
    def stream() -> Iterator[Mapping[str, Any]]:
        # samples that no other check has shown it: a filter that remembers would call those seen
        for sample in copy.deepcopy(SAMPLES):
            yield {**sample, "id": sample["id"] + 100}

    for one in _filters(subject):
        first, again = ([(s["id"], reason) for s, reason in one.apply(stream())] for _ in range(2))
        require(first == again, f"filter {one.name!r} decides otherwise the second time")


# ---------------------------------------------------------------- benchmarks


@check("benchmarks", "every benchmark has a name of its own")
def _benchmark_names(subject: Subject) -> None:
    subject.objects("andes_benchmarks", Benchmark)


@check("benchmarks", "a short run gives finite numbers")
def _benchmark_runs(subject: Subject) -> None:
    for benchmark in subject.objects("andes_benchmarks", Benchmark):
        scores = benchmark.run(subject.pipe, limit=2)
        require(scores, f"benchmark {benchmark.name!r} gives no score")
        for name, score in scores.items():
            number = isinstance(score, float) and math.isfinite(score)
            require(number, f"benchmark {benchmark.name!r}: {name} is {score!r}")
