/** A day of one page: tokens expire, links break in every way, servers drain, the machine sleeps, and all of it adds up. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../starlette_realtime/browser/client.js";
import { dice } from "./support/chance.mjs";
import { FakeClock } from "./support/fakes.mjs";
import { Server } from "./support/server.mjs";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** A clock that says how many of its timers are pending. */
function counting(clock) {
  const pending = new Set();
  return {
    now: clock.now,
    setTimeout(fn, ms) {
      const timer = clock.setTimeout(() => (pending.delete(timer), fn()), ms);
      pending.add(timer);
      return timer;
    },
    clearTimeout: (timer) => (pending.delete(timer), clock.clearTimeout(timer)),
    get pending() {
      return pending.size;
    },
  };
}

/** What a room heard, and whether it is all of it: each offset once and in order, but for what was declared lost. */
class Witness {
  heard = 0;
  resets = 0;
  /** What must not be: an exception in a listener would only be reported. @type {string[]} */
  faults = [];
  /** @type {number | null} */
  last = null;

  constructor(emitter) {
    emitter.on("message", (_, { position: { offset } }) => {
      if (this.last !== null && offset !== this.last + 1) this.faults.push(`${offset} after ${this.last}`);
      this.last = offset;
      this.heard++;
    });
    emitter.on("rt:reset", ({ position: { offset } }) => {
      if (offset < this.last) this.faults.push(`reset to ${offset} after ${this.last}`);
      this.last = offset;
      this.resets++;
    });
  }
}

for (const seed of [1, 2, 3]) {
  test(`a day, seed ${seed}: nothing is lost, nothing comes twice, and nothing piles up`, async () => {
    const clock = new FakeClock({ turns: 8 });
    const timers = counting(clock);
    const chance = dice(seed);
    const server = new Server(clock, chance);
    const client = connect("https://example.com/realtime", {
      WebSocket: server.Socket,
      clock: timers,
      random: chance.random,
      token: () => server.issue(),
    });
    const errors = new Set();
    client.on("rt:error", ({ code }) => errors.add(code));
    const room = client.join("chat", { since: server.rooms.chat.position });
    const chat = new Witness(room);
    let own = null;
    client.on("rt:joined", (served) => (own ??= new Witness(served)));

    /** @type {Map<string, string>} what became of each text that was sent */
    const outcomes = new Map();
    let said = 0;
    let pending = 0;
    const say = () => {
      const text = `ann ${++said}`;
      pending++;
      room.send("message", text).then(
        ({ offset }) => outcomes.set(text, `at ${offset}`),
        ({ code }) => outcomes.set(text, code),
      ).finally(() => pending--);
    };

    const end = clock.now() + 24 * HOUR;
    const repeat = (low, high, fn) => {
      if (clock.now() > end) return;
      fn();
      clock.setTimeout(() => repeat(low, high, fn), chance.between(low, high));
    };
    repeat(SECOND, 30 * SECOND, say);
    repeat(SECOND, 60 * SECOND, () => server.publish("chat", "somebody else"));
    repeat(MINUTE, 10 * MINUTE, () => server.publish("user:ann", "a note"));
    repeat(SECOND, 20 * SECOND, () => {
      assert.ok(server.sockets.size <= 1, "one link at a time");
      assert.ok(timers.pending <= 12 + 3 * pending, `${timers.pending} timers, ${pending} entries`);
    });

    const outage = (ms) => {
      server.reachable = false;
      server.socket?.silence();
      clock.setTimeout(() => (server.reachable = true), ms);
    };
    const troubles = {
      drop: () => server.socket?.drop(1006, ""),
      silence: () => server.socket?.silence(),
      drain: () => {
        const { socket } = server;
        socket?.say({ type: "reconnect", after: chance.between(0, 10), reason: "draining" });
        clock.setTimeout(() => socket?.shut(1012, "draining"), 15 * SECOND);
      },
      away: () => server.socket?.shut(1013, "unavailable"),
      slow: () => server.socket?.shut(4440, "slow_consumer"),
      step: () => server.socket?.shut(4441, "out_of_step"),
      limited: () => server.socket?.shut(4429, `rate_limited;${chance.between(1, 20).toFixed(3)}`),
      garbled: () => server.socket?.onmessage?.({ data: "{" }),
      outage: () => outage(chance.between(SECOND, 4 * MINUTE)),
    };
    const met = new Set();
    while (clock.now() < end) {
      await clock.advance(chance.between(SECOND, 10 * MINUTE));
      if (chance.random() < 0.04) {
        // A lid is closed: the link is gone, time passes, and others go on talking.
        met.add("sleep");
        server.socket?.silence();
        const ms = chance.between(10 * SECOND, 2 * HOUR);
        clock.sleep(ms);
        for (let rest = ms; rest > 0; rest -= MINUTE) server.publish("chat", "while ann was asleep");
      } else {
        const trouble = chance.one(...Object.keys(troubles));
        met.add(trouble);
        troubles[trouble]();
      }
    }
    assert.deepEqual([...met].sort(), [...Object.keys(troubles), "sleep"].sort(), "a day with all of it");

    await clock.advance(10 * MINUTE);
    assert.equal(client.state, "online");
    assert.equal(room.state, "joined");
    assert.deepEqual([chat.faults, own.faults], [[], []]);
    assert.equal(chat.last, server.rooms.chat.all.length);
    assert.equal(own.last, server.rooms["user:ann"].all.length);
    assert.equal(chat.resets + own.resets, server.lost, "each loss is told, and nothing else is");
    const { lost, refreshes, repeats } = server;
    const eventful = { lost: lost > 0, refreshes: refreshes > 10, repeats: repeats > 10, heard: chat.heard > 1_000 };
    assert.ok(Object.values(eventful).every(Boolean), JSON.stringify({ ...eventful, lost, refreshes, repeats }));

    assert.equal(pending, 0);
    assert.equal(outcomes.size, said);
    const published = new Map();
    for (const { data, offset } of server.rooms.chat.all) {
      if (!data.startsWith("ann ")) continue;
      assert.ok(!published.has(data), `${data} came twice`);
      published.set(data, `at ${offset}`);
    }
    for (const [text, outcome] of outcomes) {
      if (outcome !== "uncertain") assert.equal(outcome, published.get(text), text);
    }
    const certain = [...outcomes.values()].filter((outcome) => outcome !== "uncertain").length;
    assert.ok(certain / said > 0.9, `${certain} of ${said} were answered`);
    const order = [...published.keys()].map((text) => Number(text.slice(4)));
    assert.deepEqual(order, [...order].sort((a, b) => a - b), "in the order in which they were said");
    assert.ok([...errors].every((code) => ["expired", "disconnected"].includes(code)), [...errors].join());

    await clock.advance(40 * SECOND);
    assert.ok(timers.pending <= 4, `${timers.pending} timers are left`);
    client.close();
    await clock.advance(MINUTE);
    assert.equal(timers.pending, 0);
    assert.equal(clock.timers, 0);
  });
}
