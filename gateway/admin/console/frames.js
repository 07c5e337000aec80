// Pictures of the cameras that somebody looks at: one request at a time, each camera at most once a second,
// eight a second in all, and none while the page is hidden.

import { ApiError, get, pause, whenVisible } from "./api.js";

const PER_CAMERA_MS = 1000;
const APART_MS = 125;
const AFTER_NONE_MS = 3000;

/** Fetches frames for those who watch; ends with the signal. */
export class Frames {
  #watched = new Map();
  #signal;
  #wake = () => {};

  constructor(signal) {
    this.#signal = signal;
    this.#run();
  }

  /** Let `take` have frames of this camera, of so many pixels; `shown()` is the result_id that it shows. */
  watch(camera, { width, entry, shown, take }) {
    const before = this.#watched.get(camera);
    this.#watched.set(camera, { width, entry, shown, take, due: before?.due ?? 0 });
    this.#wake();
  }

  unwatch(camera) {
    this.#watched.delete(camera);
  }

  /** Something new came for this camera. */
  news() {
    this.#wake();
  }

  #next(now) {
    let best = null;
    for (const [camera, item] of this.#watched) {
      const entry = item.entry();
      if (!entry?.picture || entry.result?.result_id === item.shown() || item.due > now) continue;
      if (best === null || item.due < best.item.due) best = { camera, item };
    }
    return best;
  }

  async #run() {
    while (!this.#signal.aborted) {
      await whenVisible(this.#signal);
      if (this.#signal.aborted) return;
      const began = performance.now();
      const next = this.#next(began);
      if (next === null) {
        await Promise.race([pause(APART_MS, this.#signal), new Promise((resolve) => (this.#wake = resolve))]);
        if (performance.now() - began < 20) await pause(20, this.#signal);
        continue;
      }
      await this.#fetch(next.camera, next.item);
      await pause(Math.max(0, APART_MS - (performance.now() - began)), this.#signal);
    }
  }

  async #fetch(camera, item) {
    item.due = performance.now() + PER_CAMERA_MS;
    try {
      const query = new URLSearchParams({ id: camera, width: Math.round(item.width()) });
      const frame = await get(`api/frame?${query}`, this.#signal);
      if (this.#watched.get(camera) === item) await item.take(frame);
    } catch (error) {
      if (!(error instanceof ApiError)) {
        if (this.#signal.aborted) return;
        throw error;
      }
      item.due = performance.now() + AFTER_NONE_MS;
    }
  }
}

/** What a Stage shows of a frame: its picture as an address, its result and its size. */
export function pictured({ jpeg, entry, width, height }) {
  return { picture: jpeg ? `data:image/jpeg;base64,${jpeg}` : null, result: entry.result, width, height };
}
