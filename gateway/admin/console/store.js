// What the page knows of the cameras, whatever view is open: their latest entries, short histories, alerts.

import { get, info } from "./api.js";
import { setClock } from "./format.js";
import { say } from "./link.js";

const KEPT_POINTS = 60;
const KEPT_ENDED = 40; // so that a start that comes late does not open one again
const MOST_ALERTS = 1000;

/** By camera: {camera, entry, summary, points}; `points` are the newest figures for a small curve. */
export const cameras = new Map();
/** By alert_id, newest last: the latest message of each event. */
const alerts = new Map();
/** By model: what GET /api/models says. */
export const models = new Map();

const listeners = new Set();
let connected = false;

/** Call `heard(kind, value)` for what is new, until the signal is aborted. */
export function onNews(heard, signal) {
  listeners.add(heard);
  signal.addEventListener("abort", () => listeners.delete(heard), { once: true });
}

function tell(kind, value) {
  listeners.forEach((heard) => heard(kind, value));
}

function cameraOf(id) {
  if (!cameras.has(id)) cameras.set(id, { camera: id, entry: null, summary: null, points: [] });
  return cameras.get(id);
}

/** The one figure of a result that stands for it in a curve: its anomaly score, its value, or how many it found. */
export function figure(result) {
  return result.anomaly_score ?? result.values?.[0] ?? result.predictions?.length ?? 0;
}

function take(entry) {
  const known = cameraOf(entry.camera);
  if (known.entry && known.entry.at > entry.at) return;
  if (known.entry?.at === entry.at && known.entry.picture === entry.picture) return;
  known.entry = entry;
  if (entry.result) {
    known.points.push(figure(entry.result));
    if (known.points.length > KEPT_POINTS) known.points.shift();
  }
  tell("camera", known);
}

function takeAlert(alert) {
  const before = alerts.get(alert.alert_id);
  if (before?.event === "end") return;
  alerts.delete(alert.alert_id);
  alerts.set(alert.alert_id, alert);
  const ended = [...alerts.values()].filter((each) => each.event === "end");
  if (ended.length > KEPT_ENDED) alerts.delete(ended[0].alert_id);
  if (alerts.size > MOST_ALERTS) alerts.delete(alerts.keys().next().value);
  tell("alert", alert);
}

/** The alerts that have begun and not ended, newest first; of one camera or of all. */
export function openAlerts(camera) {
  const open = [...alerts.values()].filter((alert) => alert.event !== "end");
  return open.filter((alert) => camera === undefined || alert.device_id === camera).reverse();
}

/** The handlers of the stream of events. */
export const handlers = {
  connected() {
    connected = true;
  },
  results({ now, entries }) {
    setClock(now);
    entries.forEach(take);
    tell("batch", entries.length);
  },
  alerts({ alerts: list }) {
    // The first of a connection has all that are open; others have ended while nobody listened.
    if (connected) alerts.clear();
    connected = false;
    list.forEach(takeAlert);
    tell("alerts", list.length);
    const last = list.at(-1);
    if (last?.event === "start") say(`Alert: ${last.label ?? last.class_name} at ${last.device_id}`);
  },
};

/** Ask for all cameras with their rates. */
export async function readCameras(signal) {
  const { cameras: list } = await get("api/cameras", signal);
  for (const summary of list) {
    const known = cameraOf(summary.camera);
    known.summary = summary;
    if (summary.entry) take(summary.entry);
  }
  tell("cameras", list.length);
}

/** Ask for all models. */
export async function readModels(signal) {
  const { models: list } = await get("api/models", signal);
  models.clear();
  list.forEach((model) => models.set(model.name, model));
  tell("models", list.length);
}

/** Whether this class of this model raises alerts. */
export function isAlertClass(model, label) {
  return models.get(model)?.alert_classes?.includes(label) ?? false;
}

/** Whether the gateway shows pictures at all. */
export function showsPictures() {
  return info.console === "pictures";
}
