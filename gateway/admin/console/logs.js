// The end of the gateway's log with a filter, and the switch of its level.

import { ApiError, act, get, poll } from "./api.js";
import { toast } from "./dialogs.js";
import { h, panel, setText, show } from "./dom.js";

const LOOK_MS = 2000;
const LEVELS = ["debug", "info", "warning", "error"];
const OWN_KEYS = new Set(["timestamp", "level", "event"]);

function text(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function line(event) {
  const more = Object.entries(event).filter(([name]) => !OWN_KEYS.has(name));
  return h(
    "li",
    { "data-level": event.level },
    h(
      "time",
      {},
      String(event.timestamp ?? "")
        .replace(/^.*T/, "")
        .slice(0, 12),
    ),
    h("span", { class: "level" }, event.level),
    h(
      "span",
      { class: "event" },
      event.event,
      more.map(([name, value]) => [
        " ",
        h("span", { class: "muted" }, `${name}=`),
        h("span", { class: "pair-value" }, text(value)),
      ]),
    ),
  );
}

/** The panel of the log; `follow` begins to read. */
export class LogPanel {
  #seen = "";

  constructor(signal) {
    this.signal = signal;
    this.least = h(
      "select",
      { "aria-label": "Lines from this level on" },
      LEVELS.map((each) => h("option", { value: each, selected: each === "info" }, each)),
    );
    this.filter = h("input", { type: "search", placeholder: "Filter the log", "aria-label": "Filter the log" });
    this.level = h(
      "select",
      { id: "log-level" },
      LEVELS.map((each) => h("option", { value: each }, each)),
    );
    this.list = h("ol", { class: "log", tabindex: "0", "aria-label": "Log, newest last" });
    this.note = h("p", { class: "muted small" });
    const look = () => this.#look().catch(() => {}); // the poll says what is wrong
    this.least.addEventListener("change", look);
    this.filter.addEventListener("input", look);
    this.level.addEventListener("change", () => this.#switch());
    const tools = h(
      "div",
      { class: "tools" },
      this.filter,
      this.least,
      h("label", { class: "muted small", for: "log-level" }, "level of the gateway"),
      this.level,
    );
    this.element = panel("Log", [this.list, this.note], { more: tools, className: "log-panel" });
  }

  follow() {
    poll(
      () => this.#look(),
      LOOK_MS,
      this.signal,
      (error) => setText(this.note, `${error.message}. ${error.fix}`),
    );
  }

  async #look() {
    const query = new URLSearchParams({ level: this.least.value, contains: this.filter.value, limit: 200 });
    const { level, events } = await get(`api/log?${query}`, this.signal);
    if (document.activeElement !== this.level) this.level.value = level;
    this.known = level;
    setText(this.note, events.length ? "" : "No such line among the last ones.");
    const seen = JSON.stringify([events.length, events.at(0), events.at(-1)]);
    if (seen === this.#seen) return;
    this.#seen = seen;
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
    show(this.list, events.map(line));
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  async #switch() {
    const wanted = this.level.value;
    this.level.blur();
    try {
      const body = JSON.stringify({ level: wanted });
      const answer = await act("api/log-level", { body, headers: { "Content-Type": "application/json" } });
      if (answer) toast(`The gateway now logs from ${wanted} on`);
      else this.level.value = this.known;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.level.value = this.known;
      toast([error.message, error.fix].filter(Boolean).join(". "), "bad");
    }
  }
}
