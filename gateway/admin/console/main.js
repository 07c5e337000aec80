// The frame of the console: which view is open, the keys, the theme, the token.

import { ApiError, forgetTokens, get, info, pause, token, unlock } from "./api.js";
import { showKeys } from "./dialogs.js";
import { h, icon, problem, setText, show } from "./dom.js";
import { tickTimes } from "./format.js";
import { linkState } from "./link.js";
import { mountCamera } from "./camera.js";
import { mountCompare } from "./compare.js";
import { mountHealth } from "./health.js";
import { mountLive } from "./live.js";
import { mountModels } from "./models.js";
import { mountTry } from "./try.js";

const VIEWS = [
  {
    name: "live",
    title: "Live",
    mount: (root, argument, signal) => (argument ? mountCamera : mountLive)(root, argument, signal),
  },
  { name: "compare", title: "Compare", mount: mountCompare },
  { name: "models", title: "Models", mount: mountModels },
  { name: "health", title: "Health", mount: mountHealth },
  { name: "try", title: "Try", mount: mountTry },
];

const main = document.getElementById("main");
let open = new AbortController();
let first = true;

/** The view and its argument that the address names. */
function place() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  let argument = rest.join("/");
  try {
    argument = decodeURIComponent(argument);
  } catch {
    // somebody has typed a lone %; it names no camera
  }
  return { view: VIEWS.find((each) => each.name === name) ?? VIEWS[0], argument };
}

function route() {
  const { view, argument } = place();
  open.abort();
  open = new AbortController();
  document.title = `${argument || view.title} · Edge Gateway`;
  document.querySelectorAll("#views a").forEach((link) => {
    if (link.hash === `#${view.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  show(main);
  scrollTo(0, 0);
  view.mount(main, argument, open.signal);
  if (!first) main.focus({ preventScroll: true });
  first = false;
}

function typing(target) {
  return target.closest("input, textarea, select, dialog") !== null;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const number = Number(event.key);
  if (number >= 1 && number <= VIEWS.length) location.hash = VIEWS[number - 1].name;
  else if (event.key === "?") showKeys();
  else if (event.key === "t") window.switchTheme();
  else if (event.key === "Escape" && place().argument) location.hash = place().view.name;
  else if (event.key === "/") main.querySelector("input[type=search]")?.focus();
  else return;
  event.preventDefault();
}

/** Arrow keys in the list of views go from one to the next. */
function onNavKey(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...document.querySelectorAll("#views a")];
  const at = links.indexOf(document.activeElement);
  links[(at + step + links.length) % links.length].focus();
  event.preventDefault();
}

function buildFrame() {
  const views = document.getElementById("views");
  const entries = VIEWS.map(({ name, title }, at) =>
    h(
      "li",
      {},
      h(
        "a",
        { href: `#${name}`, "aria-keyshortcuts": at + 1 },
        icon(name),
        h("span", {}, title),
        h("kbd", { "aria-hidden": "true" }, at + 1),
      ),
    ),
  );
  show(views, entries);
  views.addEventListener("keydown", onNavKey);
  const tool = (name, label, onclick) =>
    h("button", { class: "icon-button", type: "button", "aria-label": label, title: label, onclick }, icon(name));
  show(
    document.getElementById("tools"),
    tool("theme", "Dark or light", () => window.switchTheme()),
    tool("key", "Token", changeToken),
    tool("help", "Keys", showKeys),
  );
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
}

/** Forget the tokens of this tab and ask anew, where one is wanted. */
async function changeToken() {
  forgetTokens();
  if (!info.token_required || (await unlock())) route();
}

/** Learn what the gateway offers; tries until it answers. */
async function learn() {
  for (;;) {
    try {
      return Object.assign(info, await get("api/console"));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      linkState("lost");
      show(main, problem(error));
      await pause(1500, new AbortController().signal);
    }
  }
}

async function start() {
  buildFrame();
  await learn();
  setText(document.getElementById("place"), [info.facility, info.gateway_id].filter(Boolean).join(" · "));
  document.getElementById("place").title = `version ${info.version}`;
  linkState(info.token_required ? "locked" : "live");
  if (info.token_required && !token("read") && !token("action")) await unlock();
  addEventListener("hashchange", route);
  document.addEventListener("keydown", onKey);
  setInterval(() => document.hidden || tickTimes(), 1000);
  route();
}

start();
