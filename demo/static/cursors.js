/** Pointers of the others, over the messages, and ours on its way to them. */

import { $, h, paint } from "./dom.js";
import { pointer } from "./frame.js";

const EVERY = 100; // ms between two positions of our pointer
const STILL = 6000; // ms after which a pointer that rests fades

export class Cursors {
  /** @type {Map<string, { element: HTMLElement, timer: any }>} by connection */
  #shown = new Map();
  #pointed = -Infinity;
  #me;

  /** @param {string} me */
  constructor(me) {
    this.#me = me;
  }

  /**
   * Tell the others in a room where our pointer is.
   * @param {any} room
   * @param {PointerEvent} event
   */
  point(room, { clientX, clientY, pointerType }) {
    if (pointerType !== "mouse" || performance.now() - this.#pointed < EVERY) return;
    if (!room || room.presence.total < 2) return;
    this.#pointed = performance.now();
    const { left, top, width, height } = $("#stage").getBoundingClientRect();
    const within = (/** @type {number} */ value) => Math.min(1, Math.max(0, Math.round(value * 1000) / 1000));
    room.sendVolatile("cursor", { x: within((clientX - left) / width), y: within((clientY - top) / height) });
  }

  /**
   * @param {{ x: number, y: number }} at
   * @param {{ connection: string, user: string }} from
   */
  move({ x, y }, { connection, user }) {
    if (user === this.#me || !pointer.matches) return;
    let cursor = this.#shown.get(connection);
    if (!cursor) {
      const element = paint(h("div", { className: "cursor" }, h("span", {}, user)), user);
      cursor = { element, timer: 0 };
      this.#shown.set(connection, cursor);
      $("#cursors").append(element);
    }
    cursor.element.style.left = `${x * 100}%`;
    cursor.element.style.top = `${y * 100}%`;
    clearTimeout(cursor.timer);
    cursor.timer = setTimeout(() => this.hide(connection), STILL);
  }

  /** @param {string} connection */
  hide(connection) {
    const cursor = this.#shown.get(connection);
    clearTimeout(cursor?.timer);
    cursor?.element.remove();
    this.#shown.delete(connection);
  }

  clear() {
    for (const connection of [...this.#shown.keys()]) this.hide(connection);
  }
}
