// Every request of the console: the token where one is wanted, errors with their fix, and a poll that stops when hidden.

import { askForToken } from "./dialogs.js";
import { linkState, workersMissing } from "./link.js";

const KEYS = { read: "edge-gateway.read-token", action: "edge-gateway.action-token" };
const OFFLINE = "The gateway does not answer";

/** What GET /api/console said; filled once at the start. */
export const info = { console: "results", token_required: false, actions: false };

let asking = null;
let declined = false;

/** An answer that is an error, or none at all (status 0). */
export class ApiError extends Error {
  constructor(status, { code = "", message, fix = "" }, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, code, fix, retryAfter });
  }
}

export function token(kind) {
  return sessionStorage.getItem(KEYS[kind]);
}

function keep(kind, value) {
  if (value) sessionStorage.setItem(KEYS[kind], value);
  else sessionStorage.removeItem(KEYS[kind]);
}

/** Forget the tokens of this tab. */
export function forgetTokens() {
  Object.keys(KEYS).forEach((kind) => keep(kind, null));
  declined = false;
}

async function send(path, options, secret) {
  const headers = { ...options.headers, ...(secret && { Authorization: `Bearer ${secret}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: OFFLINE, fix: "The page tries again by itself" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wrong = body.error ?? { message: `${response.status} ${response.statusText}` };
  throw new ApiError(response.status, wrong, Number(response.headers.get("Retry-After")) || 0);
}

/** Ask for the token for looking, once for all requests that wait for it. */
export function unlock() {
  declined = false;
  linkState("locked");
  asking ??= askForToken({
    title: "This console wants a token",
    text: "Pictures and results are shown to those who know the token of API_READ_TOKEN_FILE or API_TOKEN_FILE.",
    check: (value) => send("api/status", {}, value),
  }).then((value) => {
    asking = null;
    declined = value === null;
    if (value !== null) keep("read", value);
    return value !== null;
  });
  return asking;
}

async function withReadToken(attempt) {
  for (;;) {
    const used = token("read") ?? token("action");
    if (info.token_required && !used && (declined || !(await unlock()))) {
      throw new ApiError(401, { code: "UNAUTHORIZED", message: "A token is wanted", fix: "Press the key to give it" });
    }
    try {
      return await attempt(token("read") ?? token("action"));
    } catch (error) {
      if (error.status !== 401) throw error;
      info.token_required = true; // it may have been configured since
      if (used && used === token("read")) keep("read", null);
      else if (used && used === token("action")) keep("action", null);
    }
  }
}

/** GET as a Response whose body is still to be read. */
export function open(path, signal) {
  return withReadToken((secret) => send(path, { signal }, secret));
}

/** GET as JSON. */
export async function get(path, signal) {
  const response = await open(path, signal);
  try {
    const body = await response.json();
    if (body.missing !== undefined) workersMissing(body.missing);
    return body;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: OFFLINE, fix: "The page tries again by itself" }); // it ended in the middle
  }
}

/** POST with the token for actions, asked for when it is missing or wrong; null when the person gives none. */
export async function act(path, options = {}) {
  let refused = "";
  for (;;) {
    if (info.actions && !token("action")) {
      const value = await askForToken({
        title: "An action wants the token",
        text: "Actions are for those who know the token of API_TOKEN_FILE. It is kept until this tab is closed.",
        refused,
      });
      if (value === null) return null;
      keep("action", value);
    }
    try {
      return await (await send(path, { method: "POST", ...options }, token("action"))).json();
    } catch (error) {
      if (error.status !== 401) throw error;
      keep("action", null);
      info.actions = true;
      refused = "That token is not the right one.";
    }
  }
}

/** Wait, or until the signal is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}

/** Wait until somebody can see the page. */
export async function whenVisible(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** Call `look` again and again while the page is seen; `failed` gets the errors. Ends with the signal. */
export async function poll(look, milliseconds, signal, failed = () => {}) {
  while (!signal.aborted) {
    await whenVisible(signal);
    if (signal.aborted) return;
    let wait = milliseconds;
    try {
      await look();
      linkState("live");
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      linkState({ 0: "lost", 401: "locked" }[error.status] ?? "live");
      failed(error);
      wait = Math.max(wait, error.retryAfter * 1000, error.status === 0 ? 2000 : 0);
    }
    await pause(wait, signal);
  }
}
