/** Listeners by event name; one that throws is reported and harms nobody else. */

import { report } from "./errors.js";

/** @typedef {(...args: any[]) => unknown} Listener */

export class Emitter {
  /** @type {Map<string, Set<Listener>>} */
  #listeners = new Map();

  /**
   * @param {string} event
   * @param {Listener} listener
   * @returns {() => void} takes the listener off again
   */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => void listeners.delete(listener);
  }

  /**
   * Call the listeners of `event`, in order, at once.
   * @internal
   * @param {string} event
   * @param {...unknown} args
   * @returns {Promise<unknown> | undefined} what the first one returns or throws; undefined: there is none
   */
  emit(event, ...args) {
    /** @type {Promise<unknown> | undefined} */
    let first;
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      const result = new Promise((resolve) => resolve(listener(...args)));
      result.catch(report);
      first ??= result;
    }
    return first;
  }
}
