"""The web page in Chromium: pictures, boxes, stopping, adapters, reloading; by keyboard, on a phone's width."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_serve.constraints import Grammars, Guided, grammar_of
from andes_serve.door import Door
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from andes_sdk import Pipeline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BOXES = (
    r"The two shapes are <\|box_start\|>\(100,200\),\(400,800\)<\|box_end\|> and "
    r"<\|box_start\|>\(550,150\),\(900,850\)<\|box_end\|>\."
)


def adapter(folder: Path) -> Path:
    """A LoRA adapter of one layer, as peft saves it."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 48), f"{name}.lora_B.weight": torch.ones(64, 2)}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    image = Image.new("RGB", (280, 168), "#eef3f2")
    pen = ImageDraw.Draw(image)
    pen.rectangle((28, 34, 112, 134), fill="#00695c")
    pen.ellipse((154, 26, 252, 142), fill="#ef6c00")
    image.save(tmp_path / "shapes.png")
    return tmp_path / "shapes.png"


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as own:
        made = own.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """A page, in which nothing may fail, and which may ask for nothing from elsewhere."""

    def go(url: str, ready: str = "#model option", **given: Any) -> Any:
        context = browser.new_context(**given)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"the page failed: {error}"))
        page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else faults.append(r.url))
        page.goto(url)
        page.wait_for_selector(ready, state="attached")
        return page

    faults: list[str] = []
    yield go
    assert faults == []


def boxes_only(pipe: Pipeline) -> Guided:
    """Every answer is two boxes: a model of random weights draws none by itself."""
    grammars = Grammars(pipe)
    grammar, param = grammar_of("regex", BOXES, "")
    return Guided(pipe.tokenizer, grammars.size, grammars.matcher(grammar, param))


def test_a_picture_is_sent_boxes_are_drawn_and_a_reload_keeps_them(start, open_page, shapes, tmp_path):
    pipe = Pipeline.from_plugins(
        [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], image={"min_size": 28}
    )
    pipe.add_adapter("bold", adapter(tmp_path / "bold"))
    with start(pipe, adapters=["bold"], defaults={"constraint": boxes_only(pipe)}) as served:
        page = open_page(served.url, viewport={"width": 390, "height": 844}, color_scheme="light")
        page.set_input_files("#file", str(shapes))
        page.wait_for_selector("#pictures img")
        assert page.evaluate("document.activeElement.id") == "text"
        page.keyboard.type("Where are the shapes?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer .facts:has-text('tokens')")
        assert page.inner_text(".answer .text") == "The two shapes are [1] and [2]."
        assert page.locator(".turn.user .box").count() == 2
        frame, box = (page.locator(s).first.bounding_box() for s in (".turn.user .shown img", ".turn.user .box"))
        assert box["x"] - frame["x"] == pytest.approx(0.1 * frame["width"], abs=1)
        assert box["width"] == pytest.approx(0.3 * frame["width"], abs=1)
        assert page.locator(".boxes li").all_inner_texts()[1] == "(550, 150) to (900, 850)"
        assert "of pictures" in page.inner_text(".answer .facts")
        # no part is wider than a phone
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shots = Path(os.environ.get("ANDES_PICTURES", tmp_path))
        page.screenshot(path=str(tmp_path / "phone.png"))
        page.reload()
        page.wait_for_selector(".turn.user .box")
        assert page.locator(".boxes li").count() == 2
        # the adapter answers the next question, which reads no picture again
        page.select_option("#model", "tiny:bold")
        page.fill("#text", "Again?")
        page.click("#send")
        page.wait_for_selector(".answer:nth-of-type(4) .facts:has-text('tokens')")
        text = served.http.get("/metrics").text
        assert 'andes_cache_total{cache="image",result="miss"} 1.0' in text
        page.click("#theme")
        assert page.get_attribute("html", "data-theme") == "dark"
        page.set_viewport_size({"width": 900, "height": 820})
        page.screenshot(path=str(shots / "serve.png"))
        page.click("#forget")
        assert page.locator(".turn").count() == 0


def test_an_answer_is_stopped_by_a_key_and_errors_are_told(served, open_page):
    page = open_page(served.url)
    page.click("#controls summary")
    page.fill("#max_tokens", "3900")
    page.select_option("#think", "false")
    page.fill("#temperature", "1")
    page.fill("#seed", "3")
    page.fill("#text", "Go on and on.")
    with served.held() as give:
        give(40)
        page.press("#text", "Enter")
        page.wait_for_selector(".answer .text:not(:empty)", state="attached")
        page.keyboard.press("Escape")
        page.wait_for_selector(".answer .facts:has-text('stopped')")
        assert served.idle()
    page.fill("#max_tokens", "100000")
    page.fill("#text", "Too much.")
    page.press("#text", "Enter")
    page.wait_for_selector(".error:has-text('max_tokens is 100000')")
    page.fill("#max_tokens", "4")
    page.select_option("#think", "true")
    page.fill("#text", "Think.")
    page.press("#text", "Enter")
    page.wait_for_selector(".answer:last-child details:not([hidden]) .thought", state="attached")
    page.wait_for_selector(".answer:last-child .facts:has-text('reasoning')")
    assert not page.locator(".answer:last-child .thought").is_visible()  # folded


def test_a_picture_that_is_dropped_waits_for_the_question_and_can_be_removed(served, open_page):
    page = open_page(served.url)
    page.evaluate("""async () => {
      const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 });
      const blob = await new Promise((done) => canvas.toBlob(done));
      for (const kind of ['drop', 'paste']) {
        const data = new DataTransfer();
        data.items.add(new File([blob], 'x.png', { type: 'image/png' }));
        const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true })
          : new ClipboardEvent('paste', { clipboardData: data, bubbles: true });
        document.body.dispatchEvent(event);
      }
    }""")
    page.wait_for_selector("#pictures .shown:nth-child(2) img")
    page.click("button[aria-label='Remove picture 1']")
    assert page.locator("#pictures img").count() == 1


def test_every_control_has_a_name_and_the_page_forbids_what_is_not_its_own(served, open_page):
    page = open_page(served.url)
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, select, textarea')].filter((e) =>
      !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map((e) => e.id)""")
    assert unnamed == []
    got = served.http.get("/")
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert "http://" not in got.text
    assert "https://" not in got.text
    assert served.http.get("/web/../app.py").status_code == 404
    assert served.http.get("/web/page.py").status_code == 404


def test_a_server_with_keys_asks_for_one_and_what_was_asked_is_not_lost(pipe, start, open_page, shapes):
    with start(pipe, door=Door(("secret",))) as served:
        page = open_page(served.url, "#status:has-text('no API key')")
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.is_visible("#key")
        page.set_input_files("#file", str(shapes))
        page.wait_for_selector("#pictures img")
        page.fill("#text", "What is it?")
        page.press("#text", "Enter")
        page.wait_for_selector(".answer .error:has-text('no API key')")
        assert page.input_value("#text") == "What is it?"
        assert page.locator("#pictures img").count() == 1
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        page.fill("#max_tokens", "4")
        page.press("#text", "Enter")
        page.wait_for_selector(".answer:last-child .facts:has-text('of KV rows')")
        assert page.locator("#pictures img").count() == 0
        assert "kept" not in page.inner_text(".answer:last-child .facts")  # nothing was dropped


def test_an_answer_that_breaks_off_is_no_answer(served, open_page):
    page = open_page(served.url)
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Half of"}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.fill("#text", "Tell me.")
    page.press("#text", "Enter")
    page.wait_for_selector(".error:has-text('stopped before the answer was complete')")
    assert page.inner_text(".answer .text") == "Half of"
    assert page.get_attribute("#talk", "aria-busy") == "false"
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator(".turn").count() == 0


def test_the_page_tells_how_much_a_cache_policy_kept(start, open_page):
    own = {"okv": {"rows": 24, "sinks": 2, "recent": 6, "slack": 4, "chunk": 32}}
    plugins: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, own]
    with start(Pipeline.from_plugins(plugins)) as served:
        page = open_page(served.url)
        page.click("#controls summary")
        page.fill("#max_tokens", "4")
        page.fill("#text", "word " * 200)
        page.press("#text", "Enter")
        page.wait_for_selector(".answer .facts:has-text('% of them kept')")
