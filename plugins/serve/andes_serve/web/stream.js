// Chat completions as a stream of parsed chunks.

export async function* chunks(body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.ok) throw await told(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server stopped before the answer was complete");
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

async function told(answer) {
  let what = `the server answered ${answer.status}`;
  try {
    what = (await answer.json()).error.message;
  } catch { /* none of ours */ }
  return Object.assign(new Error(what), { status: answer.status });
}

export async function models(key) {
  const answer = await fetch("/v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) throw await told(answer);
  return (await answer.json()).data.map((one) => one.id);
}
