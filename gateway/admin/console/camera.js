// One camera in full: its picture as large as there is room, what was found, where the time went, and what was before.

import { get, poll } from "./api.js";
import { sparkline } from "./charts.js";
import { chip, empty, h, icon, panel, problem, setText, show, showRows, table } from "./dom.js";
import { Stage, classChips } from "./draw.js";
import { ago, clockTime, count, ms, rate, setAgo, words } from "./format.js";
import { Frames, pictured } from "./frames.js";
import { predictionList, resultFacts, timings } from "./results.js";
import { cameras, figure, handlers, isAlertClass, onNews, readCameras, readModels } from "./store.js";
import { listen } from "./stream.js";
import { byName, freshness, pictureNote, showSeries } from "./tile.js";

const LOOK_MS = 2000;
const WIDTHS = [640, 1600];
const PAST_WIDTH = 1280;

function failure(entry) {
  const { code, message, fix } = entry.error.error ?? entry.error;
  return [chip(code ?? "ERROR", "bad"), h("p", {}, message), fix && h("p", { class: "muted" }, fix)];
}

/** One row of the history; pressing it shows that result above. */
function historyRow(entry, choose, isChosen) {
  const { result } = entry;
  const onclick = () => choose(entry);
  const what = result
    ? h(
        "span",
        { class: "chips" },
        classChips(result.predictions ?? [], (name) => isAlertClass(result.model_name, name), 3),
        !result.predictions?.length &&
          h(
            "span",
            { class: "muted" },
            Number.isFinite(result.anomaly_score) ? `score ${result.anomaly_score.toFixed(2)}` : "nothing found",
          ),
      )
    : chip(entry.error.error?.code ?? entry.error.code ?? "ERROR", "bad");
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "history-row", "data-key": entry.at, "aria-pressed": String(isChosen), onclick },
      h("span", { class: "number" }, clockTime(entry.at)),
      what,
      h(
        "span",
        { class: "muted small number" },
        result ? `${result.backend_used} · ${ms(result.metadata?.timings_ms?.total)}` : "",
      ),
    ),
  );
}

function alertRows(list) {
  if (!list.length) return h("p", { class: "muted" }, "No alerts of this camera since the gateway started.");
  const rows = list.map((alert) => [
    words(alert.label ?? alert.class_name),
    chip(alert.event === "end" ? "over" : "under way", alert.event === "end" ? "plain" : "bad"),
    ago(Date.parse(alert.started_at) / 1000),
    alert.duration_s === null ? "" : `${alert.duration_s.toFixed(1)} s`,
    alert.event === "end" ? count(alert.frames) : "",
  ]);
  return table("Alerts of this camera", ["What", "State", "Began", "#Lasted", "#Frames"], rows);
}

/** The latest alert message of each event, newest first. */
function latestOfEach(list) {
  const known = new Map();
  for (const alert of list) {
    const other = known.get(alert.alert_id);
    if (!other || other.event !== "end") known.set(alert.alert_id, alert);
  }
  return [...known.values()].sort((a, b) => Date.parse(b.started_at) - Date.parse(a.started_at));
}

/** The view of one camera: live, or with one of its last results that somebody has chosen. */
class CameraView {
  #chosen = null;
  #drawn = null;

  constructor(root, id, signal) {
    Object.assign(this, { root, id, signal });
    this.stage = new Stage(`Picture of ${id}`, { large: true });
    this.frames = new Frames(signal);
    this.age = ago(this.#latest()?.at ?? NaN);
    this.head = h("p", { class: "muted" });
    this.details = h("div", { class: "stack" });
    this.history = h("ol", { class: "history" });
    this.curve = h("div", {});
    this.alerts = h("div", {});
    this.missing = h("div", {});
    this.again = h("button", { class: "button", type: "button", hidden: true }, "Back to live");
    this.again.addEventListener("click", () => this.#choose(null));
    this.body = this.#build();
  }

  #build() {
    const picture = h(
      "section",
      { class: "panel flush", "aria-label": "Picture" },
      h("div", { class: "camera-picture" }, this.stage.element),
    );
    const series = panel("Last results", h("div", {}, this.curve, this.history), { more: this.again });
    const left = h("div", { class: "stack" }, picture, series, panel("Alerts", this.alerts));
    const body = h("div", { class: "camera-layout" }, left, this.details);
    const back = h("a", { class: "icon-button", href: "#live", "aria-label": "All cameras" }, icon("back"));
    const head = h("div", { class: "view-head" }, back, h("h1", {}, this.id), this.age, this.head);
    show(this.root, head, this.missing, body);
    return body;
  }

  run() {
    document.addEventListener("keydown", (event) => this.#onKey(event), { signal: this.signal });
    onNews((kind, value) => kind === "camera" && value.camera === this.id && this.#live(), this.signal);
    this.#live();
    this.#follow();
    listen(handlers, this.signal);
    Promise.all([readCameras(this.signal), readModels(this.signal)]).catch(() => {}); // the poll says what is wrong
    poll(
      () => this.#look(),
      LOOK_MS,
      this.signal,
      (error) => this.#failed(error),
    );
  }

  #latest() {
    return cameras.get(this.id)?.entry;
  }

  #live() {
    const entry = this.#latest();
    if (!entry || this.#chosen) return;
    setAgo(this.age, entry.at);
    this.root.dataset.fresh = freshness(entry.at);
    // What has a picture is described when that comes: both are of the same snapshot then.
    if (!entry.picture || this.#drawn === null) this.#describe(entry);
    if (!entry.result) this.stage.say(failure(entry));
    else if (entry.result.metadata?.window) showSeries(this.stage, cameras.get(this.id), entry.result);
    else if (!entry.picture) this.stage.show({ result: entry.result, note: pictureNote() });
    this.frames.news();
  }

  /** Have pictures come, as long as nothing of the past is looked at. */
  #follow() {
    if (this.#chosen) {
      this.frames.unwatch(this.id);
      return;
    }
    const wanted = () => this.stage.element.clientWidth * Math.min(devicePixelRatio, 2);
    this.frames.watch(this.id, {
      width: () => Math.min(Math.max(wanted(), WIDTHS[0]), WIDTHS[1]),
      entry: () => this.#latest(),
      shown: () => this.stage.shown,
      take: (frame) => {
        if (this.#chosen) return null;
        this.#describe(frame.entry);
        return this.stage.show(pictured(frame));
      },
    });
  }

  #describe(entry) {
    if (this.#drawn === entry) return;
    this.#drawn = entry;
    if (!entry.result) {
      show(this.details, panel("This snapshot failed", failure(entry)));
      return;
    }
    const { result } = entry;
    show(
      this.details,
      panel("Found", predictionList(result)),
      panel("Time", timings(result)),
      panel("Result", resultFacts(result)),
    );
  }

  #choose(entry) {
    this.#chosen = entry;
    this.again.hidden = entry === null;
    const shown = entry ?? this.#latest();
    if (shown) this.#describe(shown);
    if (entry) this.#showPast(entry);
    else this.stage.shown = null;
    this.#follow();
  }

  async #showPast(entry) {
    if (!entry.result) {
      this.stage.say(failure(entry));
      return;
    }
    let seen = { result: entry.result };
    if (entry.picture) {
      try {
        const query = new URLSearchParams({ result: entry.result.result_id, width: PAST_WIDTH });
        seen = pictured(await get(`api/frame?${query}`, this.signal));
      } catch {
        // it is gone meanwhile; its boxes are still known
      }
    }
    if (this.#chosen === entry) await this.stage.show(seen);
  }

  async #look() {
    const answer = await get(`api/camera?${new URLSearchParams({ id: this.id })}`, this.signal);
    show(this.missing);
    this.body.hidden = false;
    const { published, failed, dropped, rate_per_s: speed, entry } = answer;
    const counts = [rate(speed), `${count(published)} answered`];
    if (failed) counts.push(`${count(failed)} failed`);
    if (dropped) counts.push(`${count(dropped)} dropped`);
    setText(this.head, counts.join(" · "));
    if (entry) handlers.results({ entries: [entry] });
    this.#live();
    this.#drawHistory(answer.history);
    show(this.alerts, alertRows(latestOfEach(answer.alerts)));
  }

  #drawHistory(entries) {
    const choose = (entry) => this.#choose(entry);
    const rows = entries.map((entry) => historyRow(entry, choose, entry.at === this.#chosen?.at));
    showRows(this.history, rows);
    const results = entries.flatMap(({ result }) => result ?? []).reverse();
    const isSensor = results.at(-1)?.metadata?.window;
    const values = results.map((result) => (isSensor ? figure(result) : (result.metadata?.timings_ms?.total ?? 0)));
    const about = `${isSensor ? "Figures" : "Milliseconds"} of the last ${values.length} results`;
    show(this.curve, values.length > 1 && sparkline(values, about, { className: "wide" }));
  }

  #failed(error) {
    if (error.status !== 404) {
      show(this.missing, problem(error));
      return;
    }
    this.body.hidden = true;
    const back = h("a", { class: "button", href: "#live" }, "All cameras");
    show(this.missing, empty(`No camera ${this.id}`, h("p", {}, error.fix), back));
  }

  /** The arrow keys go to the next camera. */
  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target.closest("input, select, dialog, nav, .scroll")) return;
    const names = [...cameras.keys()].sort(byName);
    const next = names[names.indexOf(this.id) + step];
    if (next) location.hash = `live/${encodeURIComponent(next)}`;
  }
}

/** Show one camera until the signal is aborted. */
export function mountCamera(root, id, signal) {
  new CameraView(root, id, signal).run();
}
