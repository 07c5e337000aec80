// The dialogs: a token, a confirmation, the keys. The browser's own <dialog> keeps the focus and closes with Esc.

import { h, icon, setText, show } from "./dom.js";

/** Show a dialog until it closes; resolves to what `close` was given, null after Esc. */
function open(title, build) {
  return new Promise((resolve) => {
    let result = null;
    const close = (value) => {
      result = value;
      dialog.close();
    };
    const leave = h(
      "button",
      { class: "icon-button", type: "button", "aria-label": "Close", onclick: () => close(null) },
      icon("close"),
    );
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h("div", { class: "dialog-head" }, h("h2", { id: "dialog-title" }, title), leave),
      build(close),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("input, [data-first]")?.focus();
  });
}

/** Ask for a token; `check` tries it and throws when it is wrong. Resolves to the token or null. */
export function askForToken({ title, text, check, refused = "" }) {
  return open(title, (close) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
    const wrong = h("p", { class: "wrong", role: "alert" }, refused);
    const submit = async (event) => {
      event.preventDefault();
      const value = input.value.trim();
      try {
        if (check) await check(value);
        close(value);
      } catch (error) {
        setText(wrong, error.status === 401 ? "That token is not the right one." : `${error.message}. ${error.fix}`);
        input.select();
      }
    };
    return h(
      "form",
      { onsubmit: submit },
      h("p", { class: "muted" }, text),
      h("label", { for: "token" }, "Token"),
      input,
      wrong,
      h("div", { class: "dialog-foot" }, h("button", { class: "button primary" }, "Go on")),
    );
  });
}

/** Ask before something is changed; resolves to true or null. */
export function confirmAction(title, text, action) {
  return open(title, (close) => [
    h("p", {}, text),
    h(
      "div",
      { class: "dialog-foot" },
      h("button", { class: "button", type: "button", onclick: () => close(null) }, "Cancel"),
      h("button", { class: "button primary", type: "button", "data-first": true, onclick: () => close(true) }, action),
    ),
  ]);
}

/** List the keys. */
export function showKeys() {
  const keys = [
    ["1 – 5", "Live, Compare, Models, Health, Try"],
    ["← → ↑ ↓", "from camera to camera, from one disagreement to the next"],
    ["/", "to the filter of the view"],
    ["Esc", "close, or back to all cameras"],
    ["t", "dark or light"],
    ["?", "these keys"],
  ];
  return open("Keys", () =>
    h(
      "dl",
      { class: "keys" },
      keys.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what))),
    ),
  );
}

/** A word at the foot of the page that goes by itself. */
export function toast(text, tone = "good") {
  const host =
    document.getElementById("toasts") ?? document.body.appendChild(h("div", { id: "toasts", role: "status" }));
  const note = h("p", { class: "toast", "data-tone": tone }, text);
  show(host, note);
  setTimeout(() => note.remove(), 8000);
}
