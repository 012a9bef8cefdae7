"""Each filter keeps what it should and says why it drops the rest."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import pytest
from andes_curation import Curation
from andes_curation.clusters import lsa
from andes_curation.leak import passages
from andes_curation.score import by_rules
from PIL import Image
from sklearn.datasets import load_sample_image

from andes_sdk.errors import TrainingError


def filters(**options):
    return {f.name: f for f in Curation(**options).andes_data_filters()}


def talk(question, answer, *pictures):
    parts = [{"type": "image", "image": str(p)} for p in pictures]
    return {
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answer},
        ]
    }


def reasons(one, samples):
    return [reason for _, reason in one.apply(samples)]


@pytest.fixture
def flower(tmp_path):
    path = tmp_path / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(path)
    return path


@pytest.fixture
def china(tmp_path):
    path = tmp_path / "china.png"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path


def test_modality_drops_broken_pictures_missing_answers_and_what_is_not_wanted(tmp_path, flower):
    (tmp_path / "torn.png").write_bytes(flower.read_bytes()[:500])
    samples = [
        talk("?", "a flower", flower),
        talk("?", "a flower", tmp_path / "torn.png"),
        talk("?", "a flower", tmp_path / "nowhere.png"),
        talk("?", "  ", flower),
        talk("2 + 2?", "4"),
        talk("?", "two flowers", flower, tmp_path / "flower.png"),
    ]
    found = reasons(filters(modalities=["image"])["modality"], samples)
    assert found[0] is None
    assert found[1].startswith("a picture is broken")
    assert found[2].startswith("a picture is broken")
    assert found[3] == "has no answer"
    assert found[4] == "its modality is text"
    assert found[5] is None, "the same picture twice is one picture"


def test_a_picture_saved_again_at_another_size_and_quality_is_a_duplicate_and_another_picture_is_not(
    tmp_path, flower, china
):
    with Image.open(flower) as image:
        image.resize((300, 200)).save(tmp_path / "small.jpg", quality=60)
    samples = [
        talk("What is this?", "A flower.", flower),
        talk("what is THIS", "a flower", tmp_path / "small.jpg"),
        talk("What is this?", "A flower.", china),
        talk("What is this?", "A tree.", flower),
    ]
    assert [r is None for r in reasons(filters()["duplicates"], samples)] == [True, False, True, True]


def test_bits_allowed_decide_about_near_pictures(tmp_path, flower):
    with Image.open(flower) as image:
        image.rotate(2, Image.Resampling.BICUBIC).save(tmp_path / "turned.png")
    samples = [talk("?", "a", flower), talk("?", "a", tmp_path / "turned.png")]
    assert reasons(filters(distance=0)["duplicates"], samples)[1] is None
    assert reasons(filters(distance=24)["duplicates"], samples)[1] is not None


@pytest.mark.parametrize(
    ("box", "word"),
    [("(10,10),(1200,500)", "outside"), ("(500,10),(100,20)", "swapped"), ("(1,2", "not written"), ("(1,2),(3,4)", "")],
)
def test_boxes_outside_their_picture_or_written_wrongly_are_dropped(box, word):
    (reason,) = reasons(filters()["boxes"], [talk("Where?", f"<|box_start|>{box}<|box_end|>")])
    assert (word in reason) if word else (reason is None)


def test_a_leak_is_a_shared_picture_or_half_of_a_question(tmp_path, flower, china):
    long = "If a train leaves the station at noon and travels at sixty miles an hour how far is it at three"
    bench = tmp_path / "bench.jsonl"
    bench.write_text(
        "\n".join(json.dumps(s) for s in [talk("What is this?", "A flower.", flower.name), talk(long, "180")])
    )
    leak = filters(benchmarks=[str(bench)])["leak"]
    found = reasons(
        leak,
        [
            talk("Describe it.", "…", flower),
            talk("What is this?", "China.", china),
            talk(f"Please answer. {long.upper()}?", "180"),
            talk("If a train leaves the station at noon and I stay here what shall I eat for lunch today", "soup"),
        ],
    )
    assert found[0] == f"a picture stands in a benchmark: {bench}:1"
    assert found[1] is None, "a short question that every benchmark shares is no leak without its picture"
    assert found[2] == f"its question stands in a benchmark: {bench}:2"
    assert found[3] is None


def test_passages_are_runs_of_words_whatever_their_case_and_punctuation():
    assert passages("One, two; three FOUR", 3) == passages("one two three four", 3)
    assert len(passages("one two three four", 3)) == 2
    assert passages("one two", 3) == set()


def test_a_changed_benchmark_makes_known_facts_unknown(tmp_path):
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps(talk("a", "b")))
    before = filters(benchmarks=[str(bench)])["leak"].version
    bench.write_text(json.dumps(talk("a", "c")))
    assert filters(benchmarks=[str(bench)])["leak"].version != before
    with pytest.raises(TrainingError, match="no such benchmark"):
        _ = filters(benchmarks=[str(tmp_path / "no.jsonl")])["leak"].version


TASKS = {
    "count": "How many {} are there in the picture, count them please",
    "sum": "Compute the sum of {} and seven and give the number",
    "read": "Read the text on the sign about {} and write it down",
}
WORDS = ["apples", "chairs", "dogs", "birds", "boats", "cups", "trees", "books", "lamps", "doors"]


def test_clusters_find_the_tasks_and_hold_each_to_its_quota():
    sizes = {"count": 60, "sum": 25, "read": 10}
    samples = [
        talk(TASKS[task].format(f"{WORDS[i % 10]} {WORDS[i // 10]}"), "x")
        for task, n in sizes.items()
        for i in range(n)
    ]
    one = filters(clusters=3, quota=15)["clusters"]
    facts = [one.describe(s) for s in samples]
    labels = one.labels(facts)
    assert [len(set(labels[a:b])) for a, b in ((0, 60), (60, 85), (85, 95))] == [1, 1, 1]
    assert len(set(labels)) == 3
    kept = [r is None for r in one.decide(facts)]
    assert [sum(kept[a:b]) for a, b in ((0, 60), (60, 85), (85, 95))] == [15, 15, 10]
    assert one.decide(facts) == filters(clusters=3, quota=15)["clusters"].decide(facts)
    assert kept != [r is None for r in filters(clusters=3, quota=15, seed=1)["clusters"].decide(facts)]


def test_the_number_of_clusters_is_found_and_odd_texts_do_no_harm():
    samples = [talk(TASKS[task].format(f"{a} {b}"), "x") for task in TASKS for a in WORDS for b in WORDS[:3]]
    one = filters(quota=5)["clusters"]
    labels = one.labels([one.describe(s) for s in samples])
    assert 2 <= len(set(labels)) <= 8
    assert reasons(one, [talk("", "x")] * 7).count(None) == 5
    assert reasons(one, [talk("!?", "x"), talk("…", "y")]) == [None, None]
    assert lsa(["!", "?"]).shape == (2, 1)


@pytest.mark.parametrize(
    ("question", "answer", "score"),
    [
        ("2+2?", "4", 4.0),
        ("2+2?", " ", 1.0),
        ("Say it.", "say it!", 2.0),
        ("?", "no no " * 200, 2.0),
        ("?", "a\ufffd", 2.0),
    ],
)
def test_rules_sort_out_what_needs_no_judge(question, answer, score):
    assert by_rules(question, answer)[0] == score


class Judge:
    """A server of our own that speaks the chat and embeddings protocols."""

    def __init__(self):
        self.asked, self.failures, self.reply = [], 0, None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body, self.headers.get("Authorization")))
                if outer.failures:
                    outer.failures -= 1
                    self.send_error(503)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(outer.answer(body)).encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body):
        if "input" in body:
            return {"data": [{"embedding": [float("sum" in body["input"]), 1.0]}]}
        text = body["messages"][1]["content"][-1]["text"]
        score = 2 if "wrong" in text else 5
        return self.reply or {
            "choices": [{"message": {"content": f'Well: {{"score": {score}, "reason": "so it is"}}'}}]
        }


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr("andes_training.server.PAUSE_SECONDS", 0.0)
    made = Judge()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_judge_sees_pictures_question_and_answer_and_its_reason_is_kept(judge, flower, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    score = filters(judge="big", server=judge.address, key="JUDGE_KEY", folders=[str(flower.parent)])["score"]
    assert reasons(score, [talk("What?", "right", flower), talk("What?", "wrong")]) == [
        None,
        "scores 2 of 5: so it is",
    ]
    path, body, key = judge.asked[0]
    assert (path, key, body["temperature"]) == ("/v1/chat/completions", "Bearer secret", 0)
    with Image.open(BytesIO(flower.read_bytes())) as image:
        assert image.size == (640, 427)
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_busy_server_is_asked_again_and_a_dead_or_babbling_one_is_an_error(judge):
    judge.failures = 2
    score = filters(judge="big", server=judge.address)["score"]
    assert reasons(score, [talk("What?", "right")]) == [None]
    judge.failures = 99
    with pytest.raises(TrainingError, match="failed 4 times"):
        reasons(score, [talk("What?", "right")])
    judge.failures, judge.reply = 0, {"choices": [{"message": {"content": "I like it"}}]}
    with pytest.raises(TrainingError, match="no score"):
        reasons(score, [talk("What?", "right")])
    with pytest.raises(TrainingError, match="no server"):
        reasons(filters(judge="big")["score"], [talk("What?", "right")])


def test_embeddings_of_a_server_make_the_clusters(judge):
    one = filters(embeddings="small", server=judge.address, clusters=2, quota=1)["clusters"]
    facts = [one.describe(talk(q, "x")) for q in ("sum of a", "sum of b", "read c")]
    assert one.labels(facts)[0] == one.labels(facts)[1] != one.labels(facts)[2]
