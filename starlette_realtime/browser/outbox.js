/**
 * What waits to be sent and acknowledged: bounded, in order, across links, nothing accepted twice.
 *
 * Entries of one lane (a room's, say) go out one at a time, each after the answer to the one before it. With several
 * under way, the server could refuse one for its rate and accept the next, and order would be lost.
 */

import { RealtimeError } from "./errors.js";
import { encode } from "./link.js";

/** @import { Link } from "./link.js" */
/** @import { Room } from "./room.js" */
/** @import { Retry } from "./retry.js" */
/** @import { Clock, Entry, Frame, SendOptions, Waiting } from "./types.js" */

// The server knows a key for 120 s; a repetition has to arrive within that.
const UNCERTAIN = 100_000; // ms from the first write
const WINDOW = 16; // lanes under way at once
export const RETRIED = new Set(["rate_limited", "unavailable", "expired"]);

export class Outbox {
  /** @type {Entry[]} */
  #entries = [];
  #window = WINDOW;
  /** @type {RealtimeError | null} with which everything has ended */
  #over = null;
  #keys = 0;
  #prefix = [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join("");
  /** @type {any} */
  #timer;
  #clock;
  #retry;
  #limit;
  #link;

  /**
   * @param {Clock} clock
   * @param {Retry} retry
   * @param {number} limit entries
   * @param {() => Link | null} link the authenticated one
   */
  constructor(clock, retry, limit, link) {
    this.#clock = clock;
    this.#retry = retry;
    this.#limit = limit;
    this.#link = link;
  }

  /**
   * @param {string} event
   * @param {unknown} data
   * @param {SendOptions} [options]
   * @param {Room} [room]
   * @returns {Promise<any>} the data of the reply
   */
  send(event, data, { key = `${this.#prefix}-${++this.#keys}`, timeout } = {}, room) {
    return this.push({ type: "event", room: room?.name, event, data, key }, { lane: room ?? this, room, timeout });
  }

  /**
   * Now or never.
   * @param {string} event
   * @param {unknown} data
   * @param {Room} [room]
   * @returns {boolean} whether it went out
   */
  volatile(event, data, room) {
    const link = this.#link();
    if (!link || (room && room.state !== "joined") || link.rest(event) > 0) return false;
    return link.send(encode({ type: "event", room: room?.name, event, data }), true);
  }

  /**
   * @param {Frame} frame
   * @param {Waiting} waiting
   * @returns {Promise<any>} the data of the reply
   */
  push(frame, { lane, room, timeout }) {
    return new Promise((resolve, reject) => {
      const body = encode(frame); // now: the caller may change its object later
      const over = room?.error ?? this.#over;
      if (over) throw over;
      if (this.#entries.length >= this.#limit) throw new RealtimeError("queue_full");
      /** @type {Entry} */
      const entry = {
        ...{ event: frame.event, body, lane, room, resolve, reject },
        ...{ flying: false, doubt: false, until: 0, tries: 0, timers: [] },
      };
      if (timeout !== undefined) this.#expire(entry, timeout, "timeout");
      this.#entries.push(entry);
      this.pump();
    });
  }

  /**
   * The server said what is left to spend.
   * @param {Link} link
   * @param {{event?: string, remaining: number, retry_after: number}} frame
   */
  pace(link, frame) {
    link.pace(frame);
    if (!frame.event) this.#narrow(frame.remaining);
    this.pump();
  }

  /**
   * One limit often holds for many lanes: feel the way.
   * @param {number} window
   */
  #narrow(window) {
    this.#window = Math.max(1, Math.min(this.#window, window));
  }

  /** Write whatever may go out now, and come back when the first of the rest may. */
  pump() {
    const link = this.#link();
    if (!link) return;
    const busy = new Set();
    const now = this.#clock.now();
    let next = Infinity;
    let flying = this.#entries.filter((entry) => entry.flying).length;
    for (const entry of [...this.#entries]) {
      if (busy.has(entry.lane)) continue;
      if (!entry.flying) {
        const rest = Math.max(entry.until - now, link.rest(entry.event));
        // By the clock, not by the timer alone: timers stop while a machine sleeps.
        if (entry.deadline !== undefined && now >= entry.deadline) this.#fail(entry, new RealtimeError("uncertain"));
        // So long a wait is the app's to decide on, as when the server refuses.
        else if (rest >= UNCERTAIN) this.#fail(entry, new RealtimeError("rate_limited", undefined, rest / 1000));
        else if (rest > 0) next = Math.min(next, rest);
        else if (flying < this.#window && (entry.room?.state ?? "joined") === "joined") {
          if (this.#write(entry, link, now)) flying++;
        }
        if (!this.#entries.includes(entry)) continue;
      }
      busy.add(entry.lane);
    }
    this.#clock.clearTimeout(this.#timer);
    if (next < Infinity) this.#timer = this.#clock.setTimeout(() => this.pump(), Math.ceil(next));
  }

  /**
   * Give up what waits for `room`, or for anything. What is under way to a room still gets its answer.
   * @param {RealtimeError} error
   * @param {Room} [room]
   */
  drop(error, room) {
    for (const entry of [...this.#entries]) {
      if (!room) this.#fail(entry, entry.flying ? new RealtimeError("uncertain") : error);
      else if (entry.room === room && !entry.flying) this.#fail(entry, error);
    }
  }

  /**
   * Nothing more is sent.
   * @param {RealtimeError} error
   */
  close(error) {
    this.#over = error;
    this.#clock.clearTimeout(this.#timer);
    this.drop(error);
  }

  /**
   * A newer state makes those of `lane` that still wait superfluous.
   * @param {unknown} lane
   */
  supersede(lane) {
    for (const entry of this.#entries.filter((one) => one.lane === lane && !one.flying)) {
      this.#settle(entry, () => entry.resolve({}));
    }
  }

  /**
   * @param {Entry} entry
   * @param {Link} link
   * @param {number} now
   */
  #write(entry, link, now) {
    try {
      link.request(entry.body, (error, data) => this.#answered(entry, error, data));
    } catch (error) {
      this.#settle(entry, () => entry.reject(error));
      return false;
    }
    entry.flying = true;
    if (entry.deadline === undefined) {
      entry.deadline = now + UNCERTAIN;
      this.#expire(entry, UNCERTAIN, "uncertain");
    }
    return true;
  }

  /**
   * @param {Entry} entry
   * @param {RealtimeError | null} error
   * @param {any} data
   */
  #answered(entry, error, data) {
    entry.flying = false;
    if (!error) {
      this.#window = Math.min(WINDOW, this.#window + 1);
      this.#settle(entry, () => entry.resolve(data));
    } else if (this.#entries.includes(entry)) this.#refused(entry, error);
    this.pump();
  }

  /**
   * @param {Entry} entry
   * @param {RealtimeError} error
   */
  #refused(entry, error) {
    const { room } = entry;
    const over = room?.error;
    // A store that failed may have stored; a rate limit has not.
    if (error.code === "disconnected" || error.code === "unavailable") entry.doubt = true;
    if (error.code === "disconnected") return over && this.#fail(entry, over);
    if (error.code === "not_joined" && room?.state === "joining") return;
    if (error.code === "rate_limited") this.#narrow(1);
    const again = this.#clock.now() + this.#retry.pause(error, entry.tries++);
    if (over || !RETRIED.has(error.code)) this.#settle(entry, () => entry.reject(error));
    else if (again < (entry.deadline ?? 0)) entry.until = again;
    else if (entry.doubt) this.#fail(entry, new RealtimeError("uncertain"));
    else this.#settle(entry, () => entry.reject(error));
  }

  /**
   * @param {Entry} entry
   * @param {number} ms
   * @param {string} code
   */
  #expire(entry, ms, code) {
    const expired = () => {
      this.#fail(entry, new RealtimeError(code));
      this.pump();
    };
    entry.timers.push(this.#clock.setTimeout(expired, ms));
  }

  /**
   * @param {Entry} entry
   * @param {RealtimeError} error
   */
  #fail(entry, error) {
    const lost = entry.doubt && error.code !== "timeout";
    this.#settle(entry, () => entry.reject(lost ? new RealtimeError("uncertain") : error));
  }

  /**
   * @param {Entry} entry
   * @param {() => void} how
   */
  #settle(entry, how) {
    const index = this.#entries.indexOf(entry);
    if (index < 0) return;
    this.#entries.splice(index, 1);
    entry.timers.forEach((timer) => this.#clock.clearTimeout(timer));
    how();
  }
}
