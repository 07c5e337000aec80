// One camera in the grid of Live, and what is said of cameras everywhere: how fresh, in which order, as which curve.

import { sparkline } from "./charts.js";
import { chip, h, setText, show } from "./dom.js";
import { Stage, classChips } from "./draw.js";
import { ago, ms, now, rate, setAgo, words } from "./format.js";
import { pictured } from "./frames.js";
import { figure, isAlertClass, openAlerts, showsPictures } from "./store.js";

const STALE_S = 15;
const APART_S = 3; // that the words may wait for the picture of their snapshot
export const SILENT_S = 60;

const POLICIES = {
  canary: "answered by a new version on trial",
  fallback: "another variant than the chosen one has answered",
  dual: "two variants were asked",
};

/** Why a result stands without its picture, which is kept from the moment on at which somebody looks. */
export function pictureNote() {
  return showsPictures() ? "The picture comes with the next snapshot" : "";
}

/** The order of cameras: camera-2 before camera-10. */
export function byName(one, other) {
  return one.localeCompare(other, undefined, { numeric: true });
}

/** How old a camera's last word is, in one word for colours and texts. */
export function freshness(at) {
  const age = now() - at;
  if (age > SILENT_S) return "silent";
  return age > STALE_S ? "stale" : "fresh";
}

/** In place of a picture: the figure that a sensor's result stands for, and how it was before. */
export function showSeries(stage, { camera, points }, result) {
  const value = figure(result);
  const isScore = Number.isFinite(result.anomaly_score);
  const about = `Last ${points.length} figures of ${camera}, now ${value.toFixed(2)}`;
  stage.say(
    h("span", { class: "series-value" }, value.toFixed(2), h("small", {}, isScore ? "anomaly score" : "value")),
    sparkline(points, about, { floor: isScore ? 0 : Math.min(...points), className: "wide" }),
  );
}

/** One camera in the grid; draws itself only while it is in sight. */
export class Tile {
  constructor(camera, frames) {
    this.camera = camera;
    this.id = camera.camera;
    this.frames = frames;
    this.inSight = false;
    this.describedAt = 0;
    this.stage = new Stage(`Latest picture of ${this.id}`);
    this.age = ago(camera.entry?.at ?? NaN);
    this.badges = h("span", { class: "badges" });
    this.chips = h("div", { class: "chips" });
    this.foot = h("p", { class: "tile-foot muted small" });
    this.element = h(
      "article",
      { class: "tile" },
      h(
        "a",
        { class: "tile-link", href: `#live/${encodeURIComponent(this.id)}`, "aria-label": `Camera ${this.id}` },
        h("div", { class: "tile-picture" }, this.stage.element),
        h("div", { class: "tile-head" }, h("h3", {}, this.id), this.badges, this.age),
        this.chips,
        this.foot,
      ),
    );
    this.element.tile = this;
    this.stage.say(h("span", { class: "muted" }, "Waiting for the next snapshot"));
  }

  /** Whether its name, model or classes have this text, in small letters. */
  matches(wanted) {
    const { result } = this.camera.entry ?? {};
    const known = [this.id, result?.model_name, ...(result?.predictions ?? []).map((each) => each.class)];
    return known.some((text) => text && words(text).toLowerCase().includes(wanted));
  }

  /** Begin or end to draw and to ask for pictures. */
  see(inSight) {
    if (this.inSight === inSight) return;
    this.inSight = inSight;
    if (!inSight) {
      this.frames.unwatch(this.id);
      return;
    }
    this.frames.watch(this.id, {
      width: () => Math.min(960, Math.max(320, this.element.clientWidth * Math.min(devicePixelRatio, 2))),
      entry: () => this.camera.entry,
      shown: () => this.stage.shown,
      take: (frame) => {
        this.#describe(frame.entry);
        return this.stage.show(pictured(frame));
      },
    });
    this.draw();
  }

  /** Show what is known of the camera now. */
  draw() {
    const { entry, summary } = this.camera;
    if (!entry) return;
    setAgo(this.age, entry.at);
    this.element.dataset.fresh = freshness(entry.at);
    if (entry.error) this.#drawError(entry.error.error ?? entry.error);
    else this.#drawResult(entry.result, entry);
    const figures = [rate(summary?.rate_per_s)];
    if (entry.result) {
      const { model_name: model, backend_used: variant, model_version: version, metadata } = entry.result;
      figures.unshift(`${model} ${version ? `v${version}` : ""} · ${variant}`, ms(metadata?.timings_ms?.total));
    }
    setText(this.foot, figures.join(" · "));
    this.#drawBadges(entry);
  }

  #drawBadges({ result }) {
    const names = openAlerts(this.id).map((alert) => words(alert.label ?? alert.class_name));
    const policy = result?.metadata?.selection?.policy;
    show(
      this.badges,
      names.length > 0 && chip("alert", "bad", `under way: ${names.join(", ")}`),
      POLICIES[policy] && chip(policy, policy === "fallback" ? "warn" : "info", POLICIES[policy]),
    );
  }

  #drawError({ code, message, fix }) {
    this.stage.say(
      chip(code ?? "ERROR", "bad"),
      h("span", {}, message ?? ""),
      h("span", { class: "muted" }, fix ?? ""),
    );
    show(this.chips);
  }

  /** Say what was found in a snapshot. */
  #describe({ result, at }) {
    this.describedAt = at;
    const isAlert = (name) => isAlertClass(result.model_name, name);
    const predictions = result.predictions ?? [];
    show(
      this.chips,
      predictions.length
        ? classChips(predictions, isAlert, 3)
        : h("span", { class: "muted small" }, this.#nothing(result)),
    );
  }

  #drawResult(result, entry) {
    // What has a picture is described when that comes, unless it is long in coming.
    const isShown = entry.picture && this.stage.shown !== null;
    if (!isShown || entry.at - this.describedAt > APART_S) this.#describe(entry);
    if (result.metadata?.window) showSeries(this.stage, this.camera, result);
    else if (!entry.picture && (!showsPictures() || this.stage.shown === null)) this.stage.show({ result, note: pictureNote() });
  }

  #nothing(result) {
    return Number.isFinite(result.anomaly_score)
      ? `nothing unusual (${result.anomaly_score.toFixed(2)})`
      : "nothing found";
  }
}
