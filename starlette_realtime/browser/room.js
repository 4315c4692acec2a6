/** A room as the app holds it: what it hears, how far, who is there, and what it sends. */

import { Emitter } from "./emitter.js";
import { RealtimeError } from "./errors.js";
import { Presence } from "./presence.js";

/** @import { Info, JoinOptions, Port, Position, SendOptions } from "./types.js" */

/**
 * Emits the room's events with `(data, info)`, and `rt:recovered` ({count}), `rt:reset` ({reason, position}: events
 * were lost, load your state anew), `rt:stale`, `rt:fresh`, `rt:left` ({code}) and `rt:refused` (a RealtimeError).
 * After the last two the object is done: join again for a new one.
 */
export class Room extends Emitter {
  /** @type {"joining" | "joined" | "left" | "refused"} */
  state = "joining";
  /** @type {Position | null} the last kept event that was delivered; null: none yet, or an ephemeral room */
  position;
  /** @type {RealtimeError | null} why it was left or refused; what is sent here is rejected with it */
  error = null;
  presence;
  /** @internal @type {JoinOptions} */
  self;
  #known = false; // joined once, so that the next join has something to resume
  #port;
  /** @type {Promise<void>} */
  #ready;
  #awaited = false;
  /** @type {() => void} */
  #resolve = () => {};
  /** @type {(error: RealtimeError) => void} */
  #reject = () => {};

  /**
   * @internal
   * @param {string} name
   * @param {JoinOptions} options
   * @param {boolean} served the server joined it, and will again
   * @param {(room: Room) => Port} port
   */
  constructor(name, { since, meta, status }, served, port) {
    super();
    this.name = name;
    this.served = served;
    this.position = since ?? null;
    this.self = { meta, status };
    this.#port = port(this);
    this.#ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#ready.catch(() => {}); // whoever doesn't await it hears `rt:refused`
    this.presence = new Presence(() => this.#port.push({ type: "members", room: name }, { lane: {}, room: this }));
  }

  /** @type {Promise<void>} the first join; rejects with a RealtimeError */
  get ready() {
    this.#awaited = true;
    return this.#ready;
  }

  /**
   * Send an event; the room's are sent in order, one after the other.
   * @param {string} event
   * @param {unknown} [data]
   * @param {SendOptions} [options]
   * @returns {Promise<any>} what the server's handler returned; rejects with a RealtimeError
   */
  send(event, data, { key = this.#port.key(), timeout } = {}) {
    return this.#port.push({ type: "event", room: this.name, event, data, key }, { lane: this, room: this, timeout });
  }

  /**
   * Send what is worthless a moment later (typing, cursors): now or never.
   * @param {string} event
   * @param {unknown} [data]
   * @returns {boolean} whether it went out; throws a RealtimeError for what never could
   */
  sendVolatile(event, data) {
    return this.state === "joined" && this.#port.volatile(event, data);
  }

  /**
   * Older events, oldest first.
   * @param {{before?: Position, limit?: number, timeout?: number}} [options]
   * @returns {Promise<{events: any[], more: boolean, truncated: boolean}>}
   */
  history({ before, limit, timeout = this.#port.timeout } = {}) {
    return this.#port.push({ type: "history", room: this.name, before, limit }, { lane: {}, room: this, timeout });
  }

  /**
   * Change how presence shows this connection; kept over reconnects.
   * @param {"online" | "away"} [status] undefined: as it is
   * @param {any} [meta] undefined: as it is
   * @returns {Promise<void>}
   */
  setStatus(status, meta) {
    if (status !== undefined) this.self.status = status;
    if (meta !== undefined) this.self.meta = meta;
    this.#port.supersede(this.self);
    const sent = this.#port.push({ type: "status", room: this.name, ...this.self }, { lane: this.self, room: this });
    sent.catch(() => {}); // nothing is lost: the next join says it again
    return sent;
  }

  /** Leave; what still waits to be sent here fails. */
  leave() {
    this.#port.leave();
  }

  /**
   * @internal
   * @override
   * @param {string} event
   * @param {...unknown} args
   */
  emit(event, ...args) {
    const first = super.emit(event, ...args);
    const second = this.#port.mirror?.emit(event, ...args);
    return first ?? second;
  }

  /**
   * The server's answer to a join: what was missed is delivered, or declared lost.
   * @internal
   * @param {any} data
   */
  joined(data) {
    const again = this.#known || this.position !== null;
    const resumed = again && data.recovered;
    this.#known = true;
    this.state = "joined";
    this.#resolve();
    if (data.members) this.presence.load(data.members);
    if (!resumed) {
      this.position = data.position ?? null;
      const reason = data.reason ?? (data.position ? "unknown" : "ephemeral");
      if (again) this.emit("rt:reset", { reason, position: this.position });
    }
    let count = 0;
    for (const frame of data.events ?? []) {
      if (this.state !== "joined") return; // a listener left
      if (resumed && !this.accept(frame)) continue;
      this.deliver(frame, true);
      count++;
    }
    this.position = data.position ?? null;
    if (resumed) this.emit("rt:recovered", { count });
  }

  /**
   * Whether an event is news; its position is then ours. Offsets may skip: what we sent to others only isn't for us.
   * @internal
   * @param {any} frame
   */
  accept({ position }) {
    const last = this.position;
    if (position && last?.epoch === position.epoch && position.offset <= (last?.offset ?? 0)) return false;
    this.position = position ?? last;
    return true;
  }

  /**
   * @internal
   * @param {any} frame
   * @param {boolean} recovered
   */
  deliver(frame, recovered) {
    return this.emit(frame.event, frame.data, info(frame, recovered, this.name));
  }

  /**
   * The server lost something, or lost count.
   * @internal
   * @param {{position?: Position, reason: string}} frame
   */
  reset({ position, reason }) {
    this.position = position ?? null;
    this.presence.reset();
    this.emit("rt:reset", { reason, position: this.position });
  }

  /**
   * @internal
   * @param {"left" | "refused"} state
   * @param {RealtimeError} error
   */
  end(state, error) {
    this.state = state;
    this.error = error;
    this.#reject(error);
    if (state === "refused") {
      const heard = this.emit("rt:refused", error);
      // A moment later, since a join can be refused before the app gets to `ready`.
      queueMicrotask(() => {
        if (!heard && !this.#awaited) console.warn(`${this.name} was refused (${error.code}): ${error.message}`);
      });
    } else this.emit("rt:left", { code: error.code });
  }
}

/**
 * @param {any} frame
 * @param {boolean} recovered
 * @param {string} [room]
 * @returns {Info}
 */
export function info({ from, position, at, event }, recovered, room) {
  return { from, position, at, recovered, room, event };
}
