// How numbers, times and names read.

import { h } from "./dom.js";

let offset = 0; // seconds that the gateway's clock is before this browser's

/** The gateway's time in epoch seconds, as far as this browser knows it. */
export function now() {
  return Date.now() / 1000 + offset;
}

/** Take over the gateway's clock, which may differ from this browser's. */
export function setClock(epoch) {
  if (Number.isFinite(epoch)) offset = epoch - Date.now() / 1000;
}

/** Seconds as a short age: 0.4 s, 12 s, 3 min, 2 h, 5 d. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 0.95) return `${Math.max(seconds, 0).toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** A relative time that keeps itself current. */
export function ago(epoch) {
  const element = h("time", { "data-at": epoch });
  setAgo(element, epoch);
  return element;
}

/** Let a time element tell of another moment. */
export function setAgo(element, epoch) {
  element.dataset.at = epoch;
  element.title = Number.isFinite(epoch) ? new Date(epoch * 1000).toLocaleString() : "";
  tell(element);
}

function tell(element) {
  const age = now() - Number(element.dataset.at);
  const text = Number.isNaN(age) ? "" : age < 0.95 ? "now" : `${duration(age)} ago`;
  if (element.textContent !== text) element.textContent = text;
}

/** Bring every relative time on the page up to date. */
export function tickTimes() {
  document.querySelectorAll("time[data-at]").forEach(tell);
}

/** Milliseconds, as many digits as matter. */
export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** A share between 0 and 1. */
export function percent(value, digits = 0) {
  return Number.isFinite(value) ? `${(value * 100).toFixed(digits)} %` : "–";
}

/** A count with thin spaces between thousands. */
export function count(value) {
  return Number.isFinite(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : "–";
}

/** A rate per second. */
export function rate(value) {
  return Number.isFinite(value) ? `${value >= 10 ? Math.round(value) : value.toFixed(1)}/s` : "–";
}

/** Bytes in kB, MB or GB. */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at += 1) value /= 1000;
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

/** A name of programs in words: person_without_helmet reads better with spaces. */
export function words(name) {
  return String(name).replaceAll("_", " ");
}

/** A short clock time of an epoch. */
export function clockTime(epoch) {
  return new Date(epoch * 1000).toLocaleTimeString([], {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hour12: false,
  });
}
