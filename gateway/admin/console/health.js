// Whether the gateway is well: who it is connected to, how much comes and goes, what fails and why, and its log.

import { get, poll } from "./api.js";
import { gauge, sparkline } from "./charts.js";
import { chip, facts, h, panel, problem, setText, show, table } from "./dom.js";
import { bytes, count, duration, percent, rate, words } from "./format.js";
import { LogPanel } from "./logs.js";

const LOOK_MS = 2000;
const SERIES = { received: 1, published: 2, failed: 3, dropped: 4, queue: 5 };
const PER_S = 5; // seconds of one point of the series
const TONES = { closed: "good", half_open: "warn", open: "bad" };

function tile(title, value, tone, more) {
  return h(
    "div",
    { class: "stat", "data-tone": tone },
    h("h2", {}, title),
    h("p", { class: "stat-value" }, value),
    h("p", { class: "muted small" }, more),
  );
}

function rateTile(title, value, series, column, more) {
  const values = series.slice(-60).map((point) => point[column] / PER_S);
  const curve = sparkline(values, `${title}, last ${duration(values.length * PER_S)}, now ${rate(value)}`);
  return h("div", { class: "stat" }, h("h2", {}, title), h("p", { class: "stat-value" }, rate(value)), more, curve);
}

function partsOf(health) {
  const { status, broker, triton, queue, series, process } = health;
  const full = Math.max(queue.messages / (queue.max_messages || Infinity), queue.bytes / (queue.max_bytes || Infinity));
  const waiting = `${count(queue.messages)} of ${count(queue.max_messages)} messages, ${bytes(queue.bytes)} of ${bytes(queue.max_bytes)}`;
  const queueTile = tile("Queue", percent(full), full > 0.9 ? "bad" : full > 0.6 ? "warn" : "good", waiting);
  queueTile.append(
    gauge(full, `The queue is ${percent(full)} full`),
    sparkline(
      series.slice(-60).map((point) => point[SERIES.queue]),
      "Messages in the queue, last 5 minutes",
    ),
  );
  return [
    tile(
      "Gateway",
      status.status === "ready" ? "ready" : "not ready",
      status.status === "ready" ? "good" : "bad",
      `version ${status.version}, up ${duration(process?.uptime_s)}`,
    ),
    tile(
      "Broker",
      broker.connected ? "connected" : "away",
      broker.connected ? "good" : "bad",
      [broker.address, broker.backlog_bytes ? `${bytes(broker.backlog_bytes)} wait for it` : ""]
        .filter(Boolean)
        .join(" · "),
    ),
    tritonTile(triton),
    queueTile,
  ];
}

/** Of one Triton whether it is there, of several how many take requests, and how busy each is. */
function tritonTile({ ready, address, endpoints }) {
  if (!endpoints?.length) return tile("Triton", ready ? "ready" : "not ready", ready ? "good" : "bad", address ?? "");
  const up = endpoints.filter((each) => each.up).length;
  const each = endpoints.map(({ address, up, outstanding }) => `${address} ${up ? `${outstanding} under way` : "not in service"}`);
  const tone = !ready ? "bad" : up < endpoints.length ? "warn" : "good";
  return tile("Triton", `${up} of ${endpoints.length}`, tone, each.join(" · "));
}

/** Counts by name, the largest first, with their share as a bar. */
function countTable(caption, counts, nothing, tone = () => "plain") {
  const known = Object.entries(counts ?? {})
    .filter(([, value]) => value > 0)
    .sort((a, b) => b[1] - a[1]);
  if (!known.length) return h("p", { class: "muted" }, nothing);
  const whole = known.reduce((sum, [, value]) => sum + value, 0);
  return table(
    caption,
    ["Name", "#Count", "#Share"],
    known.map(([name, value]) => [chip(name, tone(name)), count(value), percent(value / whole, 1)]),
  );
}

function breakers(list) {
  if (!list?.length) return h("p", { class: "muted" }, "No variant is known yet.");
  const rows = list.map((each) => [
    each.model,
    each.variant,
    chip(words(each.state), TONES[each.state]),
    each.reason || "–",
  ]);
  return table("Circuit breakers", ["Model", "Variant", "State", "Why"], rows);
}

function told({ reasons, degraded }) {
  return [
    ...(reasons ?? []).map((text) => h("p", { class: "note", "data-tone": "bad" }, text)),
    ...(degraded ?? []).map((text) => h("p", { class: "note", "data-tone": "warn" }, text)),
  ];
}

function inWords(name, value) {
  if (typeof value !== "object" || value === null) return name.includes("bytes") ? bytes(value) : String(value);
  const counted = Object.entries(value).filter(([, number]) => number);
  return counted.map(([key, number]) => `${words(key)} ${count(number)}`).join(", ") || "none";
}

function processFacts({ process, shared_memory: memory, status }) {
  return facts([
    ["Gateway", status.gateway_id],
    ["Facility", status.facility],
    ["Business unit", status.business_unit],
    ["Memory", bytes(process?.resident_bytes)],
    ["CPU time", duration(process?.cpu_seconds)],
    ["Workers", process?.workers],
    ...Object.entries(memory ?? {}).map(([name, value]) => [`Shared memory: ${words(name)}`, inWords(name, value)]),
  ]);
}

/** Readings that wait for the others of their window are neither answered nor lost. */
function intoWindows(value) {
  return value > 0 && h("p", { class: "muted small" }, `and ${rate(value)} into windows`);
}

function draw(hosts, health) {
  const { status, rates, series } = health;
  show(hosts.told, told(status));
  show(hosts.parts, partsOf(health));
  show(
    hosts.rates,
    rateTile("Received", rates.received_per_s, series, SERIES.received),
    rateTile("Answered", rates.published_per_s, series, SERIES.published, intoWindows(rates.windowed_per_s)),
    rateTile("Failed", rates.failed_per_s, series, SERIES.failed),
    rateTile("Dropped", rates.dropped_per_s, series, SERIES.dropped),
  );
  const tone = (name) =>
    ({ published: "good", windowed: "good" })[name] ?? (name.startsWith("dropped") ? "warn" : "bad");
  show(hosts.outcomes, countTable("Snapshots by outcome", status.snapshots, "No snapshot yet.", tone));
  show(
    hosts.drops,
    countTable("Drops by reason", health.drops, "Nothing has been dropped.", () => "warn"),
  );
  show(
    hosts.errors,
    countTable("Errors by code", health.errors, "No errors since the start.", () => "bad"),
  );
  show(hosts.breakers, breakers(health.breakers));
  show(hosts.process, processFacts(health));
}

/** Show how the gateway is until the signal is aborted. */
export function mountHealth(root, _argument, signal) {
  const names = ["told", "parts", "rates", "outcomes", "drops", "errors", "breakers", "process"];
  const hosts = Object.fromEntries(names.map((name) => [name, h("div", {})]));
  hosts.parts.className = hosts.rates.className = "stats";
  const wrong = h("div", {});
  const head = h("p", { class: "muted" }, "Connections, rates, failures and the log");
  const log = new LogPanel(signal);
  show(
    root,
    h("div", { class: "view-head" }, h("h1", {}, "Health"), head),
    wrong,
    hosts.told,
    hosts.parts,
    hosts.rates,
    h(
      "div",
      { class: "columns" },
      panel("Outcomes", hosts.outcomes),
      panel("Drops", hosts.drops),
      panel("Errors", hosts.errors),
    ),
    h("div", { class: "columns" }, panel("Circuit breakers", hosts.breakers), panel("Process", hosts.process)),
    log.element,
  );
  const look = async () => {
    const health = await get("api/health", signal);
    show(wrong);
    draw(hosts, health);
    setText(head, health.status.status === "ready" ? "All that should serve does" : "Something needs a hand");
  };
  poll(look, LOOK_MS, signal, (error) => show(wrong, problem(error)));
  log.follow();
}
