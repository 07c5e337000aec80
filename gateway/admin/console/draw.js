// A picture with what a model says of it: boxes and outlines as SVG in the picture's own pixels, labels as text over it.

import { h, show, svg } from "./dom.js";
import { percent, words } from "./format.js";
import { labelsOf } from "./labels.js";
import { maskPath, polygonPath } from "./masks.js";

const COLOURS = 12;

/** The number of a class's colour, always the same: by its id, or by its name where it has none. */
export function colourOf(prediction) {
  if (Number.isInteger(prediction.class_id)) return Math.abs(prediction.class_id) % COLOURS;
  let hash = 7;
  for (const letter of String(prediction.class)) hash = (hash * 31 + letter.codePointAt(0)) % 65521;
  return hash % COLOURS;
}

/** A class as a small coloured word, with how many of it or how sure. */
export function classChip(prediction, note, alert = false) {
  const mark = alert ? h("span", { class: "chip-alert", title: "raises alerts" }, "!") : null;
  const name = h("span", { class: "chip-name" }, words(prediction.class));
  return h("span", { class: "class-chip", "data-colour": colourOf(prediction) }, mark, name, note && h("b", {}, note));
}

/** One chip for each class of a result, the most confident first, with their numbers. */
export function classChips(predictions, isAlert, most = 4) {
  const groups = new Map();
  for (const prediction of predictions) {
    const group = groups.get(prediction.class) ?? { prediction, number: 0 };
    group.number += 1;
    groups.set(prediction.class, group);
  }
  const all = [...groups.values()];
  const chips = all.slice(0, most).map(({ prediction, number }) => {
    const note = number > 1 ? `× ${number}` : percent(prediction.confidence);
    return classChip(prediction, note, isAlert(prediction.class));
  });
  if (all.length > most) chips.push(h("span", { class: "muted small" }, `+ ${all.length - most}`));
  return chips;
}

function shapes(prediction) {
  const mark = prediction.mark ? ` marked-${prediction.mark}` : "";
  const box = { "data-colour": colourOf(prediction), class: `box${mark}` };
  const drawn = [];
  const path = prediction.polygons ? polygonPath(prediction.polygons) : prediction.rle && maskPath(prediction.rle);
  if (path)
    drawn.push(
      svg("path", { d: path, class: `outline${prediction.rle ? " mask" : ""}`, "data-colour": box["data-colour"] }),
    );
  if (prediction.bbox) {
    const [x1, y1, x2, y2] = prediction.bbox;
    drawn.push(svg("rect", { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), ...box }));
  }
  return drawn;
}

/** What has no place in the picture: classes of the whole of it, an anomaly score, values. */
function verdict(result) {
  const lines = [];
  if (Number.isFinite(result.anomaly_score))
    lines.push(h("span", { class: "label" }, "anomaly", h("b", { class: "apart" }, result.anomaly_score.toFixed(2))));
  for (const value of (result.values ?? []).slice(0, 8))
    lines.push(h("span", { class: "label" }, h("b", {}, Number(value).toPrecision(4))));
  for (const prediction of (result.predictions ?? []).filter((each) => !each.bbox).slice(0, 5)) {
    const text = [words(prediction.class), h("b", { class: "apart" }, percent(prediction.confidence))];
    lines.push(h("span", { class: "label", "data-colour": colourOf(prediction) }, text));
  }
  return lines;
}

/** A place for a picture and its result. `element` goes into the page, `show` changes what is seen. */
export class Stage {
  #canvas = h("div", { class: "canvas" });
  #serial = 0;
  /** result_id of what is shown, so that nobody fetches it again. */
  shown = null;

  constructor(alt, { large = false } = {}) {
    this.alt = alt;
    this.large = large;
    this.element = h("div", { class: `stage${large ? " large" : ""}` }, this.#canvas);
  }

  /**
   * Show a picture with a result, or the result alone with a `note` in place of the picture; `width` and `height` are
   * the picture's own. Waits for its decoding.
   */
  async show({ picture = null, result, width, height, note = "" }) {
    const serial = ++this.#serial;
    const wide = width || result?.metadata?.image?.width || 16;
    const high = height || result?.metadata?.image?.height || 9;
    const image = h("img", { alt: this.alt, draggable: "false" });
    if (picture) {
      image.src = picture;
      await image.decode().catch(() => {});
    }
    if (serial !== this.#serial) return;
    const predictions = result?.predictions ?? [];
    const placed = predictions.filter((each) => each.bbox);
    const drawing = svg("svg", { viewBox: `0 0 ${wide} ${high}`, "aria-hidden": "true" }, predictions.flatMap(shapes));
    this.#canvas.style.setProperty("--ratio", wide / high);
    const canvas = { width: this.#canvas.clientWidth || 320, height: this.#canvas.clientHeight || 180 };
    const labels = labelsOf(placed, { width: wide, height: high }, canvas, this.large, colourOf);
    this.#canvas.classList.toggle("no-picture", !picture);
    show(
      this.#canvas,
      picture && image,
      drawing,
      !picture && note && h("p", { class: "stage-note" }, note),
      h("div", { class: "labels" }, labels),
      h("div", { class: "verdict" }, verdict(result ?? {})),
    );
    this.shown = result?.result_id ?? null;
  }

  /** Show words in place of a picture. */
  say(...children) {
    this.#serial += 1;
    this.shown = null;
    this.#canvas.style.setProperty("--ratio", 16 / 9);
    this.#canvas.classList.add("no-picture");
    show(this.#canvas, h("div", { class: "stage-words" }, children));
  }
}
