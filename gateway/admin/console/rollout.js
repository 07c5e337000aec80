// The rollout of a model: the steps that are done, the one under way, those to come, and what was refused.

import { chip, h, table } from "./dom.js";
import { ago, duration, words } from "./format.js";

const STEPS = [
  "stable_on_disk",
  "verified",
  "loaded",
  "signature",
  "warmed",
  "golden",
  "shadow",
  "canary",
  "promoted",
  "drained",
];
const ENDINGS = { under_way: "info", promoted: "good", refused: "bad", rolled_back: "bad" };

/** Steps that have a version before to compare with, to share the cameras with, or to take leave of. */
const BESIDE_ANOTHER = ["shadow", "canary", "drained"];

/** Whether no version has served before the one of the rollout. */
function isFirst({ rollout, version, previous_version: previous }) {
  return !previous && (!version || Number(version) === rollout.version);
}

/** How a step stands: done, current, failed, to-come, not-needed, or left-out where the rollout went on without it. */
function stepState({ ending, step: now }, name, isDone, alone) {
  if (isDone) return "done";
  if (alone && BESIDE_ANOTHER.includes(name)) return "not-needed";
  const isHere = name === now;
  if (ending !== "under_way") return !isHere ? "left-out" : ending === "promoted" ? "done" : "failed";
  if (isHere) return "current";
  return STEPS.indexOf(name) < STEPS.indexOf(now) ? "left-out" : "to-come";
}

/** The steps of a rollout in order: those done with their time, the one under way, those to come. */
export function rolloutSteps(model) {
  const { rollout } = model;
  const done = new Map(rollout.steps.map((step) => [step.step, step]));
  const isDone = (name) => done.has(name) || (name === STEPS[0] && rollout.step !== STEPS[0]); // it keeps no time
  const alone = isFirst(model);
  return h(
    "ol",
    { class: "steps" },
    STEPS.map((name) => {
      const step = done.get(name);
      const here = name === rollout.step && !step;
      const state = stepState(rollout, name, isDone(name), alone);
      const share = here && rollout.percent ? `${rollout.percent} % of the cameras` : "";
      const more = step ? duration(step.seconds) : state === "not-needed" ? "not needed" : share;
      return h(
        "li",
        { "data-step": state, "aria-current": state === "current" ? "step" : null },
        h("span", { class: "step-dot", "aria-hidden": "true" }),
        h("span", { class: "step-name" }, words(name), h("span", { class: "unseen" }, ` (${state.replace("-", " ")})`)),
        h("span", { class: "muted small" }, more),
      );
    }),
  );
}

/** What was seen in each step: the one under way first, then the others, the latest first. */
function stepNotes({ step, steps, progress, ending }) {
  const noted = steps.filter(({ note }) => note).reverse();
  if (progress && ending === "under_way") noted.unshift({ step, note: progress });
  if (!noted.length) return null;
  return h(
    "dl",
    { class: "step-notes" },
    noted.map((each) => h("div", {}, h("dt", {}, words(each.step)), h("dd", {}, each.note))),
  );
}

/** The rollout of a model, under way or the last one, and the versions that were refused. */
export function rolloutPanel(model) {
  const { rollout, refused } = model;
  const parts = [];
  if (rollout) {
    const began = h("span", { class: "muted small" }, "began ", ago(rollout.started_at));
    parts.push(
      h(
        "div",
        { class: "row" },
        h("h3", {}, `Rollout of version ${rollout.version}`),
        chip(words(rollout.ending), ENDINGS[rollout.ending]),
        began,
      ),
    );
    if (rollout.reason)
      parts.push(
        h("p", { class: "note" }, rollout.reason, rollout.fix && h("span", { class: "muted" }, ` ${rollout.fix}`)),
      );
    parts.push(rolloutSteps(model), stepNotes(rollout));
  }
  if (refused?.length) {
    const rows = refused.map((each) => [
      `v${each.version}`,
      words(each.step),
      `${each.reason}${each.fix ? `. ${each.fix}` : ""}`,
      ago(each.at),
    ]);
    parts.push(h("h3", {}, "Refused versions"), table("Refused versions", ["Version", "At", "Why", "When"], rows));
  }
  if (!parts.length)
    parts.push(
      h("p", { class: "muted" }, "No rollout yet: put a new version into the model repository and watch it here."),
    );
  return h("div", { class: "rollout" }, parts);
}
