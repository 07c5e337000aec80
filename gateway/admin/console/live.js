// All cameras at once: the latest picture of each with its result, and the alerts under way.

import { info, poll } from "./api.js";
import { empty, h, icon, problem, setText, show, showRows } from "./dom.js";
import { ago, count, duration, rate, words } from "./format.js";
import { Frames } from "./frames.js";
import { cameras, handlers, onNews, openAlerts, readCameras, readModels } from "./store.js";
import { listen } from "./stream.js";
import { SILENT_S, Tile, byName, freshness } from "./tile.js";

const SUMMARY_MS = 4000;
const FIRST_ALERTS = 6;

/** What to do when no camera has sent anything. */
function noCameras() {
  const place = [info.business_unit, info.facility, info.gateway_id].map((part) => part || "default").join("/");
  return empty(
    "No camera has sent anything yet",
    h("p", {}, "Send a picture as a camera would:"),
    h("pre", { tabindex: "0" }, "edge-gateway send photo.jpg"),
    h("p", {}, "Or let a camera publish JPEGs on this topic of the broker:"),
    h("pre", { tabindex: "0" }, `edge-ai/${place}/camera/snapshots`),
  );
}

/** Arrow keys go from tile to tile, up and down by the columns that there are. */
function onGridKey(event) {
  const links = [...event.currentTarget.querySelectorAll(".tile-link")].filter((link) => link.offsetParent);
  const at = links.indexOf(document.activeElement);
  if (at < 0) return;
  const columns = getComputedStyle(event.currentTarget).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step) return;
  links[at + step]?.focus();
  event.preventDefault();
}

/** The alerts under way, newest first, so many of them; the rest behind a button. */
class AlertStrip {
  #all = false;
  element = h("ul", { class: "alert-strip", "aria-label": "Alerts under way" });

  draw() {
    const open = openAlerts();
    const pills = open.slice(0, this.#all ? open.length : FIRST_ALERTS).map((alert) => this.#pill(alert));
    const more = open.length > FIRST_ALERTS && h("li", {}, this.#switch(open.length - FIRST_ALERTS));
    showRows(this.element, pills, more);
  }

  #pill(alert) {
    const href = `#live/${encodeURIComponent(alert.device_id)}`;
    return h(
      "li",
      {},
      h(
        "a",
        { class: "alert-pill", "data-key": alert.alert_id, "data-severity": alert.severity, href },
        icon("alert"),
        h("b", {}, words(alert.label ?? alert.class_name)),
        h("span", {}, alert.device_id),
        ago(Date.parse(alert.started_at) / 1000),
      ),
    );
  }

  #switch(hidden) {
    const onclick = () => {
      this.#all = !this.#all;
      this.draw();
    };
    const attributes = { class: "alert-pill", type: "button", "data-key": "more", "aria-expanded": String(this.#all) };
    return h("button", { ...attributes, onclick }, this.#all ? "show fewer" : `+${count(hidden)} more`);
  }
}

function summaryText() {
  const known = [...cameras.values()].filter(({ entry }) => entry);
  const number = (word) => known.filter(({ entry }) => freshness(entry.at) === word).length;
  const total = known.reduce((sum, { summary }) => sum + (summary?.rate_per_s ?? 0), 0);
  const parts = [`${known.length} ${known.length === 1 ? "camera" : "cameras"}`, rate(total)];
  if (number("stale")) parts.push(`${number("stale")} late`);
  if (number("silent")) parts.push(`${number("silent")} silent for more than ${duration(SILENT_S)}`);
  return parts.join(" · ");
}

/** The grid of all cameras. */
class LiveView {
  #tiles = new Map();
  #changed = new Set();
  #drawing = false;
  #asked = false;
  #missing = null;

  constructor(root, signal) {
    this.signal = signal;
    this.frames = new Frames(signal);
    this.filter = h("input", {
      type: "search",
      placeholder: "Filter by camera, model or class",
      "aria-label": "Filter the cameras",
      oninput: () => this.#sift(),
    });
    this.head = h("p", { class: "muted", role: "status" });
    this.strip = new AlertStrip();
    this.grid = h("div", { class: "grid", onkeydown: onGridKey });
    this.nothing = h("div", { role: "status" });
    const head = h("div", { class: "view-head" }, h("h1", {}, "Live"), this.head, this.filter);
    show(root, head, this.strip.element, h("h2", { class: "unseen" }, "Cameras"), this.grid, this.nothing);
    const sight = (seen) => seen.forEach(({ target, isIntersecting }) => target.tile.see(isIntersecting));
    this.sight = new IntersectionObserver(sight, { rootMargin: "80px" });
    signal.addEventListener("abort", () => this.sight.disconnect(), { once: true });
  }

  run() {
    cameras.forEach((camera) => camera.entry && this.#changed.add(camera));
    this.#draw();
    this.strip.draw();
    onNews((kind, value) => this.#hear(kind, value), this.signal);
    listen(handlers, this.signal);
    const failed = (error) => this.#tiles.size || show(this.nothing, problem(error));
    poll(() => this.#look(), SUMMARY_MS, this.signal, failed);
  }

  #hear(kind, value) {
    if (kind === "alerts") this.strip.draw();
    else if (kind === "batch") this.frames.news();
    else if (kind === "camera") this.#change(value);
    else if (kind === "alert") this.#change(cameras.get(value.device_id));
  }

  #change(camera) {
    if (!camera?.entry) return;
    this.#changed.add(camera);
    if (!this.#drawing) requestAnimationFrame(() => this.#draw());
    this.#drawing = true;
  }

  async #look() {
    await Promise.all([readCameras(this.signal), readModels(this.signal)]);
    setText(this.head, summaryText());
    this.#tiles.forEach((tile) => tile.inSight && tile.draw());
    this.#asked = true;
    this.#drawNothing();
  }

  #draw() {
    this.#drawing = false;
    for (const camera of this.#changed) {
      if (!this.#tiles.has(camera.camera)) this.#add(camera);
      const tile = this.#tiles.get(camera.camera);
      if (tile.inSight) tile.draw();
    }
    this.#changed.clear();
    if (this.filter.value) this.#sift();
    else this.#drawNothing();
  }

  #add(camera) {
    const tile = new Tile(camera, this.frames);
    this.#tiles.set(camera.camera, tile);
    const after = [...this.grid.children].find((each) => byName(each.tile.id, tile.id) > 0);
    this.grid.insertBefore(tile.element, after ?? null);
    this.sight.observe(tile.element);
  }

  #sift() {
    const wanted = words(this.filter.value.trim()).toLowerCase();
    this.#tiles.forEach((tile) => (tile.element.hidden = !tile.matches(wanted)));
    this.#drawNothing();
  }

  /** Say why there is no tile, once: it is read out. */
  #drawNothing() {
    const text = this.filter.value.trim();
    const hidden = [...this.#tiles.values()].every((tile) => tile.element.hidden);
    const why = !this.#tiles.size ? (this.#asked ? "silence" : "") : hidden ? text : "";
    if (why === this.#missing) return;
    this.#missing = why;
    show(this.nothing, why && (this.#tiles.size ? this.#noMatch(text) : noCameras()));
  }

  #noMatch(text) {
    const clear = () => {
      this.filter.value = "";
      this.#sift();
      this.filter.focus();
    };
    const button = h("button", { class: "button", type: "button", onclick: clear }, "Clear the filter");
    return empty(`No camera matches '${text}'`, button);
  }
}

/** Show the grid of cameras until the signal is aborted. */
export function mountLive(root, _argument, signal) {
  new LiveView(root, signal).run();
}
