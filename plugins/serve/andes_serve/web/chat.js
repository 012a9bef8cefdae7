// The page: a conversation with pictures, kept in this tab until it is closed.

import { boxesOf, draw, numbered } from "./boxes.js";
import { chunks, models } from "./stream.js";

const $ = (name) => document.getElementById(name);
const LONGEST_SIDE = 2048;
let messages = [];
let pictures = [];
let running = null;

// ---------------------------------------------------------------- what is kept

const store = {
  get: (name) => { try { return sessionStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { sessionStorage.setItem(name, value); } catch { /* full: the chat lasts until reload */ } },
};

function remember() {
  store.set("messages", JSON.stringify(messages));
}

// ---------------------------------------------------------------- turns

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shown(url, alt) {
  const frame = make("div", "shown");
  const image = make("img");
  image.src = url;
  image.alt = alt;
  frame.append(image);
  return frame;
}

function userTurn(message) {
  const turn = make("article", "turn user");
  turn.setAttribute("aria-label", "You");
  for (const part of message.content) {
    if (part.type === "image_url") turn.append(shown(part.image_url.url, "Picture of the question"));
    else turn.append(make("div", "text", part.text));
  }
  $("talk").append(turn);
  return turn;
}

/** The picture that an answer's boxes belong to: the last one before it. */
function lastPicture() {
  return [...$("talk").querySelectorAll(".turn.user .shown")].at(-1);
}

function answerTurn() {
  const turn = make("article", "turn answer");
  turn.setAttribute("aria-label", "Answer");
  const thought = make("details");
  thought.hidden = true;
  thought.append(make("summary", "", "Thinking"), make("div", "thought"));
  const text = make("div", "text");
  const list = make("ol", "boxes");
  const facts = make("div", "facts");
  turn.append(thought, text, list, facts);
  $("talk").append(turn);
  return {
    show(reasoning, content) {
      thought.hidden = !reasoning;
      thought.lastChild.textContent = reasoning;
      text.textContent = numbered(content);
      const picture = lastPicture();
      const boxes = boxesOf(content);
      if (picture && boxes.length) draw(picture, list, boxes);
    },
    facts(line) { facts.textContent = line; },
    fail(what) { turn.append(make("div", "error", what)); },
  };
}

function facts(usage, first, seconds) {
  const prompt = usage.prompt_tokens_details;
  const answer = usage.completion_tokens_details;
  const parts = [`first token ${Math.round(first)} ms`];
  if (usage.completion_tokens > 1 && seconds > 0) {
    parts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
  }
  parts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
  if (prompt.image_tokens) parts.push(`${prompt.image_tokens} of pictures`);
  if (prompt.cached_tokens) parts.push(`${prompt.cached_tokens} read before`);
  if (answer.reasoning_tokens) parts.push(`${answer.reasoning_tokens} of reasoning`);
  if (answer.accepted_prediction_tokens) parts.push(`${answer.accepted_prediction_tokens} guessed right`);
  const { bytes, kept } = usage.kv_cache;
  parts.push(`${(bytes / 2 ** 20).toFixed(1)} MiB of KV rows`);
  if (kept < 1) parts.push(`${Math.round(100 * kept)} % of them kept`);
  return parts.join(" · ");
}

// ---------------------------------------------------------------- asking

function sampling() {
  const given = {};
  for (const name of ["temperature", "top_p", "top_k", "seed", "max_tokens"]) {
    const value = $(name).value;
    if (value !== "") given[name] = Number(value);
  }
  if ($("think").value) given.think = $("think").value === "true";
  return given;
}

async function ask(text) {
  const content = [
    ...pictures.map((url) => ({ type: "image_url", image_url: { url } })),
    ...(text ? [{ type: "text", text }] : []),
  ];
  if (!content.length || running) return;
  const message = { role: "user", content };
  const talk = messages; // a new chat has another
  const sent = pictures;
  pictures = [];
  showPictures();
  $("text").value = "";
  userTurn(message);
  const turn = answerTurn();
  const start = performance.now();
  let reasoning = "", answer = "", first = 0, last = 0, usage = null, failed = false;
  let drawn = 0, wantsKey = false;
  const paintAnswer = () => {
    drawn = 0;
    turn.show(reasoning, answer);
    $("talk").parentElement.scrollTop = 1e9;
  };
  running = new AbortController();
  busy(true);
  try {
    const body = {
      model: $("model").value, messages: [...messages, message], stream: true,
      stream_options: { include_usage: true }, ...sampling(),
    };
    for await (const chunk of chunks(body, $("key").value, running.signal)) {
      last = performance.now();
      first ||= last;
      usage = chunk.usage ?? usage;
      const delta = chunk.choices[0]?.delta;
      reasoning += delta?.reasoning_content ?? "";
      answer += delta?.content ?? "";
      if (!drawn) drawn = requestAnimationFrame(paintAnswer); // once a frame, however fast tokens come
    }
    if (usage) turn.facts(facts(usage, first - start, (last - first) / 1000));
  } catch (error) {
    failed = error.name !== "AbortError";
    if (failed) turn.fail(error.message);
    else turn.facts("stopped");
    if (failed && !answer && talk === messages) { // nothing is lost: it can be sent again
      $("text").value ||= text;
      pictures = [...sent, ...pictures];
      showPictures();
    }
    wantsKey = error.status === 401;
  }
  cancelAnimationFrame(drawn);
  paintAnswer();
  running = null;
  busy(false);
  if (!failed && talk === messages) { // a question that failed leaves no trace in the conversation
    messages.push(message, { role: "assistant", content: answer });
    remember();
  }
  if (wantsKey) askForKey();
  else $("text").focus();
}

/** The server has keys: show where one is written. */
function askForKey() {
  $("controls").open = true;
  $("controls").scrollIntoView();
  $("key").focus();
}

function busy(on) {
  $("stop").hidden = !on;
  $("send").disabled = on;
  $("talk").setAttribute("aria-busy", String(on)); // an answer is read out once it is whole
  $("status").textContent = on ? "answering…" : "";
}

// ---------------------------------------------------------------- pictures

async function add(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    try {
      pictures.push(await dataUrl(file));
    } catch {
      $("status").textContent = `${file.name} is no picture that can be read`;
    }
  }
  showPictures();
}

/** A picture as a data URL; one that is very large is made smaller first. */
async function dataUrl(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function showPictures() {
  $("pictures").replaceChildren(...pictures.map((url, number) => {
    const frame = shown(url, `Picture ${number + 1} of the next question`);
    const gone = make("button", "", "×");
    gone.type = "button";
    gone.setAttribute("aria-label", `Remove picture ${number + 1}`);
    gone.onclick = () => { pictures.splice(number, 1); showPictures(); };
    frame.append(gone);
    return frame;
  }));
}

// ---------------------------------------------------------------- the page

$("ask").onsubmit = (event) => { event.preventDefault(); ask($("text").value.trim()); };
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
};
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
$("stop").onclick = () => running?.abort();
for (const name of ["file", "camera"]) {
  $(name).onchange = async (event) => { await add(event.target.files); event.target.value = ""; };
}
document.onpaste = (event) => add([...event.clipboardData.files]);
document.ondragover = (event) => { event.preventDefault(); $("ask").classList.add("over"); };
document.ondragleave = () => $("ask").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("ask").classList.remove("over");
  add([...event.dataTransfer.files]);
};
$("forget").onclick = () => {
  running?.abort();
  messages = [];
  remember();
  $("talk").replaceChildren();
  $("text").focus();
};

function paint(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-pressed", String(theme === "dark"));
  store.set("theme", theme);
}
$("theme").onclick = () => paint(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
paint(store.get("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));

async function listModels() {
  try {
    const names = await models($("key").value);
    $("model").replaceChildren(...names.map((name) => new Option(name, name)));
    const before = store.get("model");
    if (names.includes(before)) $("model").value = before;
    $("status").textContent = "";
    return true;
  } catch (error) {
    $("status").textContent = error.message;
    if (error.status === 401) askForKey();
    return error.status !== 401;
  }
}
$("model").onchange = () => store.set("model", $("model").value);
$("key").onchange = () => { store.set("key", $("key").value); listModels(); };
$("key").value = store.get("key") ?? "";

for (const message of JSON.parse(store.get("messages") ?? "[]")) {
  messages.push(message);
  if (message.role === "user") userTurn(message);
  else answerTurn().show("", message.content);
}
if (await listModels()) $("text").focus();
