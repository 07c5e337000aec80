// Which predictions of two variants mean the same object, to mark on the picture what only one of them sees.

const ENOUGH = 0.5;

function overlap([ax1, ay1, ax2, ay2], [bx1, by1, bx2, by2]) {
  const wide = Math.min(ax2, bx2) - Math.max(ax1, bx1);
  const high = Math.min(ay2, by2) - Math.max(ay1, by1);
  if (wide <= 0 || high <= 0) return 0;
  const both = wide * high;
  return both / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - both);
}

function likeness(one, other) {
  if (!one.bbox || !other.bbox) return one.class === other.class ? 1 : 0;
  return overlap(one.bbox, other.bbox);
}

/**
 * The predictions of both with marks: `flip` where the boxes are the same and the classes are not, `only` where the
 * other one has no counterpart. Same class goes first, then the greatest overlap.
 */
export function markDifferences(first, second) {
  const pairs = first.flatMap((one, i) =>
    second.map((other, j) => ({ i, j, like: likeness(one, other), same: one.class === other.class })),
  );
  pairs.sort((a, b) => b.same - a.same || b.like - a.like);
  const ours = new Map();
  const theirs = new Map();
  for (const { i, j, like } of pairs) {
    if (like < ENOUGH || ours.has(i) || theirs.has(j)) continue;
    ours.set(i, j);
    theirs.set(j, i);
  }
  const mark = (own, matches, others) =>
    own.map((each, at) => {
      if (!matches.has(at)) return { ...each, mark: "only", note: "only here" };
      return others[matches.get(at)].class === each.class ? each : { ...each, mark: "flip", note: "other class there" };
    });
  return [mark(first, ours, second), mark(second, theirs, first)];
}
