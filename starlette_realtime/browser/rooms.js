/** The rooms of one client: which there are, joining them on each link, and their end. */

import { RealtimeError } from "./errors.js";
import { encode } from "./link.js";
import { RETRIED } from "./outbox.js";
import { Room } from "./room.js";

/** @import { Emitter } from "./emitter.js" */
/** @import { Link } from "./link.js" */
/** @import { Outbox } from "./outbox.js" */
/** @import { Retry } from "./retry.js" */
/** @import { Clock, JoinOptions, Position } from "./types.js" */

const SINCE = 100; // positions that the server takes with `auth`

/** @internal */
export class Rooms {
  /** @type {Map<string, Room>} */
  #rooms = new Map();
  /** @type {Link | null} the authenticated one */
  #link = null;
  /** @type {RealtimeError | null} with which everything has ended */
  #over = null;
  #clock;
  #retry;

  /**
   * @param {Clock} clock
   * @param {Retry} retry
   * @param {Outbox} outbox
   * @param {number} timeout ms for `history`, and for the server to join rooms again
   * @param {Emitter} client hears of what the server joined, and what the user room emits
   */
  constructor(clock, retry, outbox, timeout, client) {
    this.#clock = clock;
    this.#retry = retry;
    this.outbox = outbox;
    this.timeout = timeout;
    this.client = client;
  }

  /** @param {string} name */
  get(name) {
    return this.#rooms.get(name);
  }

  /** A copy: what listeners do may end rooms. */
  get all() {
    return [...this.#rooms.values()];
  }

  /** How far the rooms were heard that the server joins. @returns {Record<string, Position | null>} */
  get since() {
    const served = this.all.filter((room) => room.served && room.position).slice(0, SINCE);
    return Object.fromEntries(served.map((room) => [room.name, room.position]));
  }

  /**
   * @param {string} name
   * @param {JoinOptions} options
   */
  join(name, options) {
    const known = this.get(name);
    if (known) return known;
    const room = this.#add(name, options, false);
    if (this.#over) this.#end(room, "left", this.#over);
    else this.#join(room);
    return room;
  }

  /** @param {Link} link */
  online(link) {
    this.#link = link;
    for (const room of this.all) if (!room.served) this.#join(room);
    this.#clock.setTimeout(() => this.#link === link && this.#forsaken(), this.timeout);
  }

  offline() {
    this.#link = null;
    for (const room of this.all) room.state = "joining";
  }

  /** @param {RealtimeError} error */
  close(error) {
    this.#over = error;
    for (const room of this.all) this.#end(room, "left", error);
  }

  /** @param {any} frame about one room, or all of them */
  frame(frame) {
    const room = this.get(frame.room);
    // Before the reply to a join, frames belong to an earlier stay in the room.
    const there = room?.state === "joined" ? room : undefined;
    switch (frame.type) {
      case "event":
        return there?.accept(frame) ? there.deliver(frame, false) : undefined;
      case "presence":
        return there?.presence.diff(frame);
      case "joined":
        if (!room || (room.served && !there)) this.#served(frame, room);
        break;
      case "left":
        // What the server had joined and won't again is over, too.
        if (room && (there || room.served)) this.#end(room, "left", new RealtimeError(frame.code, removed(frame)));
        break;
      case "reset":
        there?.reset(frame);
        break;
      case "stale":
      case "fresh":
        if (frame.room) return there?.fresh(frame.type === "fresh");
        this.client.emit(`rt:${frame.type}`);
        for (const one of this.all) if (!one.mirrored) one.fresh(frame.type === "fresh");
    }
  }

  /** Rooms that the server had joined this connection to, and has not again. */
  #forsaken() {
    for (const room of this.all) {
      if (room.served && room.state === "joining") this.#end(room, "left", new RealtimeError("not_joined"));
    }
  }

  /**
   * The server joined this connection to a room.
   * @param {any} frame
   * @param {Room} [known] of an earlier connection
   */
  #served(frame, known) {
    const room = known ?? this.#add(frame.room, {}, true);
    room.joined(frame);
    if (!known) this.client.emit("rt:joined", room);
    this.outbox.pump();
  }

  /**
   * @param {string} name
   * @param {JoinOptions} options
   * @param {boolean} served
   */
  #add(name, options, served) {
    const room = new Room(name, options, served, this);
    this.#rooms.set(name, room);
    return room;
  }

  /**
   * @param {Room} room
   * @param {number} [tries]
   */
  #join(room, tries = 0) {
    const link = this.#link;
    const stale = () => !link || this.#link !== link || this.get(room.name) !== room;
    if (!link || stale()) return;
    try {
      const body = encode({ type: "join", room: room.name, since: room.position ?? undefined, ...room.self });
      link.request(body, (error, data) => {
        if (stale()) return;
        if (!error) {
          room.joined(data);
          this.outbox.pump();
        } else if (RETRIED.has(error.code)) {
          this.#clock.setTimeout(() => this.#join(room, tries + 1), this.#retry.pause(error, tries));
        } else this.#end(room, "refused", error);
      });
    } catch (error) {
      this.#end(room, "refused", /** @type {RealtimeError} */ (error)); // `meta` can't be sent
    }
  }

  /** @param {Room} room */
  leave(room) {
    if (this.get(room.name) !== room) return;
    this.#link?.request(encode({ type: "leave", room: room.name }));
    this.#end(room, "left", new RealtimeError("left"));
  }

  /**
   * @param {Room} room
   * @param {"left" | "refused"} state
   * @param {RealtimeError} error
   */
  #end(room, state, error) {
    this.#rooms.delete(room.name);
    room.end(state, error);
    this.outbox.drop(error, room);
  }
}

/** @param {{room: string, code: string}} frame */
function removed({ room, code }) {
  return code === "not_joined" ? "" : `the server removed this page from ${room}: ${code}`;
}
