// What serves, where a rollout stands and why, the golden examples, and the actions behind the token.

import { ApiError, act, get, info, open, poll } from "./api.js";
import { confirmAction, toast } from "./dialogs.js";
import { chip, empty, facts, h, panel, problem, show, table } from "./dom.js";
import { Stage, classChips } from "./draw.js";
import { ms, words } from "./format.js";
import { rolloutPanel } from "./rollout.js";

const LOOK_MS = 2000;
const TONES = {
  serving: "good",
  rolling_out: "info",
  not_serving: "bad",
  asleep: "plain",
  unloaded: "warn",
  removed: "plain",
};
const STATES = { ready: "good", loading: "info", refused: "bad", absent: "plain", asleep: "plain", unloaded: "warn" };
const BREAKERS = { closed: "good", half_open: "warn", open: "bad" };
const ACTIONS = {
  promote: [
    "Promote",
    "The version under way serves at once, without the rest of its trial; or the version that you name.",
  ],
  rollback: [
    "Roll back",
    "The version under way is given up, or else the one before serves again; or the version that you name.",
  ],
  load: ["Load", "An unloaded model comes back; a version that you name is tried, also when it was refused before."],
  unload: ["Unload", "The model is taken out of service and answers no camera; or only the version that you name."],
};
const GOLDEN_SHOWN = 12;
const NAMES_SHOWN = 8;

/** Names as they are written in files, which break at their underscores where they have to. */
function names(list) {
  if (!list.length) return null;
  const more = list.length > NAMES_SHOWN ? ` and ${list.length - NAMES_SHOWN} more` : "";
  const parts = list.slice(0, NAMES_SHOWN).join(", ").split(/(?<=_)/);
  return h("span", {}, parts.map((part) => [part, h("wbr")]), more);
}

/** Pixels of a picture, or readings and the values in each. */
function inputSize(input) {
  if (!input) return "–";
  return input.readings ? `${input.readings} × ${input.channels}` : `${input.width} × ${input.height}`;
}

function variantTable(model) {
  const rows = Object.entries(model.variants ?? {}).map(([name, each]) => [
    h("b", {}, name),
    chip(words(each.state ?? "unknown"), STATES[each.state], [each.reason, each.fix].filter(Boolean).join(". ")),
    each.version || "–",
    inputSize(each.input),
    each.on_gpu === null || each.on_gpu === undefined ? "–" : each.on_gpu ? "GPU" : "CPU",
    ms(each.queue_ms),
    ms(each.compute_ms),
    Number.isFinite(each.memory_mb) ? `${Math.round(each.memory_mb)} MB` : "–",
    chip(words(each.breaker ?? "unknown"), BREAKERS[each.breaker]),
    h("code", {}, each.triton_model),
  ]);
  const columns = [
    "Variant",
    "State",
    "#Version",
    "#Input",
    "Runs on",
    "#Queue",
    "#Compute",
    "#Memory",
    "Breaker",
    "Triton model",
  ];
  return table(`Variants of ${model.name}`, columns, rows);
}

function reasons(model) {
  return Object.entries(model.variants ?? {})
    .filter(([, each]) => each.reason)
    .map(([name, each]) =>
      h(
        "p",
        { class: "note" },
        h("b", {}, name),
        " ",
        each.reason,
        each.fix && h("span", { class: "muted" }, ` ${each.fix}`),
      ),
    );
}

/** Carry out an action after a confirmation, and say what the gateway answered. */
async function carryOut(name, action, version) {
  const [title, text] = ACTIONS[action];
  const what = version ? `${title} version ${version} of ${name}` : `${title} ${name}`;
  if (!(await confirmAction(`${what}?`, text, title))) return;
  const query = version ? `?version=${encodeURIComponent(version)}` : "";
  try {
    const answer = await act(`api/models/${encodeURIComponent(name)}/${action}${query}`);
    if (answer) toast(answer.message);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    toast([error.message, error.fix].filter(Boolean).join(". "), "bad");
  }
}

function actionBar(name) {
  if (!info.actions)
    return h("p", { class: "muted small" }, "Actions are off: set API_TOKEN_FILE to allow them behind its token.");
  const version = h("input", {
    class: "version",
    inputmode: "numeric",
    pattern: "[0-9]*",
    placeholder: "version",
    "aria-label": `Version of ${name}, or nothing`,
  });
  const buttons = Object.entries(ACTIONS).map(([action, [title, text]]) =>
    h(
      "button",
      { class: "button", type: "button", title: text, onclick: () => carryOut(name, action, version.value.trim()) },
      title,
    ),
  );
  return h("div", { class: "actions", role: "group", "aria-label": `Actions on ${name}` }, buttons, version);
}

/** The golden examples of a model, fetched when they are opened. */
class Golden {
  #loaded = false;

  constructor(model, signal) {
    this.model = model;
    this.signal = signal;
    this.body = h("div", { class: "golden" });
    this.element = h("details", { ontoggle: () => this.#open() }, h("summary", {}, "Golden examples"), this.body);
  }

  async #open() {
    if (this.#loaded || !this.element.open) return;
    this.#loaded = true;
    try {
      const { golden } = await get(`api/golden?${new URLSearchParams({ model: this.model })}`, this.signal);
      const tiles = golden.slice(0, GOLDEN_SHOWN).map((example) => this.#tile(example));
      const more =
        golden.length > GOLDEN_SHOWN && h("p", { class: "muted" }, `and ${golden.length - GOLDEN_SHOWN} more`);
      show(
        this.body,
        tiles,
        more,
        !golden.length &&
          h(
            "p",
            { class: "muted" },
            "None: put examples into the model's golden folder, and no version serves that fails them.",
          ),
      );
    } catch (error) {
      if (!(error instanceof ApiError)) return; // the view was left
      this.#loaded = false;
      show(
        this.body,
        problem(error, () => this.#open()),
      );
    }
  }

  #tile(example) {
    const stage = new Stage(`Golden example ${example.name}`);
    const expected = example.expected ?? [];
    if (example.picture) this.#draw(stage, example, expected);
    else stage.say(h("span", { class: "muted" }, "numbers, no picture"));
    const chips = h(
      "span",
      { class: "chips" },
      classChips(expected, () => false, 3),
      !expected.length && h("span", { class: "muted small" }, "nothing expected"),
    );
    return h(
      "figure",
      {},
      h("div", { class: "tile-picture" }, stage.element),
      h("figcaption", {}, h("span", { class: "small" }, example.name), chips),
    );
  }

  async #draw(stage, example, expected) {
    stage.say(h("span", { class: "muted" }, "Loading"));
    const query = new URLSearchParams({ model: this.model, name: example.name, width: 480 });
    try {
      const response = await open(`api/golden/picture?${query}`, this.signal);
      const picture = URL.createObjectURL(await response.blob());
      // Boxes are in pixels of the file, which is larger than what comes.
      const [width, height] = (response.headers.get("X-Picture-Size") ?? "16x9").split("x").map(Number);
      await stage.show({ picture, width, height, result: { predictions: expected } });
      URL.revokeObjectURL(picture);
    } catch (error) {
      if (error instanceof ApiError)
        stage.say(h("span", { class: "muted" }, error.status === 404 ? "no picture" : error.message));
      else if (!this.signal.aborted) throw error;
    }
  }
}

/** One model; what changes is drawn anew, what a person has opened or typed stays. */
class ModelCard {
  #seen = "";

  constructor(name, signal) {
    this.state = h("div", { class: "stack" });
    this.chips = h("span", { class: "row" });
    const golden = new Golden(name, signal);
    const body = h("div", { class: "stack" }, this.state, golden.element, actionBar(name));
    this.element = panel(name, body, { more: this.chips, className: "model" });
  }

  draw(model) {
    const text = JSON.stringify(model);
    if (text === this.#seen) return;
    this.#seen = text;
    show(
      this.chips,
      chip(words(model.status), TONES[model.status]),
      model.version && chip(`v${model.version}`, "plain", "the stable version"),
    );
    const labels = model.labels ?? [];
    show(
      this.state,
      facts([
        ["Type", model.model_type],
        ["Layout", model.layout],
        ["Version before", model.previous_version && `v${model.previous_version}`],
        ["Classes", names(labels)],
        ["Alerts on", names(model.alert_classes ?? [])],
        ["Topics", (model.input_topics ?? []).join(", ")],
        ["Rolled out by", model.roller],
      ]),
      variantTable(model),
      reasons(model),
      rolloutPanel(model),
    );
  }
}

/** Show the models until the signal is aborted. */
export function mountModels(root, _argument, signal) {
  const cards = new Map();
  const host = h("div", { class: "stack" });
  const wrong = h("div", {});
  show(
    root,
    h(
      "div",
      { class: "view-head" },
      h("h1", {}, "Models"),
      h("p", { class: "muted" }, "What serves, and what is on its way"),
    ),
    wrong,
    host,
  );
  const look = async () => {
    const { models } = await get("api/models", signal);
    show(
      wrong,
      !models.length &&
        empty(
          "No model yet",
          h("p", {}, "Put one into the model repository:"),
          h("pre", { tabindex: "0" }, "edge-gateway models new"),
        ),
    );
    for (const model of models) {
      if (!cards.has(model.name)) {
        cards.set(model.name, new ModelCard(model.name, signal));
        host.append(cards.get(model.name).element);
      }
      cards.get(model.name).draw(model);
    }
    const names = new Set(models.map((model) => model.name));
    for (const [name, card] of cards) {
      if (!names.has(name)) {
        card.element.remove();
        cards.delete(name);
      }
    }
  };
  poll(look, LOOK_MS, signal, (error) => show(wrong, problem(error)));
}
