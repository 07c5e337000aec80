// All cameras at once: the latest picture of each with its result, and the alerts under way.

import { info, poll } from "./api.js";
import { empty, h, icon, problem, setText, show } from "./dom.js";
import { ago, duration, rate, words } from "./format.js";
import { Frames } from "./frames.js";
import { alerts, cameras, handlers, onNews, readCameras, readModels } from "./store.js";
import { listen } from "./stream.js";
import { SILENT_S, Tile, byName, freshness } from "./tile.js";

const SUMMARY_MS = 4000;

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

/** The events that have begun and not ended, newest first. */
function alertStrip() {
  const open = [...alerts.values()].filter((alert) => alert.event !== "end").reverse();
  return open.slice(0, 6).map((alert) =>
    h(
      "li",
      {},
      h(
        "a",
        {
          class: "alert-pill",
          "data-severity": alert.severity,
          href: `#live/${encodeURIComponent(alert.device_id)}`,
        },
        icon("alert"),
        h("b", {}, words(alert.label ?? alert.class_name)),
        h("span", {}, alert.device_id),
        ago(Date.parse(alert.started_at) / 1000),
      ),
    ),
  );
}

function summaryText() {
  const known = [...cameras.values()].filter(({ entry }) => entry);
  const count = (word) => known.filter(({ entry }) => freshness(entry.at) === word).length;
  const total = known.reduce((sum, { summary }) => sum + (summary?.rate_per_s ?? 0), 0);
  const parts = [`${known.length} ${known.length === 1 ? "camera" : "cameras"}`, rate(total)];
  if (count("stale")) parts.push(`${count("stale")} late`);
  if (count("silent")) parts.push(`${count("silent")} silent for more than ${duration(SILENT_S)}`);
  return parts.join(" · ");
}

/** The grid of all cameras. */
class LiveView {
  #tiles = new Map();
  #changed = new Set();
  #drawing = false;

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
    this.strip = h("ul", { class: "alert-strip", "aria-label": "Alerts under way" });
    this.grid = h("div", { class: "grid", onkeydown: onGridKey });
    this.nothing = h("div", {});
    const head = h("div", { class: "view-head" }, h("h1", {}, "Live"), this.head, this.filter);
    show(root, head, this.strip, h("h2", { class: "unseen" }, "Cameras"), this.grid, this.nothing);
    const sight = (seen) => seen.forEach(({ target, isIntersecting }) => target.tile.see(isIntersecting));
    this.sight = new IntersectionObserver(sight, { rootMargin: "80px" });
    signal.addEventListener("abort", () => this.sight.disconnect(), { once: true });
  }

  run() {
    cameras.forEach((camera) => camera.entry && this.#changed.add(camera));
    this.#draw();
    show(this.strip, alertStrip());
    onNews((kind, value) => this.#hear(kind, value), this.signal);
    listen(handlers, this.signal);
    const failed = (error) => this.#tiles.size || show(this.nothing, problem(error));
    poll(() => this.#look(), SUMMARY_MS, this.signal, failed);
  }

  #hear(kind, value) {
    if (kind === "alert") show(this.strip, alertStrip());
    else if (kind === "batch") this.frames.news();
    else if (kind === "camera") {
      this.#changed.add(value);
      if (!this.#drawing) requestAnimationFrame(() => this.#draw());
      this.#drawing = true;
    }
  }

  async #look() {
    await Promise.all([readCameras(this.signal), readModels(this.signal)]);
    setText(this.head, summaryText());
    this.#tiles.forEach((tile) => tile.inSight && tile.draw());
    show(this.nothing, !this.#tiles.size && !this.#changed.size && noCameras());
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
    if (this.#tiles.size) show(this.nothing);
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
  }
}

/** Show the grid of cameras until the signal is aborted. */
export function mountLive(root, _argument, signal) {
  new LiveView(root, signal).run();
}
