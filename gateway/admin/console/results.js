// One result in words and figures: what was found, where the time went, who answered.

import { partsBar } from "./charts.js";
import { facts, h, table } from "./dom.js";
import { classChip } from "./draw.js";
import { ms, percent } from "./format.js";
import { isAlertClass } from "./store.js";

const PARTS = ["queued", "preprocess", "infer", "postprocess"];

/** Where the time of a result went, as one bar. */
export function timings(result) {
  const times = result.metadata?.timings_ms ?? {};
  const parts = PARTS.map((name) => [name, times[name]]);
  const known = parts.reduce((sum, [, value]) => sum + (value ?? 0), 0);
  // Two variants are asked at once, and their results wait for each other.
  const rest = result.metadata?.selection?.policy === "dual" ? "waiting for the other variant, rest" : "other";
  parts.push([rest, Math.max(0, (times.total ?? known) - known)]);
  return partsBar(
    parts,
    ms,
    `Of ${ms(times.total)}: ${parts.map(([name, value]) => `${name} ${ms(value)}`).join(", ")}`,
  );
}

/** Each prediction with its place, or what is said of the whole. */
export function predictionList(result) {
  const predictions = result.predictions ?? [];
  const isAlert = (name) => isAlertClass(result.model_name, name);
  const rows = predictions
    .slice(0, 100)
    .map((each) => [
      classChip(each, null, isAlert(each.class)),
      percent(each.confidence, 1),
      each.bbox ? each.bbox.map(Math.round).join(", ") : "",
    ]);
  if (Number.isFinite(result.anomaly_score)) rows.unshift(["anomaly score", result.anomaly_score.toFixed(3), ""]);
  (result.values ?? []).forEach((value, at) => rows.push([`value ${at + 1}`, Number(value).toPrecision(5), ""]));
  if (!rows.length) return h("p", { class: "muted" }, "Nothing found in this picture.");
  return table("What was found", ["What", "#Sure", "#Box"], rows);
}

/** The figures of a result, for reading. */
export function resultFacts(result) {
  const { selection, image, window: readings } = result.metadata ?? {};
  return facts([
    ["Model", `${result.model_name}${result.model_version ? ` v${result.model_version}` : ""}`],
    ["Variant", result.backend_used],
    ["Asked", selection && selection.policy],
    ["Chosen by", selection && h("span", { class: "small" }, selection.reason)],
    ["Picture", image && `${image.width} × ${image.height}`],
    ["Window", readings && `${readings.readings} × ${readings.channels}`],
    ["Inference", ms(result.inference_time_ms)],
    ["Total", ms(result.metadata?.timings_ms?.total)],
    ["Result", h("code", {}, result.result_id)],
  ]);
}
