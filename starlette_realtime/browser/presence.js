/** Who is in a room: a snapshot, kept up to date by numbered differences; a gap in the numbers asks for a new one. */

import { Emitter } from "./emitter.js";

/** @import { Diff, Member, Presentee, Snapshot } from "./types.js" */

const HELD = 64; // differences kept while a snapshot is on its way; one more only means to ask once more

/** Emits `change` with `{joined, updated, left}`, lists of `Presentee`: all of them empty where only `total` is new. */
export class Presence extends Emitter {
  /** @type {Map<string, Presentee>} by user, or by connection where there is no user */
  members = new Map();
  /** connections in the room, also those that a sample leaves out */
  total = 0;
  seq = 0;
  /** false: the room is too large, `members` is a sample */
  complete = true;
  /** @type {Map<string, Member>} */
  #connections = new Map();
  /** @type {Diff[] | null} */
  #held = null;
  #told = "0,true"; // total and whether that is all, at the last `change`
  #known = false; // the room shows its members
  #ask;

  /** @param {() => Promise<Snapshot>} ask */
  constructor(ask) {
    super();
    this.#ask = ask;
  }

  /**
   * @internal
   * @param {Snapshot} snapshot
   */
  load({ seq, total, list }) {
    const held = this.#held ?? [];
    this.#held = null;
    this.#known = true;
    this.#take(seq, total, list);
    for (const diff of held) this.#fold(diff);
    this.#changed();
  }

  /**
   * @internal
   * @param {Diff} diff
   */
  diff(diff) {
    this.#fold(diff);
    this.#changed();
  }

  /**
   * @param {number} seq
   * @param {number} total
   * @param {Member[]} list
   */
  #take(seq, total, list) {
    this.#connections = new Map(list.map((member) => [member.connection, member]));
    this.seq = seq;
    this.total = total;
    this.complete = list.length >= total;
  }

  /** @param {Diff} diff */
  #fold(diff) {
    const { seq, prev = 0, joined = [], updated = [], left = [], total = 0, sample } = diff;
    if (this.#held) {
      if (this.#held.length < HELD) this.#held.push(diff);
    } else if (seq > this.seq) {
      if (sample) {
        this.#take(seq, total, sample);
        this.complete = false;
      } else if (prev > this.seq || !this.complete) this.#reload(diff);
      else {
        // Final states, so that an overlap does no harm.
        for (const member of [...joined, ...updated]) this.#connections.set(member.connection, member);
        for (const connection of left) this.#connections.delete(connection);
        this.seq = seq;
        this.total = this.#connections.size;
      }
    }
  }

  /**
   * The store has lost count, so its numbers may have started over: whatever a new snapshot says is right.
   * @internal
   */
  reset() {
    if (this.#known) this.#reload();
  }

  /** @param {Diff[]} held */
  #reload(...held) {
    this.#held = held;
    this.#ask().then(
      (snapshot) => void (this.#held === held && this.load(snapshot)), // else a join has brought a newer one
      () => void (this.#held === held && (this.#held = null)), // the next difference asks again
    );
  }

  #changed() {
    /** @type {Map<string, Presentee>} */
    const next = new Map();
    for (const member of [...this.#connections.values()].sort((a, b) => a.since - b.since)) {
      const { connection, user = null, status, meta, since } = member;
      const known = next.get(user ?? connection);
      if (!known) next.set(user ?? connection, { user, status, meta, connections: [connection], since });
      else {
        known.connections.push(connection);
        if (status === "online") known.status = status;
        known.meta = meta ?? known.meta;
      }
    }
    const before = this.members;
    const joined = [];
    const updated = [];
    for (const [key, one] of next) {
      const old = before.get(key);
      if (!old) joined.push(one);
      else if (JSON.stringify(old) === JSON.stringify(one)) next.set(key, old);
      else updated.push(one);
    }
    const left = [...before].filter(([key]) => !next.has(key)).map(([, one]) => one);
    const whole = [this.total, this.complete].join();
    if (joined.length || updated.length || left.length) this.members = next;
    else if (whole === this.#told) return;
    this.#told = whole;
    this.emit("change", { joined, updated, left });
  }
}
