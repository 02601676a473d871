// Talks to the service that this page comes from, and to nobody else.

export class Problem extends Error {
  constructor(status, detail, retryAfter = 0) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter; // seconds, 0 where the service did not say
  }
}

const KEY = "loopwise-key";

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After")) || 0;
  throw new Problem(response.status, detailOf(body) || `The service answered ${response.status}.`, wait);
}

function detailOf(body) {
  const detail = body.detail ?? body.title;
  return typeof detail === "string" ? detail : detail && JSON.stringify(detail);
}

/** {models, limits}; a model whose weights are not there yet has little more than a name. */
export async function getModels() {
  return (await call("/v1/models")).json();
}

export async function getTasks() {
  return (await (await call("/v1/tasks")).json()).tasks;
}

export async function getPuzzles(model, seed, count, signal) {
  const query = new URLSearchParams({ model, seed, count });
  return (await (await call(`/v1/puzzles?${query}`, { signal })).json()).puzzles;
}

/** The results of many puzzles at once, in their order; one that failed has `error`. */
export async function solveAll(request, signal) {
  return (await (await post(request, signal)).json()).results;
}

function post(request, signal) {
  const headers = { "Content-Type": "application/json" };
  return call("/v1/solve", { method: "POST", headers, body: JSON.stringify(request), signal });
}

/** Solve one puzzle, step by step: yields ["step" | "result", data] until the service says that it is done. */
export async function* solve(request, signal) {
  const response = await post({ ...request, stream: true }, signal);
  for await (const { name, data } of events(response.body)) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    const error = name === "error" ? value : value.error;
    if (error) throw new Problem(error.status ?? 0, detailOf(error) || "The service gave the puzzle up.");
    yield [name, value];
  }
  throw new Problem(0, "The connection broke before the answer was there.");
}

/** The server-sent events of a body: {name, data}. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value.replaceAll("\r", "");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = { name: "message", data: [] };
        for (const line of block.split("\n")) {
          if (line.startsWith("event:")) event.name = line.slice(6).trim();
          if (line.startsWith("data:")) event.data.push(line.slice(5).replace(/^ /, ""));
        }
        if (event.data.length) yield { name: event.name, data: event.data.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
