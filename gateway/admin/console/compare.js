// Two variants on the same picture, how long each takes, how often they agree, and where they do not.

import { get, poll } from "./api.js";
import { agreementChart, histogram } from "./charts.js";
import { chip, empty, h, icon, panel, problem, setText, show, showRows, table } from "./dom.js";
import { Stage } from "./draw.js";
import { ago, count, ms, percent } from "./format.js";
import { pictured } from "./frames.js";
import { markDifferences } from "./matching.js";
import { cameras, handlers } from "./store.js";
import { listen } from "./stream.js";
import { byName } from "./tile.js";

const LOOK_MS = 2000;
const WIDTH = 960;
const SERIES = 120; // of 10 s each

/** Two stages side by side, each with a variant's name; `pair(comparison, frame)` fills them. */
export class Pair {
  #stages = [new Stage("First variant"), new Stage("Second variant")];
  #heads = [h("h3", {}), h("h3", {})];
  #notes = [h("span", { class: "muted small" }), h("span", { class: "muted small" })];
  element = h(
    "div",
    { class: "pair" },
    [0, 1].map((at) =>
      h(
        "figure",
        {},
        h("figcaption", {}, h("span", { class: "swatch", "data-variant": at }), this.#heads[at], this.#notes[at]),
        h("div", { class: "pair-picture" }, this.#stages[at].element),
      ),
    ),
  );

  /** Show what both said; `frame` is {picture, width, height} as far as there is one. */
  show(backends, frame) {
    const names = Object.keys(backends).slice(0, 2);
    const said = names.map((name) => backends[name]);
    const failed = said.some((each) => each.error);
    const lists = said.map((each) => each.predictions ?? []);
    const marked = failed || lists.length < 2 ? lists : markDifferences(...lists);
    names.forEach((name, at) => {
      setText(this.#heads[at], name);
      const { error, inference_time_ms: time, model_version: version } = said[at];
      setText(
        this.#notes[at],
        [version && `v${version}`, ms(time), !error && `${lists[at].length} found`].filter(Boolean).join(" · "),
      );
      this.#stages[at].alt = `The picture with what ${name} found`;
      if (error)
        this.#stages[at].say(
          chip(error.code, "bad"),
          h("span", {}, error.message),
          h("span", { class: "muted" }, error.fix),
        );
      else this.#stages[at].show({ ...frame, result: { ...frame.result, ...said[at], predictions: marked[at] } });
    });
  }
}

/** What the comparison says in numbers, in words. */
function inWords({ performance_delta: delta }) {
  const { predictions_match: match, agreement, faster_backend: faster, faster_by_percent: by } = delta ?? {};
  const parts = [
    match === true
      ? chip("they agree", "good")
      : match === false
        ? chip("they differ", "bad")
        : chip("not comparable", "warn"),
  ];
  if (agreement) {
    const only = Object.entries(agreement).filter(([name, value]) => name.startsWith("only_") && value);
    parts.push(h("span", {}, `${agreement.matched} matched`));
    only.forEach(([name, value]) => parts.push(h("span", {}, `${value} only ${name.slice(5)}`)));
    if (agreement.class_flips) parts.push(h("span", {}, `${agreement.class_flips} with another class`));
    if (Number.isFinite(agreement.mean_iou))
      parts.push(h("span", { class: "muted" }, `overlap ${percent(agreement.mean_iou, 1)}`));
  }
  const speed = by < 1 ? "equally fast" : `${faster} is ${Math.round(by)} % faster`;
  if (faster) parts.push(h("span", { class: "muted" }, speed));
  return parts;
}

function latencyTable(model, latency) {
  const rows = Object.entries(latency).map(([name, each], at) => [
    h("span", {}, h("span", { class: "swatch", "data-variant": at % 4 }), name),
    count(each.count),
    ...[each.mean_ms, each.p50_ms, each.p90_ms, each.p99_ms].map(ms),
  ]);
  return table(`Latency of the variants of ${model}`, ["Variant", "#Answers", "#Mean", "#p50", "#p90", "#p99"], rows);
}

/** The figures of one model: latency of both, agreement over time. */
function modelFigures(model) {
  const { true: yes = 0, false: no = 0, unknown = 0 } = model.agreement ?? {};
  const share = yes + no ? yes / (yes + no) : NaN;
  const kinds = model.kind === "shadow" && chip("shadow", "info", "a new version beside the one that serves");
  const about = `${percent(share, 1)} agreed of ${count(yes + no)} compared`;
  return h(
    "div",
    { class: "columns" },
    panel(`${model.model}: latency`, [
      histogram(model.latency ?? {}, `Distribution of the latency of ${model.variants.join(" and ")}`),
      latencyTable(model.model, model.latency ?? {}),
    ]),
    panel(
      `${model.model}: agreement`,
      [
        h(
          "p",
          { class: "big-figure" },
          percent(share, 1),
          h("small", {}, ` of ${count(yes + no)} compared${unknown ? `, ${count(unknown)} not comparable` : ""}`),
        ),
        agreementChart((model.series ?? []).slice(-SERIES), about),
        h(
          "ul",
          { class: "legend" },
          h("li", {}, h("span", { class: "swatch agreed" }), "agreed"),
          h("li", {}, h("span", { class: "swatch differed" }), "differed"),
          h("li", {}, h("span", { class: "swatch unknown" }), "one failed"),
        ),
      ],
      { more: kinds },
    ),
  );
}

function nothingCompared() {
  return empty(
    "Nothing has been compared yet",
    h("p", {}, "Ask both variants of a model about each snapshot with ENABLE_DUAL_BACKEND=true, in model.yaml with"),
    h("pre", { tabindex: "0" }, "backend: dual"),
    h("p", {}, "or for one snapshot:"),
    h("pre", { tabindex: "0" }, "edge-gateway send photo.jpg --backend dual"),
    h("p", {}, "A rollout compares a new version in shadow by itself."),
  );
}

/** Shows one comparison at a time: the newest of a camera, or one of the list of disagreements. */
class Viewer {
  constructor(signal) {
    this.signal = signal;
    this.pair = new Pair();
    this.words = h("div", { class: "chips" });
    this.title = h("span", { class: "muted" });
    this.shown = null;
    this.element = h("div", {}, h("div", { class: "compare-words" }, this.words, this.title), this.pair.element);
  }

  /** Show a comparison; of the newest one the picture that is kept now, with its own comparison, for it goes on. */
  async open(item, isNewest) {
    if (!item || this.shown === item.result_id) return;
    this.shown = item.result_id;
    const { entry, comparison, ...frame } = await this.#fetch(item, isNewest);
    if (this.shown !== item.result_id) return; // another one has been chosen meanwhile
    const told = comparison ?? item.comparison;
    show(this.words, inWords(told), told === item.comparison && item.kind === "shadow" && chip("shadow", "info"));
    show(this.title, `${item.camera} · ${item.model} · `, ago(entry?.at ?? item.at));
    this.pair.show(told.backends ?? {}, frame);
  }

  /** The picture with its size, and the comparison that belongs to it; where there is none, the size that is known. */
  async #fetch(item, isNewest) {
    const known = { ...cameras.get(item.camera)?.entry?.result?.metadata?.image };
    if (!item.picture) return known;
    const which = isNewest ? { id: item.camera } : { result: item.result_id };
    try {
      const frame = await get(`api/frame?${new URLSearchParams({ ...which, width: WIDTH })}`, this.signal);
      if (isNewest && !frame.comparison) return known;
      return { ...pictured(frame), entry: frame.entry, comparison: frame.comparison };
    } catch {
      return known; // it is gone meanwhile, or the view was left
    }
  }
}

/** The view: the newest pair of a camera, or a disagreement that somebody has chosen. */
class CompareView {
  #pairs = new Map(); // by camera; an answer has the newest only, and a camera that was chosen must not go
  #disagreements = [];
  #camera = null;
  #chosen = null;

  constructor(root, signal) {
    this.signal = signal;
    this.viewer = new Viewer(signal);
    this.select = h("select", { "aria-label": "Camera" });
    this.select.addEventListener("change", () => this.#choose(null, this.select.value));
    this.position = h("span", { class: "number", role: "status" });
    this.newest = h("button", { class: "button", type: "button", onclick: () => this.#choose(null) }, "Newest");
    this.list = h("ol", { class: "history two-lines" });
    this.figures = h("div", { class: "stack" });
    this.wrong = h("div", {});
    this.nothing = h("div", {});
    const tools = h("div", { class: "tools" }, this.select, this.newest);
    this.body = h(
      "div",
      { class: "compare-layout", hidden: true },
      panel("Side by side", this.viewer.element, { more: tools }),
      panel("Disagreements", this.list, { more: this.#pager(), className: "side-list" }),
    );
    const about = h("p", { class: "muted" }, "Both variants of a model on the same picture");
    const head = h("div", { class: "view-head" }, h("h1", {}, "Compare"), about);
    show(root, head, this.wrong, this.nothing, this.body, this.figures);
  }

  run() {
    document.addEventListener("keydown", (event) => this.#onKey(event), { signal: this.signal });
    listen(handlers, this.signal); // who looks at the stream has the pictures kept
    const failed = (error) => show(this.wrong, problem(error));
    poll(() => this.#look(), LOOK_MS, this.signal, failed);
  }

  #pager() {
    const step = (name, label, by) => {
      const onclick = () => this.#page(by);
      return h("button", { class: "icon-button", type: "button", "aria-label": label, onclick }, icon(name));
    };
    const [newer, older] = [step("back", "Newer disagreement", -1), step("next", "Older disagreement", 1)];
    return h("div", { class: "pager" }, newer, this.position, older);
  }

  async #look() {
    const { models, pairs, disagreements } = await get("api/compare", this.signal);
    pairs.forEach((pair) => this.#pairs.set(pair.camera, pair));
    this.#disagreements = disagreements;
    const some = models.length + pairs.length + disagreements.length > 0;
    this.body.hidden = !some;
    show(this.wrong);
    show(this.nothing, !some && nothingCompared());
    show(this.figures, models.map(modelFigures));
    if (some) this.#draw();
  }

  #draw() {
    this.#drawList();
    this.#drawCameras();
    const at = this.#at();
    const number = at < 0 ? "–" : at + 1;
    setText(this.position, this.#disagreements.length ? `${number} of ${this.#disagreements.length}` : "none");
    this.newest.setAttribute("aria-pressed", String(this.#chosen === null));
    const pair = this.#pairs.get(this.select.value);
    this.viewer.open(at >= 0 ? this.#disagreements[at] : pair, at < 0);
  }

  #drawList() {
    const none = h("li", { class: "muted" }, "None: the variants agree.");
    const rows = this.#disagreements.map((item) => this.#row(item));
    showRows(this.list, rows.length ? rows : none);
  }

  #row(item) {
    const { result_id: key } = item;
    const chosen = String(key === this.#chosen);
    const onclick = () => this.#choose(key);
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "history-row", "data-key": key, "aria-pressed": chosen, onclick },
        h("b", {}, item.camera),
        ago(item.at),
        h("span", { class: "muted small" }, item.model, item.picture ? "" : " · no picture"),
      ),
    );
  }

  #drawCameras() {
    const names = [...this.#pairs.keys()].sort(byName);
    if ([...this.select.options].map((each) => each.value).join() === names.join()) return;
    const options = names.map((name) => h("option", { value: name }, name));
    show(this.select, options);
    this.select.value = names.includes(this.#camera) ? this.#camera : (names[0] ?? "");
  }

  #at() {
    return this.#disagreements.findIndex((each) => each.result_id === this.#chosen);
  }

  #choose(resultId, camera = this.#camera) {
    this.#chosen = resultId;
    this.#camera = camera;
    this.#draw();
  }

  #page(by) {
    const at = this.#at();
    const next = this.#disagreements[at < 0 ? 0 : at + by];
    if (next) this.#choose(next.result_id);
  }

  #onKey(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !event.target.closest("input, select, dialog, nav, textarea")) this.#page(by);
  }
}

/** Show the comparisons until the signal is aborted. */
export function mountCompare(root, _argument, signal) {
  new CompareView(root, signal).run();
}
