// Elements without markup strings: whatever comes from outside becomes a text node or an attribute, never HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  live: "M3 5h18v11H3zM8 20h8M12 16v4",
  compare: "M4 5h6v14H4zM14 5h6v14h-6zM12 3v18",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  health: "M3 12h4l3 8 4-16 3 8h4",
  try: "M12 16V4M7 9l5-5 5 5M4 16v4h16v-4",
  theme: "M12 3v18M12 3a9 9 0 1 0 0 18A9 9 0 0 0 12 3zM12 7a5 5 0 0 1 0 10",
  key: "M15 4a5 5 0 1 0-4.6 7L3 18.4V21h3v-2h2v-2h2l2.4-2.4A5 5 0 0 0 15 4zM16 8h.01",
  help: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4M12 17.5h.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  back: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
  alert: "M12 4L2.5 20h19zM12 10v4M12 17h.01",
  close: "M6 6l12 12M18 6L6 18",
};

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** An HTML element; `onclick` and the like are listeners, children are nodes, texts, lists or nothing. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** One of the line icons, for decoration only. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** Set a text where it is another one, so that nothing is laid out for nothing. */
export function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Put these children in place of those that are there. */
export function show(element, ...children) {
  element.replaceChildren();
  return fill(element, {}, children);
}

/** The same for rows with a `data-key`: who has the focus on one keeps it there, wherever the row is now. */
export function showRows(element, ...children) {
  const rows = () => [...element.querySelectorAll("[data-key]")];
  const before = rows();
  const at = before.indexOf(document.activeElement);
  const key = before[at]?.dataset.key;
  show(element, ...children);
  if (at < 0) return;
  const after = rows();
  const same = after.find((row) => row.dataset.key === key) ?? after[Math.min(at, after.length - 1)];
  same?.focus({ preventScroll: true });
}

/** A surface with a heading; `more` stands at the right of it. */
export function panel(title, body, { more, className = "", level = "h2" } = {}) {
  const head = h("div", { class: "panel-head" }, h(level, {}, title), more);
  return h("section", { class: `panel ${className}` }, head, body);
}

/** A small coloured word: `tone` is good, warn, bad, info or plain. */
export function chip(text, tone = "plain", title) {
  return h("span", { class: "chip", "data-tone": tone, title }, text);
}

/** A table of rows; each cell is a node or a text, columns named `#...` are numbers. */
export function table(caption, columns, rows) {
  const head = columns.map((name) => h("th", { scope: "col", class: numeric(name) }, name.replace(/^#/, "")));
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      row.map((cell, at) => h("td", { class: numeric(columns[at]) }, cell)),
    ),
  );
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)),
  );
}

function numeric(column) {
  return column.startsWith("#") ? "number" : null;
}

/** Pairs of a name and a value, without those that have no value. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    { class: "facts" },
    known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** What is wrong and how to mend it. */
export function problem(error, retry) {
  const again = retry && h("button", { class: "button", type: "button", onclick: retry }, "Try again");
  return h(
    "div",
    { class: "problem", role: "alert" },
    icon("alert"),
    h("div", {}, h("p", {}, error.message), error.fix && h("p", { class: "muted" }, error.fix), again),
  );
}

/** A friendly word where there is nothing yet. */
export function empty(title, ...more) {
  return h("div", { class: "empty" }, h("h2", {}, title), more);
}
