// Where the labels of boxes go, so that none covers another: the surest first, shorter or left out where it is crowded.

import { h } from "./dom.js";
import { percent, words } from "./format.js";

const MOST = 60;
const SMALL = { size: 11, line: 16, pad: 16 };
const LARGE = { size: 13, line: 19, pad: 20 };

let ruler = null;

/** How wide a text will be, in pixels. */
function widthOf(text, { size, pad }) {
  ruler ??= document.createElement("canvas").getContext("2d");
  ruler.font = `700 ${size}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width + pad;
}

function free(place, taken) {
  return taken.every(
    (each) =>
      place.x + place.w <= each.x ||
      each.x + each.w <= place.x ||
      place.y + place.h <= each.y ||
      each.y + each.h <= place.y,
  );
}

/** The first free place for a label of this width: above its box, inside at the top, below. */
function placeFor(box, width, { line }, canvas, taken) {
  const x = Math.min(Math.max(box.x1, 0), Math.max(canvas.width - width, 0));
  for (const y of [box.y1 - line, box.y1, box.y2]) {
    const place = { x, y, w: width, h: line };
    if (y >= 0 && y + line <= canvas.height && free(place, taken)) return place;
  }
  return null;
}

function texts(prediction) {
  const sure = percent(prediction.confidence);
  const name = words(prediction.class);
  return prediction.note
    ? [
        [name, prediction.note],
        ["", prediction.note],
        ["", "!"],
      ]
    : [
        [name, sure],
        ["", sure],
      ];
}

/**
 * Labels of the predictions that have a box. `size` is the picture's {width, height}, `canvas` that of its place on
 * the page; `colour` gives the number of a prediction's colour.
 */
export function labelsOf(predictions, size, canvas, large, colour) {
  const type = large ? LARGE : SMALL;
  const [dx, dy] = [canvas.width / size.width, canvas.height / size.height];
  const taken = [];
  const marked = (each) => (each.mark ? 1 : 0);
  const ordered = [...predictions].sort((a, b) => marked(b) - marked(a) || b.confidence - a.confidence).slice(0, MOST);
  return ordered.flatMap((prediction) => {
    const [x1, y1, , y2] = prediction.bbox;
    const box = { x1: x1 * dx, y1: y1 * dy, y2: y2 * dy };
    for (const [name, note] of texts(prediction)) {
      const place = placeFor(box, Math.min(widthOf(name + note, type), canvas.width), type, canvas, taken);
      if (!place) continue;
      taken.push(place);
      const mark = prediction.mark ? ` marked-${prediction.mark}` : "";
      const element = h(
        "span",
        { class: `label${mark}`, "data-colour": colour(prediction) },
        name,
        h("b", { class: name && "apart" }, note),
      );
      element.style.left = `${(place.x / canvas.width) * 100}%`;
      element.style.top = `${(place.y / canvas.height) * 100}%`;
      return [element];
    }
    return [];
  });
}
