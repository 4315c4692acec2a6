/** Pacing: what the server says is left to spend is kept to, so that nothing has to be refused. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { heard, joined, outcome, settled, start } from "./support/fakes.mjs";

const limits = (remaining, retry_after, event) => ({ type: "limits", remaining, retry_after, ...(event && { event }) });

/** Answer whatever is unanswered, until nothing more comes. */
function answer(socket) {
  for (let done = 0; done < socket.all("event").length; done++) socket.reply(socket.all("event")[done]);
}

test("what the server says is left is passed on", () => {
  const { client, socket } = joined();
  const told = heard(client, "rt:limits");
  socket.say(limits(3, 0, "message"));
  assert.deepEqual(told, [{ type: "limits", event: "message", remaining: 3, retry_after: 0 }]);
});

test("with nothing left the client waits as long as the server said, and writes on by itself", async () => {
  const { room, socket, clock } = joined();
  socket.say(limits(0, 2));
  const sent = [1, 2].map((value) => outcome(room.send("message", value)));
  await clock.advance(1_999);
  assert.deepEqual(socket.all("event"), []);
  await clock.advance(1);
  assert.deepEqual(socket.all("event").map(({ data }) => data), [1]);
  answer(socket);
  await settled();
  assert.deepEqual(sent.map(({ value }) => value), [{}, {}]);
});

test("an event that is named waits, others don't", async () => {
  const { client, room, socket, clock } = joined();
  socket.say(limits(0, 2, "message"));
  room.send("message", 1);
  client.send("other", 2);
  const asked = outcome(room.history());
  assert.deepEqual(socket.all("event").map(({ data }) => data), [2]);
  socket.reply(socket.only("history"), { events: [], more: false, truncated: false });
  await settled();
  assert.ok(asked.value);
  await clock.advance(2_000);
  assert.deepEqual(socket.all("event").map(({ data }) => data), [2, 1]);
});

test("a room's order holds while one of its events waits", async () => {
  const { room, socket, clock } = joined();
  socket.say(limits(0, 2, "message"));
  room.send("message", 1);
  room.send("other", 2);
  assert.deepEqual(socket.all("event"), []);
  await clock.advance(2_000);
  answer(socket);
  await settled();
  assert.deepEqual(socket.all("event").map(({ data }) => data), [1, 2]);
});

test("all of it waits for the connection's own limit: events, history, members and status", async () => {
  const { client, room, socket, clock } = joined();
  socket.say(limits(0, 3));
  client.send("other", 1);
  room.history();
  room.setStatus("away");
  assert.deepEqual(socket.sent.map(({ type }) => type), ["auth", "join"]);
  await clock.advance(3_000);
  assert.deepEqual(socket.sent.map(({ type }) => type), ["auth", "join", "event"], "first one, to feel the way");
  socket.reply(socket.only("event"));
  await settled();
  assert.deepEqual(socket.sent.map(({ type }) => type).slice(3), ["history", "status"]);
});

test("what is volatile is dropped meanwhile", async () => {
  const { client, room, socket, clock } = joined();
  socket.say(limits(0, 1, "typing"));
  assert.equal(room.sendVolatile("typing"), false);
  assert.equal(client.sendVolatile("typing"), false);
  assert.equal(room.sendVolatile("cursor"), true);
  await clock.advance(1_000);
  assert.equal(room.sendVolatile("typing"), true);
  socket.say(limits(0, 1));
  assert.equal(room.sendVolatile("cursor"), false);
});

test("news that something is left ends the waiting", () => {
  const { room, socket } = joined();
  socket.say(limits(0, 60));
  room.send("message", 1);
  assert.deepEqual(socket.all("event"), []);
  socket.say(limits(5, 0));
  assert.equal(socket.all("event").length, 1);
});

test("no more goes out at once than is left", () => {
  const { client, socket } = start();
  socket.accept();
  socket.say(limits(3, 0));
  for (let n = 0; n < 8; n++) {
    const room = client.join(`room ${n}`);
    socket.reply(socket.last("join"), {});
    room.send("message", n);
  }
  assert.equal(socket.all("event").length, 3);
  answer(socket);
  assert.equal(socket.all("event").length, 8);
});

test("the waiting is the link's: the next one begins without", async () => {
  const world = joined();
  world.socket.say(limits(0, 90));
  world.room.send("message", 1);
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: true });
  assert.equal(world.socket.all("event").length, 1);
});

test("a wait beyond what the client would take is rejected at once, with how long it is", async () => {
  const { room, socket, clock } = joined();
  const early = outcome(room.send("message", 0));
  socket.say(limits(0, 3600, "message"));
  const late = outcome(room.send("message", 1));
  await settled();
  assert.deepEqual([early, late], [{}, {}], "in their order");
  socket.reply(socket.only("event"), "taken before");
  await settled();
  assert.equal(early.value, "taken before");
  assert.deepEqual([late.code, late.error.retryAfter], ["rate_limited", 3600]);
  await clock.advance(3_600_000);
  socket.say({ type: "ping" });
  assert.equal(socket.all("event").length, 1);
});

test("what may already have arrived doesn't wait beyond the life of its key", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  await world.relink();
  world.socket.say(limits(0, 99.9));
  world.socket.reply(world.socket.only("join"), { recovered: true });
  for (let beat = 0; beat < 4; beat++) {
    await world.clock.advance(25_000);
    world.socket.say({ type: "ping" });
  }
  assert.equal(world.sockets.length, 2, "it is the same link");
  assert.equal(sent.code, "uncertain");
  assert.equal(world.socket.all("event").length, 0);
});

test("a timeout of the app's own holds while the client waits", async () => {
  const { room, socket, clock } = joined();
  socket.say(limits(0, 60));
  const sent = outcome(room.send("message", 1, { timeout: 5_000 }));
  await clock.advance(5_000);
  assert.equal(sent.code, "timeout");
});

test("however often the server says so, one timer waits", async () => {
  const { client, room, socket, clock } = joined();
  const before = clock.timers;
  for (let n = 0; n < 50; n++) {
    socket.say(limits(0, 60));
    socket.say(limits(0, 50, "message"));
    room.send("message", n).catch(() => {});
    client.send("other", n).catch(() => {});
  }
  assert.equal(clock.timers, before + 1);
  client.close();
  await settled();
  assert.equal(clock.timers, 1, "the joining of rooms by the server is still waited for");
  await clock.advance(60_000);
  assert.equal(clock.timers, 0);
});
