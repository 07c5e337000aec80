// Outlines of objects as SVG paths: polygons, and COCO's compressed run lengths.

const MOST_RUNS = 40000;

/** Polygons of [x, y] corners as one path. */
export function polygonPath(polygons) {
  return polygons.map((corners) => `M${corners.map(([x, y]) => `${x} ${y}`).join("L")}Z`).join("");
}

/** The run lengths that `counts` stands for: 5 bits a letter, and differences to the one before the last. */
function runLengths(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length && runs.length < MOST_RUNS) {
    let value = 0;
    let shift = 0;
    let letter;
    do {
      letter = counts.charCodeAt(at) - 48;
      value += (letter & 31) * 2 ** shift;
      shift += 5;
      at += 1;
    } while (letter & 32 && at < counts.length);
    if (letter & 16) value -= 2 ** shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** A mask {size: [height, width], counts} as a path of one narrow bar a run; runs go down the columns. */
export function maskPath({ size: [height], counts }) {
  const bars = [];
  let place = 0;
  runLengths(counts).forEach((run, number) => {
    if (number % 2 === 1) {
      for (let left = run, from = place; left > 0;) {
        const y = from % height;
        const length = Math.min(left, height - y);
        bars.push(`M${Math.floor(from / height)} ${y}h1v${length}h-1z`);
        from += length;
        left -= length;
      }
    }
    place += run;
  });
  return bars.join("");
}
