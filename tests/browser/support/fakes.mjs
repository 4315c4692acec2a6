/** A clock that is moved by hand, and a server at the other end of sockets that carry frames at once. */

import assert from "node:assert/strict";

import { connect } from "../../../starlette_realtime/browser/client.js";

export class FakeClock {
  #now = 1_000_000;
  #last = 0;
  /** @type {Map<number, {id: number, at: number, fn: () => void}>} */
  #timers = new Map();
  /** A heap by time, then by age; timers that were cleared stay in it until they come up. */
  #heap = [];
  #turns;

  /** @param {{turns?: number}} [options] how far promises get after each timer: few turns are quick */
  constructor({ turns } = {}) {
    this.#turns = turns;
  }

  now = () => this.#now;

  /** @param {() => void} fn @param {number} ms */
  setTimeout = (fn, ms) => {
    const id = ++this.#last;
    // Browsers round down, as this does.
    const timer = { id, at: this.#now + Math.max(0, Math.floor(ms)), fn };
    this.#timers.set(id, timer);
    const heap = this.#heap;
    let index = heap.push(timer) - 1;
    for (let parent; index && before(timer, heap[(parent = (index - 1) >> 1)]); index = parent) heap[index] = heap[parent];
    heap[index] = timer;
    return id;
  };

  /** @param {number} timer */
  clearTimeout = (timer) => void this.#timers.delete(timer);

  get timers() {
    return this.#timers.size;
  }

  /** Let `ms` pass; timers run in order. The time is whole, like `Date.now()`. */
  async advance(ms) {
    const end = this.#now + Math.ceil(ms);
    await settled();
    for (let due; (due = this.#next(end)); ) {
      this.#now = Math.max(this.#now, due.at);
      due.fn();
      await settled(this.#turns);
    }
    this.#now = end;
  }

  /** The machine sleeps: time passes, timers don't. */
  sleep(ms) {
    const whole = Math.ceil(ms);
    this.#now += whole;
    for (const timer of this.#heap) timer.at += whole;
  }

  /** @param {number} end */
  #next(end) {
    const heap = this.#heap;
    while (heap.length && heap[0].at <= end) {
      const [first] = heap;
      const moved = heap.pop();
      if (heap.length) {
        let index = 0;
        for (;;) {
          let child = 2 * index + 1;
          if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child++;
          if (child >= heap.length || !before(heap[child], moved)) break;
          heap[index] = heap[child];
          index = child;
        }
        heap[index] = moved;
      }
      if (this.#timers.delete(first.id)) return first;
    }
  }
}

function before(one, other) {
  return one.at - other.at < 0 || (one.at === other.at && one.id < other.id);
}

/** Let all promises that can settle do so. */
export async function settled(turns = 30) {
  for (let turn = 0; turn < turns; turn++) await null;
}

class FakeSocket {
  readyState = 0;
  sent = [];
  closed = false;
  bufferedAmount = 0;
  onopen = null;
  onmessage = null;
  onclose = null;

  constructor(url, protocol) {
    this.url = url;
    this.protocol = protocol;
  }

  send(text) {
    assert.equal(this.readyState, 1, "sent to a socket that isn't open");
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.closed = true;
    this.readyState = 2;
    this.closeCode = code;
  }

  // What the server does with it:

  open() {
    this.readyState = 1;
    this.onopen?.({});
  }

  say(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }

  garble(text) {
    this.onmessage?.({ data: text });
  }

  /** A close frame has come; its end, and what it says, come with `drop`. */
  closing() {
    this.readyState = 2;
  }

  drop(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  welcome({ heartbeat = 25, limits = { message_bytes: 65536, rooms: 100 }, connection = "c1" } = {}) {
    this.say({ type: "welcome", connection, heartbeat, limits, server: "test" });
  }

  reply(command, data = {}) {
    this.say({ type: "reply", id: command.id, data });
  }

  refuse(command, error) {
    const whole = typeof error === "string" ? { code: error, message: "" } : error;
    this.say({ type: "reply", id: command.id, error: whole });
  }

  /** Open, welcome, and answer `auth`. */
  accept({ user = "ann", session = "s1", ...welcome } = {}) {
    this.open();
    this.welcome(welcome);
    this.reply(this.only("auth"), { user, expires_in: 600, session });
  }

  /** Commands of a type, and of a room where one is given. */
  all(type, room) {
    return this.sent.filter((frame) => frame.type === type && (room === undefined || frame.room === room));
  }

  only(type, room) {
    const found = this.all(type, room);
    assert.equal(found.length, 1, `${found.length} × ${type}: ${JSON.stringify(this.sent)}`);
    return found[0];
  }

  last(type, room) {
    const found = this.all(type, room).at(-1);
    assert.ok(found, `no ${type}`);
    return found;
  }
}

/** A client, its clock, and the sockets that it opens. */
export function start({ clock = new FakeClock(), ...options } = {}, urls = "https://example.com/realtime") {
  const sockets = [];
  const chance = { value: 0.5 };
  const client = connect(urls, {
    clock,
    random: () => chance.value,
    WebSocket: class extends FakeSocket {
      constructor(url, protocol) {
        super(url, protocol);
        sockets.push(this);
      }
    },
    ...options,
  });
  const states = [];
  const errors = [];
  client.on("rt:state", (state) => states.push(state));
  const deaf = client.on("rt:error", (error) => errors.push(error));
  return {
    client,
    clock,
    sockets,
    chance,
    states,
    errors,
    deaf,
    get socket() {
      return sockets.at(-1);
    },
    /** Break the link, wait out the backoff, and accept the next one. */
    async relink(accept = {}) {
      this.socket.drop();
      await clock.advance(this.states.at(-1).retryIn);
      this.socket.accept(accept);
    },
  };
}

/** A client that is online and in `room`. */
export function joined(options = {}, { room: name = "chat", join = {}, reply = { position: at(1) } } = {}) {
  const world = start(options);
  world.socket.accept();
  const room = world.client.join(name, join);
  world.socket.reply(world.socket.only("join", name), reply);
  return {
    ...world,
    room,
    get socket() {
      return world.socket;
    },
  };
}

export function at(offset, epoch = "e") {
  return { epoch, offset, id: `${epoch}${offset}` };
}

/** A kept event of `room`; its data is its offset. */
export function kept(offset, { room = "chat", event = "message", epoch = "e" } = {}) {
  return { type: "event", event, data: offset, room, position: at(offset, epoch), at: 5, from: { connection: "c2" } };
}

/** What a promise came to, without waiting: undefined while it is pending. */
export function outcome(promise) {
  const result = {};
  promise.then(
    (value) => Object.assign(result, { value }),
    (error) => Object.assign(result, { error, code: error.code }),
  );
  return result;
}

/** Collect the calls of a listener. */
export function heard(emitter, event) {
  const calls = [];
  emitter.on(event, (...args) => void calls.push(args.length > 1 ? args : args[0]));
  return calls;
}
