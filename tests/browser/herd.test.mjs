/** A herd: ten thousand clients that lose their server at the same moment must not come back at the same moment. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect } from "../../starlette_realtime/browser/client.js";
import { dice } from "./support/chance.mjs";
import { FakeClock, settled } from "./support/fakes.mjs";

const HERD = 10_000;
const BUCKET = 100; // ms

/** Clients of one server, which answers while it is up and refuses at once while it is down. */
class Herd {
  clock = new FakeClock({ turns: 4 });
  up = true;
  sockets = new Set();
  /** @type {number[][]} times of the first, second, … try after the last `begin`, in ms since then */
  tries = [];
  #since = 0;

  constructor(size = HERD) {
    const herd = this;
    const { random } = dice(size);
    this.clients = Array.from({ length: size }, () => {
      let count = 0;
      class Socket {
        bufferedAmount = 0;

        constructor() {
          (herd.tries[count++] ??= []).push(herd.clock.now() - herd.#since);
          herd.sockets.add(this);
          queueMicrotask(() => (herd.up ? this.open() : this.drop(1006, "")));
        }

        open() {
          this.onopen({});
          this.say({ type: "welcome", connection: "c", heartbeat: 3_600, limits: {}, server: "test" });
        }

        send(text) {
          const { id, type } = JSON.parse(text);
          if (type === "auth") queueMicrotask(() => this.say({ type: "reply", id, data: { user: "ann", session: "s" } }));
        }

        say(frame) {
          this.onmessage?.({ data: JSON.stringify(frame) });
        }

        drop(code, reason) {
          herd.sockets.delete(this);
          this.onclose?.({ code, reason });
        }

        close() {
          herd.sockets.delete(this);
        }
      }
      const client = connect("https://example.com/realtime", { WebSocket: Socket, clock: this.clock, random });
      client.forget = () => (count = 0);
      return client;
    });
  }

  /** All are online, for long enough that the backoff starts over; from now on tries are counted. */
  async begin() {
    await settled();
    await this.clock.advance(10_000);
    assert.ok(this.clients.every(({ state }) => state === "online"));
    for (const client of this.clients) client.forget();
    this.tries = [];
    this.#since = this.clock.now();
  }

  close() {
    for (const client of this.clients) client.close();
  }
}

/**
 * No bucket of 100 ms holds more than the even share of `window` ms, and what chance may add to it.
 * @param {number[]} times
 */
function spread(times, window, from = 0, to = from + window) {
  assert.equal(times.length, HERD);
  const even = (HERD * BUCKET) / window;
  const buckets = new Map();
  for (const time of times) {
    assert.ok(time >= from && time <= to, `${time} is not within ${from} and ${to}`);
    const bucket = Math.floor(time / BUCKET);
    buckets.set(bucket, (buckets.get(bucket) ?? 0) + 1);
  }
  const most = Math.max(...buckets.values());
  assert.ok(most <= even + 6 * Math.sqrt(even), `${most} in one bucket; evenly it were ${even}`);
}

test("after a crash each try is spread over its whole backoff, and the next ones never gather", async () => {
  const herd = new Herd();
  await herd.begin();
  herd.up = false;
  for (const socket of [...herd.sockets]) socket.drop(1006, "");
  await herd.clock.advance(70_000);
  let end = 0;
  for (const [index, window] of [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000].entries()) {
    end += window;
    spread(herd.tries[index], window, 0, end);
  }
  // Whoever was last is back within the longest wait.
  herd.up = true;
  await herd.clock.advance(20_000);
  assert.ok(herd.clients.every(({ state }) => state === "online"));
  herd.close();
});

test("a server that drains everybody at once gets them back over a fifth of the time that it named", async () => {
  const herd = new Herd();
  for (const [after, window] of [[5, 1_000], [60, 12_000], [0.5, 250]]) {
    await herd.begin();
    for (const socket of [...herd.sockets]) socket.say({ type: "reconnect", after, reason: "draining" });
    await herd.clock.advance(after * 1_200 + 300);
    assert.equal(herd.tries.length, 1);
    spread(herd.tries[0], window, after * 1_000 - 1);
  }
  herd.close();
});

test("so does a server that closes with a delay", async () => {
  const herd = new Herd();
  for (const [code, reason] of [[4429, "rate_limited;10"], [1012, "draining;10"], [1013, "unavailable;10"]]) {
    await herd.begin();
    for (const socket of [...herd.sockets]) socket.drop(code, reason);
    await herd.clock.advance(12_100);
    assert.equal(herd.tries.length, 1);
    spread(herd.tries[0], 2_000, 9_999);
  }
  herd.close();
});

test("one that isn't back at the announced time is asked ever less often", async () => {
  const herd = new Herd();
  await herd.begin();
  for (const socket of [...herd.sockets]) socket.say({ type: "reconnect", after: 5, reason: "draining" });
  herd.up = false;
  await herd.clock.advance(40_000);
  spread(herd.tries[0], 1_000, 4_999);
  let end = 6_000;
  for (const [index, window] of [500, 1_000, 2_000, 4_000, 8_000].entries()) {
    end += window;
    spread(herd.tries[index + 1], window, 4_999, end);
  }
  herd.close();
});

test("links that fail again soon after they came back don't keep step", async () => {
  const herd = new Herd();
  await herd.begin();
  for (const window of [500, 1_000, 2_000, 4_000]) {
    for (const client of herd.clients) client.forget();
    herd.tries = [];
    for (const socket of [...herd.sockets]) socket.drop(1006, "");
    await herd.clock.advance(window);
    assert.equal(herd.tries.length, 1);
    const [first] = herd.tries;
    const begin = Math.min(...first);
    spread(first.map((time) => time - begin), window);
  }
  herd.close();
});
