/** When to come back: what each end of a link means for the next one, so that clients don't come back as a herd. */

import { CLOSE_CODES } from "./codes.js";

/** @import { RealtimeError } from "./errors.js" */
/** @import { Clock } from "./types.js" */

const STABLE = 10_000; // ms online after which the backoff starts over: a server that drops at once isn't hammered

export class Retry {
  /** The server named the delay of the present wait: nobody comes earlier. */
  asked = false;
  #attempt = 0; // unstable links and failures in a row
  #online = NaN; // clock time of the present link's `auth`; NaN: it isn't through yet
  #announced = NaN; // clock time that a draining server gave us
  #rejected = false; // a 4401, and no `auth` since
  #clock;
  #backoff;
  #random;
  #addresses;

  /**
   * @param {Clock} clock
   * @param {{min: number, max: number}} backoff ms
   * @param {() => number} random
   * @param {number} addresses that are tried in turn: all of them before the backoff grows
   */
  constructor(clock, backoff, random, addresses) {
    this.#clock = clock;
    this.#backoff = backoff;
    this.#random = random;
    this.#addresses = addresses;
  }

  /** The link is authenticated. */
  online() {
    this.#online = this.#clock.now();
    this.#rejected = false;
  }

  /**
   * The server is about to end the link.
   * @param {number} seconds
   * @returns {number} ms after which to end it ourselves
   */
  announce(seconds) {
    const wait = this.#spread(seconds);
    this.#announced = this.#clock.now() + wait;
    return wait;
  }

  /**
   * The link has ended.
   * @param {number} code
   * @param {number} seconds that the server named with it, or NaN
   * @returns {number | null} ms until the next try; null: never
   */
  ended(code, seconds) {
    const now = this.#clock.now();
    const stable = now - this.#online >= STABLE;
    const announced = this.#announced - now;
    const asked = Math.max(seconds ? this.#spread(seconds) : 0, announced || 0);
    this.#online = this.#announced = NaN;
    const reconnect = CLOSE_CODES[code]?.reconnect;
    if (reconnect === "no" || (reconnect === "token" && this.#rejected)) return null;
    this.#rejected ||= reconnect === "token";
    if (stable) this.#attempt = 0;
    this.asked = asked > 0;
    // A draining server says when.
    return stable && !isNaN(announced) ? asked : Math.max(asked, this.#jitter(Math.floor(this.#attempt++ / this.#addresses)));
  }

  /**
   * @param {RealtimeError} error
   * @param {number} tries before this one
   * @returns {number} ms after which to try a refused command again
   */
  pause(error, tries) {
    return error.retryAfter ? error.retryAfter * 1000 : this.#jitter(tries);
  }

  /** @param {number} tries */
  #jitter(tries) {
    return this.#random() * Math.min(this.#backoff.max, this.#backoff.min * 2 ** tries);
  }

  /**
   * What the server says to everybody at once must not bring everybody back at once.
   * @param {number} seconds
   */
  #spread(seconds) {
    const ms = seconds * 1000;
    return ms + this.#random() * Math.max(250, ms / 5);
  }
}
