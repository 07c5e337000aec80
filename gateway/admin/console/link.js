// The word at the foot of the side: whether what is shown is live. Also said to who cannot see it.

import { setText } from "./dom.js";

const TEXTS = {
  waiting: "Connecting",
  live: "Live",
  lost: "No connection; trying again",
  stopped: "The gateway has stopped",
  full: "Too many viewers; trying again",
  locked: "Locked: a token is wanted",
};

let missing = 0;

/** How many workers are left out of what is shown. */
export function workersMissing(count) {
  missing = count;
}

/** Show one of the states; a change is read out by the page's status role. */
export function linkState(state) {
  const element = document.getElementById("link-state");
  const without = state === "live" && missing > 0 ? `, without ${missing} of the workers` : "";
  element.dataset.state = state;
  setText(document.getElementById("link-text"), TEXTS[state] + without);
  document.body.dataset.link = state;
}

let saidAt = 0;

/** Read out something important, at most every 3 s. */
export function say(text) {
  if (performance.now() - saidAt < 3000) return;
  saidAt = performance.now();
  setText(document.getElementById("said"), text);
}
