// Small charts: a curve, bars of two variants, agreement over time.

import { h, svg } from "./dom.js";
import { clockTime, count, duration, percent } from "./format.js";

const STEP_S = 10; // of one step of agreement
const LEAST_STEPS = 60;

/** A curve of the values; `about` says in words what it shows. */
export function sparkline(values, about, { floor = 0, className = "" } = {}) {
  const known = values.filter(Number.isFinite);
  const top = Math.max(...known, floor + 1e-9);
  const bottom = Math.min(...known, floor);
  const step = values.length > 1 ? 100 / (values.length - 1) : 0;
  const points = values.map(
    (value, at) => `${(at * step).toFixed(2)} ${(38 - ((value - bottom) / (top - bottom)) * 36).toFixed(2)}`,
  );
  const line = points.length ? `M${points.join("L")}` : "";
  return svg(
    "svg",
    {
      class: `spark ${className}`,
      viewBox: "0 0 100 40",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": about,
    },
    line && svg("path", { class: "spark-area", d: `${line}L100 40L0 40Z` }),
    line && svg("path", { class: "spark-line", d: line }),
  );
}

function bound(upper) {
  if (upper === null || upper === undefined) return "more";
  return upper < 1 ? upper.toFixed(1) : String(Math.round(upper * 10) / 10);
}

/** How long each variant took: one pair of bars a bucket. `latency` is by variant {buckets: [[upper_ms, count]]}. */
export function histogram(latency, about) {
  const names = Object.keys(latency);
  const bins = latency[names[0]]?.buckets?.length ?? 0;
  const share = (name, at) => (latency[name].buckets[at]?.[1] ?? 0) / Math.max(latency[name].count, 1);
  const used = Array.from({ length: bins }, (_, at) => at).filter((at) => names.some((name) => share(name, at) > 0));
  if (!used.length) return h("p", { class: "muted" }, "Nothing measured yet.");
  const from = Math.max(used[0] - 1, 0);
  const to = Math.min(used.at(-1) + 1, bins - 1);
  const top = Math.max(...names.flatMap((name) => used.map((at) => share(name, at))));
  const columns = [];
  for (let at = from; at <= to; at += 1) {
    const bars = names.map((name, number) => {
      const bar = h("span", { class: "bar", "data-variant": number % 4 });
      bar.style.height = `${(share(name, at) / top) * 100}%`;
      bar.title = `${name}: ${count(latency[name].buckets[at][1])} up to ${bound(latency[name].buckets[at][0])} ms`;
      return bar;
    });
    columns.push(
      h(
        "span",
        { class: "bin" },
        h("span", { class: "bars" }, bars),
        h("small", {}, bound(latency[names[0]].buckets[at][0])),
      ),
    );
  }
  return h(
    "div",
    {},
    axis(`highest bar: ${percent(top)} of its variant's answers`),
    h("div", { class: "histogram", role: "img", "aria-label": about }, columns),
    axis("took up to so many ms"),
  );
}

function axis(...texts) {
  return h(
    "p",
    { class: "axis" },
    texts.map((text) => h("span", {}, text)),
  );
}

/** The shares that agreed, did not and failed, one bar a step; `series` is [[epoch, true, false, unknown]]. */
export function agreementChart(series, about) {
  const bars = series.flatMap(([at, yes, no, unknown], number) => {
    const whole = yes + no + unknown;
    let top = 100;
    return [
      ["agreed", yes],
      ["differed", no],
      ["unknown", unknown],
    ]
      .filter(([, value]) => value)
      .map(([name, value]) => {
        const tall = (value / whole) * 100;
        top -= tall;
        const title = svg("title", {}, `${clockTime(at)}: ${value} of ${whole} ${name}`);
        return svg("rect", { class: name, x: number + 0.1, y: top, width: 0.8, height: tall }, title);
      });
  });
  const wide = Math.max(series.length, LEAST_STEPS);
  const view = `${series.length - wide} 0 ${wide} 100`;
  const chart = svg(
    "svg",
    { class: "agreement", viewBox: view, preserveAspectRatio: "none", role: "img", "aria-label": about },
    bars,
  );
  return h("div", {}, axis("100 %"), chart, axis(`${duration(wide * STEP_S)} ago`, "now"));
}

/** Parts of a whole as one bar with a legend; `parts` are [name, value], `text` writes a value. */
export function partsBar(parts, text, about) {
  const whole = parts.reduce((sum, [, value]) => sum + (value || 0), 0) || 1;
  const known = parts.map(([name, value], number) => ({ name, value: value || 0, number }));
  const pieces = known
    .filter(({ value }) => value > 0)
    .map(({ value, number }) => {
      const piece = h("span", { "data-part": number % 6 });
      piece.style.flexGrow = value / whole;
      return piece;
    });
  const legend = known.map(({ name, value, number }) =>
    h("li", {}, h("span", { class: "swatch", "data-part": number % 6 }), name, h("b", {}, text(value))),
  );
  return h(
    "div",
    { class: "parts" },
    h("div", { class: "parts-bar", role: "img", "aria-label": about }, pieces),
    h("ul", {}, legend),
  );
}

/** How full something is, between 0 and 1. */
export function gauge(share, about) {
  const full = h("span", { "data-tone": share > 0.9 ? "bad" : share > 0.6 ? "warn" : "good" });
  full.style.width = `${Math.min(Math.max(share, 0), 1) * 100}%`;
  return h("div", { class: "gauge", role: "img", "aria-label": about }, full);
}
