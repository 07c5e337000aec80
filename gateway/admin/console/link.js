// The word at the foot of the side: whether what is shown is live. Also said to who cannot see it.

import { setText } from "./dom.js";

const TEXTS = {
  waiting: "Connecting",
  live: "Live",
  lost: "No connection; trying again",
  stopped: "The gateway has stopped",
  full: "Too many viewers; trying again",
};

/** Show one of the states; a change is read out by the page's status role. */
export function linkState(state) {
  const element = document.getElementById("link-state");
  if (element.dataset.state === state) return;
  element.dataset.state = state;
  setText(document.getElementById("link-text"), TEXTS[state]);
  document.body.dataset.link = state;
}

let saidAt = 0;

/** Read out something important, at most every 3 s. */
export function say(text) {
  if (performance.now() - saidAt < 3000) return;
  saidAt = performance.now();
  setText(document.getElementById("said"), text);
}
