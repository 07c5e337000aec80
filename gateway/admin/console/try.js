// One picture of one's own, asked on the way of POST /v1/infer; its result drawn, and as JSON to take along.

import { ApiError, act } from "./api.js";
import { predictionList, resultFacts, timings } from "./results.js";
import { Pair } from "./compare.js";
import { toast } from "./dialogs.js";
import { h, icon, panel, problem, setText, show } from "./dom.js";
import { Stage } from "./draw.js";
import { models, readModels } from "./store.js";

const BOTH = "both";
const DEVICE = "console";

/** Ask about a body; `variant` may be empty. Null when the person gives no token. */
function infer(body, model, variant) {
  const query = new URLSearchParams({ device: DEVICE });
  if (model) query.set("model", model);
  if (variant) query.set("variant", variant);
  return act(`v1/infer?${query}`, { body, headers: { "Content-Type": body.type || "application/octet-stream" } });
}

/** A whole window of readings that go up and down a little, as a thermometer's do. */
function exampleOf(readings, channels) {
  const values = Array.from({ length: readings * channels }, (_, at) => {
    const reading = Math.floor(at / channels);
    return Number((21 + Math.sin(reading / 5)).toFixed(2));
  });
  return JSON.stringify({ sensor_id: DEVICE, values });
}

/** What has been asked last, drawn. */
class Answer {
  constructor() {
    this.stage = new Stage("Your picture with what was found", { large: true });
    this.element = h("div", { class: "stack" });
    this.picture = null;
  }

  keep(file) {
    if (this.picture) URL.revokeObjectURL(this.picture);
    this.picture = file ? URL.createObjectURL(file) : null;
  }

  async draw(answers) {
    const result = answers[0][1];
    const seen = { picture: this.picture, ...result.metadata?.image };
    const parts = [];
    if (answers.length > 1) {
      const pair = new Pair();
      parts.push(panel("Side by side", pair.element));
      pair.show(Object.fromEntries(answers), seen);
    } else {
      parts.push(
        h(
          "section",
          { class: "panel flush", "aria-label": "Result" },
          h("div", { class: "camera-picture" }, this.stage.element),
        ),
      );
      await this.stage.show({ ...seen, result });
      parts.push(panel("Found", predictionList(result)));
      parts.push(panel("Time", timings(result)), panel("Result", resultFacts(result)));
    }
    const json = JSON.stringify(answers.length > 1 ? Object.fromEntries(answers) : result, null, 2);
    const copy = h("button", { class: "button", type: "button", onclick: () => copyText(json) }, "Copy");
    parts.push(panel("JSON", h("pre", { class: "json", tabindex: "0" }, json), { more: copy }));
    show(this.element, parts);
  }
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    // Over plain HTTP to another machine a browser lets no page write the clipboard by that way.
    const area = h("textarea", { class: "unseen", "aria-hidden": "true" }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    toast(done ? "Copied" : "The browser does not let the page copy; mark the text yourself", done ? "good" : "bad");
  }
}

function options(select, names) {
  const before = select.value;
  show(
    select,
    names.map(([value, text]) => h("option", { value }, text)),
  );
  if (names.some(([value]) => value === before)) select.value = before;
}

/** The form on the left, the answer beside it. */
class TryView {
  #given = null;
  #asked = 0;
  #example = "";

  constructor(root, signal) {
    this.signal = signal;
    this.answer = new Answer();
    this.model = h("select", { id: "try-model", onchange: () => this.#changeModel() });
    this.variant = h("select", { id: "try-variant", onchange: () => this.#isSensor() || this.#ask() });
    this.busy = h("p", { class: "muted", role: "status" });
    this.words = h("p", {}, "Drop a picture here, or choose one");
    this.file = h("input", { type: "file", id: "try-file", accept: "image/*", class: "unseen" });
    this.file.addEventListener("change", () => this.#take(this.file.files[0]));
    this.chooser = h("label", { class: "drop", for: "try-file" }, icon("try"), this.words, this.file);
    this.readings = h("textarea", { id: "try-readings", rows: "5", spellcheck: "false" });
    this.typed = h(
      "div",
      { hidden: true },
      h("label", { for: "try-readings" }, "Readings as JSON, the whole window, oldest first"),
      this.readings,
      h("button", { class: "button primary", type: "button", onclick: () => this.#ask() }, "Ask"),
    );
    const head = h(
      "div",
      { class: "view-head" },
      h("h1", {}, "Try"),
      h("p", { class: "muted" }, "A picture of your own"),
    );
    show(root, head, h("div", { class: "try-layout" }, this.#form(), this.answer.element));
    for (const name of ["dragover", "dragleave", "drop"]) {
      root.addEventListener(name, (event) => this.#onDrag(event), { signal });
    }
  }

  #form() {
    const field = (select, name) => h("div", {}, h("label", { for: select.id }, name), select);
    const fields = h("div", { class: "fields" }, field(this.model, "Model"), field(this.variant, "Variant"));
    const about =
      "It takes the way of a snapshot: the same queue, model and limits. Nothing of it is published or kept.";
    return h(
      "div",
      { class: "stack" },
      panel("Ask about a picture", [fields, this.chooser, this.typed, this.busy]),
      h("p", { class: "muted small" }, about),
    );
  }

  async run() {
    try {
      await readModels(this.signal);
    } catch (error) {
      const wrong = error instanceof ApiError && problem(error, () => this.run());
      show(this.answer.element, wrong);
      return;
    }
    show(this.answer.element);
    const names = [...models.keys()].map((name) => [name, name]);
    options(this.model, names);
    const usual = [...models.values()].find((each) => each.input_topics?.includes("#"));
    if (usual) this.model.value = usual.name;
    this.#fit();
  }

  #isSensor() {
    return models.get(this.model.value)?.model_type?.startsWith("sensor-") ?? false;
  }

  #variants() {
    return Object.keys(models.get(this.model.value)?.variants ?? {});
  }

  /** Offer what the chosen model has. */
  #fit() {
    const names = this.#variants();
    const both = names.length > 1 ? [[BOTH, `${names.slice(0, 2).join(" and ")}, side by side`]] : [];
    options(this.variant, [["", "as configured"], ...names.map((name) => [name, name]), ...both]);
    this.chooser.hidden = this.#isSensor();
    this.typed.hidden = !this.#isSensor();
    if (this.readings.value !== this.#example) return;
    const { readings = 1, channels = 1 } = this.#input() ?? {};
    this.#example = this.readings.value = exampleOf(readings, channels);
  }

  /** What one of the model's variants wants, as far as one is known. */
  #input() {
    const variants = Object.values(models.get(this.model.value)?.variants ?? {});
    return variants.find((each) => each.input)?.input;
  }

  #changeModel() {
    this.#asked += 1; // what the other model says comes too late
    show(this.answer.element);
    setText(this.busy, "");
    this.#fit();
    if (this.#given && !this.#isSensor()) this.#ask();
  }

  #onDrag(event) {
    event.preventDefault();
    this.chooser.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop") this.#take(event.dataTransfer.files[0]);
  }

  #take(file) {
    if (!file) return;
    this.#given = file;
    setText(this.words, file.name);
    this.#ask();
  }

  async #ask() {
    const sensor = this.#isSensor();
    const body = sensor ? new Blob([this.readings.value], { type: "application/json" }) : this.#given;
    if (!body) return;
    const number = ++this.#asked;
    this.answer.keep(sensor ? null : body);
    setText(this.busy, "Asking ...");
    const names = this.variant.value === BOTH ? this.#variants().slice(0, 2) : [this.variant.value];
    try {
      const answers = [];
      for (const name of names) answers.push([name, await infer(body, this.model.value, name)]);
      if (this.#asked !== number || this.signal.aborted) return;
      if (answers.every(([, result]) => result)) await this.answer.draw(answers);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.#asked !== number) return;
      show(this.answer.element, problem(error));
    }
    setText(this.busy, "");
  }
}

/** Show the form and what came of it until the signal is aborted. */
export function mountTry(root, _argument, signal) {
  new TryView(root, signal).run();
}
