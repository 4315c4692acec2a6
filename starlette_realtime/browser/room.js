/** A room as the app holds it: what it hears, how far, who is there, and what it sends. */

import { Emitter } from "./emitter.js";
import { RealtimeError } from "./errors.js";
import { encode } from "./link.js";
import { Presence } from "./presence.js";

/** @import { Rooms } from "./rooms.js" */
/** @import { Frame, Info, JoinOptions, Position, SendOptions } from "./types.js" */

/**
 * Emits the room's events with `(data, info)`, and
 *
 * - `rt:joined` ({recovered}): it is joined, for the first time or again, and what was missed is delivered;
 * - `rt:recovered` ({count}): so many missed events were just delivered;
 * - `rt:reset` ({reason, position}): events were lost, load your state anew;
 * - `rt:stale` and `rt:fresh`: the server's store is away, events may be late; it is back;
 * - `rt:left` ({code}) and `rt:refused` (a RealtimeError): the object is done, join again for a new one.
 */
export class Room extends Emitter {
  /** @type {"joining" | "joined" | "left" | "refused"} */
  state = "joining";
  /** @type {Position | null} the last kept event that was delivered; null: none yet, or an ephemeral room */
  position;
  /** @type {RealtimeError | null} why it was left or refused; what is sent here is rejected with it */
  error = null;
  /** the server's store is away: events may be late */
  stale = false;
  presence;
  /** @internal @type {JoinOptions} */
  self;
  /** @internal the user's own: the client emits its events as well */
  mirrored;
  #known = false; // joined once, so that the next join has something to resume
  #rooms;
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
   * @param {Rooms} rooms
   */
  constructor(name, { since, meta, status }, served, rooms) {
    super();
    this.name = name;
    this.served = served;
    this.position = since ?? null;
    this.self = { meta, status };
    this.#rooms = rooms;
    this.mirrored = served && name.startsWith("user:");
    this.#ready = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#ready.catch(() => {}); // whoever doesn't await it hears `rt:refused`
    this.presence = new Presence(() => this.#push({ type: "members", room: name }, {}));
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
  send(event, data, options) {
    return this.#rooms.outbox.send(event, data, options, this);
  }

  /**
   * Send what is worthless a moment later (typing, cursors): now or never.
   * @param {string} event
   * @param {unknown} [data]
   * @returns {boolean} whether it went out; throws a RealtimeError for what never could
   */
  sendVolatile(event, data) {
    return this.#rooms.outbox.volatile(event, data, this);
  }

  /**
   * Older events, oldest first.
   * @param {{before?: Position, limit?: number, timeout?: number}} [options]
   * @returns {Promise<{events: any[], more: boolean, truncated: boolean}>}
   */
  history({ before, limit, timeout = this.#rooms.timeout } = {}) {
    return this.#push({ type: "history", room: this.name, before, limit }, {}, timeout);
  }

  /**
   * Change how presence shows this connection; kept over reconnects.
   * @param {"online" | "away"} [status] undefined: as it is
   * @param {any} [meta] undefined: as it is
   * @returns {Promise<void>} rejects with a RealtimeError; what JSON can't say leaves all as it was
   */
  setStatus(status = this.self.status, meta = this.self.meta) {
    const frame = { type: "status", room: this.name, status, meta };
    try {
      encode(frame); // before it is kept: the next join would be refused for it
    } catch (error) {
      return Promise.reject(error);
    }
    Object.assign(this.self, { status, meta });
    this.#rooms.outbox.supersede(this.self);
    const sent = this.#push(frame, this.self);
    sent.catch(() => {}); // nothing is lost: the next join says it again
    return sent;
  }

  /** Leave; what still waits to be sent here fails. */
  leave() {
    this.#rooms.leave(this);
  }

  /**
   * @param {Frame} frame
   * @param {unknown} lane
   * @param {number} [timeout]
   */
  #push(frame, lane, timeout) {
    return this.#rooms.outbox.push(frame, { lane, room: this, timeout });
  }

  /**
   * @internal
   * @override
   * @param {string} event
   * @param {...unknown} args
   */
  emit(event, ...args) {
    const first = super.emit(event, ...args);
    const second = this.mirrored && this.#rooms.client.emit(event, ...args);
    return first ?? (second || undefined);
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
    this.fresh(true); // or the server would have refused the join
    if (this.state === "joined") super.emit("rt:joined", { recovered: !!resumed });
  }

  /**
   * The server's store is back, or away.
   * @internal
   * @param {boolean} fresh
   */
  fresh(fresh) {
    if (this.stale !== fresh) return;
    this.stale = !fresh;
    this.emit(fresh ? "rt:fresh" : "rt:stale");
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
