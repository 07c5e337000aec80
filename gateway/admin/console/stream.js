// Server-sent events by fetch, for EventSource cannot send a token. Closed while nobody sees the page.

import { ApiError, open, pause, whenVisible } from "./api.js";
import { linkState } from "./link.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const SILENCE_MS = 25000; // a comment comes every 10 s

/** The blocks of a stream of events as [name, data], data parsed from JSON. */
async function* events(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const name = /^event: ?(.*)$/m.exec(block)?.[1];
      const data = /^data: ?(.*)$/m.exec(block)?.[1];
      if (name && data !== undefined) yield [name, JSON.parse(data)];
    }
  }
}

async function follow(handlers, stop) {
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stop.abort(), SILENCE_MS);
  };
  try {
    const response = await open("api/events", stop.signal);
    heard();
    linkState("live");
    handlers.connected?.();
    for await (const [name, data] of events(response, heard)) {
      if (name === "bye") return "stopped";
      handlers[name]?.(data);
    }
    return "lost";
  } catch (error) {
    if (error instanceof ApiError && error.status === 503) return "full";
    if (error instanceof ApiError && error.status === 401) return "locked";
    if (error instanceof ApiError || error.name === "AbortError" || error instanceof TypeError) return "lost";
    throw error;
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}

/** Hand the events to `handlers` by name until the signal is aborted; connects again by itself. */
export async function listen(handlers, signal) {
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    await whenVisible(signal);
    if (signal.aborted) return;
    const stop = new AbortController();
    const leave = () => stop.abort();
    const hide = () => document.hidden && stop.abort();
    signal.addEventListener("abort", leave, { once: true });
    document.addEventListener("visibilitychange", hide);
    const began = performance.now();
    const ended = await follow(handlers, stop);
    document.removeEventListener("visibilitychange", hide);
    signal.removeEventListener("abort", leave);
    if (signal.aborted || document.hidden) continue;
    linkState(ended);
    wait = performance.now() - began > 10000 ? FIRST_WAIT_MS : Math.min(wait * 2, LONGEST_WAIT_MS);
    await pause(wait, signal);
  }
}
