/** What this page sent and heard, by the numbers that the server gave it. */

/** @typedef {{ epoch: string, offset: number }} Position */

export class Tally {
  sent = 0;
  received = 0;
  missed = 0;
  repeated = 0;
  /** @type {Map<string, Position>} room → the last position that was accounted for */
  #last = new Map();

  /**
   * From here on every message counts: the page has just joined, or was told to start afresh.
   * @param {string} room
   * @param {Position | null} position
   */
  start(room, position) {
    if (position) this.#last.set(room, position);
    else this.#last.delete(room);
  }

  /**
   * A message came. Within an epoch the messages of a room are numbered without gaps.
   * @param {string} room
   * @param {Position} position
   */
  heard(room, position) {
    const step = this.#step(room, position);
    this.received++;
    if (step < 1) this.repeated++;
    else this.#pass(room, position, step - 1);
  }

  /**
   * The client says that it has caught up: so nothing before this position can still come.
   * @param {string} room
   * @param {Position | null} position
   */
  caughtUp(room, position) {
    if (!position) return;
    const step = this.#step(room, position);
    if (step > 0) this.#pass(room, position, step);
  }

  /**
   * @param {string} room
   * @param {Position} position
   */
  #step(room, { epoch, offset }) {
    const last = this.#last.get(room);
    return last?.epoch === epoch ? offset - last.offset : 1;
  }

  /**
   * @param {string} room
   * @param {Position} position
   * @param {number} missed
   */
  #pass(room, position, missed) {
    this.missed += missed;
    this.#last.set(room, position);
  }
}
