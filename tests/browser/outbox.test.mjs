/** Sending: order, keys, the bound, repetition, and the honest end of what was never answered. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { at, heard, joined, outcome, settled, start } from "./support/fakes.mjs";

const resumed = (socket, room = "chat") =>
  socket.reply(socket.last("join", room), { recovered: true, position: at(1) });
const limited = (retry_after) => ({ code: "rate_limited", message: "", retry_after });

test("send resolves with the reply's data and rejects with its error", async () => {
  const { room, socket } = joined();
  const good = outcome(room.send("message", { text: "hi" }));
  const { id, key, ...frame } = socket.last("event");
  assert.deepEqual(frame, { type: "event", room: "chat", event: "message", data: { text: "hi" } });
  assert.match(key, /^[\w-]{20,64}$/);
  socket.reply({ id }, { offset: 2 });
  await settled();
  assert.deepEqual(good.value, { offset: 2 });
  const bad = outcome(room.send("message", {}));
  socket.refuse(socket.last("event"), { code: "invalid_payload", message: "no", fields: { text: "is missing" } });
  await settled();
  assert.equal(bad.error.code, "invalid_payload");
  assert.equal(bad.error.message, "no");
  assert.deepEqual(bad.error.fields, { text: "is missing" });
});

test("what is sent is what it was when send was called", async () => {
  const world = start();
  const message = { text: "before" };
  world.client.send("message", message);
  message.text = "after";
  world.socket.accept();
  assert.equal(world.socket.last("event").data.text, "before");
});

test("messages of a room go out one at a time, those of others beside them", async () => {
  const { client, room, socket } = joined();
  for (const value of [1, 2, 3]) room.send("message", value);
  client.send("hello", 4);
  assert.deepEqual(socket.all("event").map(({ data }) => data), [1, 4]);
  socket.reply(socket.all("event")[0]);
  assert.deepEqual(socket.all("event").map(({ data }) => data), [1, 4, 2]);
});

test("twenty messages of an offline page are sent in order, once there is a connection", async () => {
  const world = joined();
  world.socket.drop();
  const sent = Array.from({ length: 20 }, (_, n) => outcome(world.room.send("message", n)));
  await world.clock.advance(600_000);
  world.socket.accept();
  assert.equal(world.socket.all("event").length, 0, "not before the room is joined again");
  resumed(world.socket);
  for (let n = 0; n < 20; n++) world.socket.reply(world.socket.last("event"), n);
  await settled();
  assert.deepEqual(sent.map(({ value }) => value), sent.map((_, n) => n));
  const events = world.socket.all("event");
  assert.deepEqual(events.map(({ data }) => data), sent.map((_, n) => n));
  assert.equal(new Set(events.map(({ key }) => key)).size, 20);
});

test("what was not answered is sent again with its key, before what came later", async () => {
  const world = joined();
  const first = outcome(world.room.send("message", 1));
  const second = outcome(world.room.send("message", 2));
  const { key } = world.socket.only("event");
  await world.relink();
  resumed(world.socket);
  assert.equal(world.socket.only("event").key, key);
  assert.equal(world.socket.only("event").data, 1);
  world.socket.reply(world.socket.only("event"), "ok");
  world.socket.reply(world.socket.last("event"), "ok");
  await settled();
  assert.deepEqual([first.value, second.value], ["ok", "ok"]);
});

test("a key of the app's own is used", () => {
  const { client, room, socket } = joined();
  room.send("message", 1, { key: "mine" });
  client.send("message", 1, { key: "mine, too" });
  assert.deepEqual(socket.all("event").map(({ key }) => key), ["mine", "mine, too"]);
});

test("the queue is bounded, and says so", async () => {
  const { client } = start({ queue: 3 });
  const sent = [1, 2, 3, 4].map((value) => outcome(client.send("message", value)));
  await settled();
  assert.deepEqual(sent.map(({ code }) => code), [undefined, undefined, undefined, "queue_full"]);
});

test("a refusal for the rate keeps the order: it waits, and what comes later waits behind it", async () => {
  const { room, socket, clock } = joined();
  const sent = [1, 2].map((value) => outcome(room.send("message", value)));
  const { key } = socket.last("event");
  socket.refuse(socket.last("event"), limited(2.5));
  await clock.advance(2_499);
  assert.equal(socket.all("event").length, 1);
  await clock.advance(1);
  assert.deepEqual(socket.all("event").map(({ data }) => data), [1, 1]);
  assert.equal(socket.last("event").key, key);
  socket.reply(socket.last("event"), "a");
  socket.reply(socket.last("event"), "b");
  await settled();
  assert.deepEqual(sent.map(({ value }) => value), ["a", "b"]);
});

test("a wait in fractions of a millisecond ends, though browsers round down", async () => {
  const { room, socket, clock } = joined();
  const sent = outcome(room.send("message", 1));
  socket.refuse(socket.last("event"), limited(0.0997));
  await clock.advance(100);
  assert.equal(socket.all("event").length, 2);
  socket.reply(socket.last("event"), "ok");
  await settled();
  assert.equal(sent.value, "ok");
});

test("after a refusal for the rate, lanes go out one by one, and more with each success", async () => {
  const { client, socket, clock } = start();
  socket.accept();
  for (let n = 0; n < 20; n++) {
    client.join(`r${n}`).send("message", n);
    socket.reply(socket.last("join", `r${n}`), { position: at(1) });
  }
  assert.equal(socket.all("event").length, 16, "the window");
  for (const frame of socket.all("event")) socket.refuse(frame, limited(1));
  await clock.advance(1_000);
  let answered = 16;
  for (; answered < socket.all("event").length; answered++) {
    const open = socket.all("event").length - answered;
    assert.ok(open <= answered - 15, `${open} under way after ${answered - 16} successes`);
    socket.reply(socket.all("event")[answered]);
  }
  assert.equal(answered, 36, "each has gone out");
  for (let n = 0; n < 20; n++) client.room(`r${n}`).send("message", n);
  assert.equal(socket.all("event").slice(answered).length, 16, "the window is open again");
});

test("a limited flood of an offline page comes through in order against a real bucket", async () => {
  const world = joined();
  world.socket.drop();
  const sent = Array.from({ length: 60 }, (_, n) => outcome(world.room.send("message", n)));
  await world.clock.advance(1_000);
  world.socket.accept();
  resumed(world.socket);
  const accepted = [];
  let tokens = 10;
  for (let served = 0; accepted.length < 60; ) {
    const frames = world.socket.all("event");
    if (served === frames.length) {
      await world.clock.advance(50);
      tokens += 0.05 * 20;
      continue;
    }
    const frame = frames[served++];
    if (tokens >= 1) {
      tokens -= 1;
      accepted.push(frame.data);
      world.socket.reply(frame, "ok");
    } else world.socket.refuse(frame, limited((1 - tokens) / 20));
  }
  await settled();
  assert.deepEqual(accepted, sent.map((_, n) => n));
  assert.ok(sent.every(({ value }) => value === "ok"));
});

test("unavailable is tried again with a growing pause, expired until the token is renewed", async () => {
  const { room, socket, clock } = joined();
  const sent = outcome(room.send("message", 1));
  for (const [error, pause] of [["unavailable", 250], ["expired", 500], ["unavailable", 1_000]]) {
    socket.refuse(socket.last("event"), error);
    const count = socket.all("event").length;
    await clock.advance(pause - 1);
    assert.equal(socket.all("event").length, count);
    await clock.advance(1);
    assert.equal(socket.all("event").length, count + 1);
  }
  assert.equal(new Set(socket.all("event").map(({ key }) => key)).size, 1);
  socket.reply(socket.last("event"), "ok");
  await settled();
  assert.equal(sent.value, "ok");
});

test("a store that stays unavailable may have stored: uncertain after 100 s", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  for (let second = 0; second < 100 && !sent.code; second++) {
    world.socket.say({ type: "ping" });
    world.socket.refuse(world.socket.last("event"), { code: "unavailable", message: "", retry_after: 1 });
    await world.clock.advance(1_000);
  }
  assert.equal(sent.code, "uncertain");
});

test("an entry without an answer is uncertain 100 s after its first write, and the next one goes", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  const next = outcome(world.room.send("message", 2));
  await world.clock.advance(30_000);
  world.socket.say({ type: "ping" });
  await world.relink();
  await world.clock.advance(30_000);
  world.socket.say({ type: "ping" });
  await world.clock.advance(30_000);
  resumed(world.socket);
  assert.equal(world.socket.only("event").data, 1);
  await world.clock.advance(9_700);
  assert.equal(sent.code, undefined);
  await world.clock.advance(50);
  assert.equal(sent.code, "uncertain");
  assert.equal(world.socket.last("event").data, 2);
  assert.deepEqual(next, {});
});

test("a late answer to what was given up harms nobody", async () => {
  const { room, socket, clock } = joined();
  const sent = outcome(room.send("message", 1, { timeout: 100 }));
  const late = socket.last("event");
  const next = outcome(room.send("message", 2));
  await clock.advance(100);
  assert.equal(sent.code, "timeout");
  socket.reply(late, "late");
  socket.reply(socket.last("event"), "ok");
  await settled();
  assert.equal(next.value, "ok");
});

test("after the machine slept, nothing is repeated that the server may have forgotten", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  world.clock.sleep(10 * 60_000);
  await world.relink();
  resumed(world.socket);
  await settled();
  assert.equal(sent.code, "uncertain");
  assert.equal(world.socket.all("event").length, 0);
});

test("what was never written waits as long as it takes", async () => {
  const world = start();
  const sent = outcome(world.client.send("message", 1));
  for (let n = 0; n < 60; n++) {
    world.socket.drop();
    await world.clock.advance(60_000);
  }
  assert.deepEqual(sent, {});
  world.socket.accept();
  world.socket.reply(world.socket.only("event"), "ok");
  await settled();
  assert.equal(sent.value, "ok");
});

test("a time limit counts from the call, offline or not", async () => {
  const world = start();
  const sent = outcome(world.client.send("message", 1, { timeout: 3_000 }));
  await world.clock.advance(2_999);
  assert.deepEqual(sent, {});
  await world.clock.advance(1);
  assert.equal(sent.code, "timeout");
  await world.clock.advance(20_000);
  world.socket.accept();
  assert.equal(world.socket.all("event").length, 0);
});

test("a rate limit beyond the 100 s rejects with the server's word, unless an earlier answer was lost", async () => {
  const world = joined();
  const clear = outcome(world.room.send("message", 1));
  world.socket.refuse(world.socket.last("event"), limited(500));
  await settled();
  assert.equal(clear.code, "rate_limited");
  assert.equal(clear.error.retryAfter, 500);
  const lost = outcome(world.room.send("message", 2));
  await world.relink();
  resumed(world.socket);
  world.socket.refuse(world.socket.last("event"), limited(500));
  await settled();
  assert.equal(lost.code, "uncertain");
});

test("not_joined while the room is being joined again waits for the join", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  const frame = world.socket.last("event");
  world.room.state = "joining";
  world.socket.refuse(frame, "not_joined");
  await settled();
  assert.deepEqual(sent, {});
  await world.relink();
  resumed(world.socket);
  world.socket.reply(world.socket.only("event"), "ok");
  await settled();
  assert.equal(sent.value, "ok");
});

test("not_joined in a joined room is an answer", async () => {
  const { room, socket } = joined();
  const sent = outcome(room.send("message", 1));
  socket.refuse(socket.last("event"), "not_joined");
  await settled();
  assert.equal(sent.code, "not_joined");
});

test("leaving fails what waits, but what is under way still gets its answer", async () => {
  const { room, socket } = joined();
  const sent = [1, 2].map((value) => outcome(room.send("message", value)));
  const flying = socket.last("event");
  room.leave();
  await settled();
  assert.deepEqual(sent.map(({ code }) => code), [undefined, "left"]);
  socket.reply(flying, "ok");
  await settled();
  assert.equal(sent[0].value, "ok");
  const after = outcome(room.send("message", 3));
  await settled();
  assert.equal(after.code, "left");
  assert.match(after.error.message, /join it again/);
});

test("what is sent to a room that the server refused or ended says why", async () => {
  const world = start();
  world.socket.accept();
  const refused = world.client.join("nowhere");
  refused.on("rt:refused", () => {});
  const before = outcome(refused.send("message", 1));
  world.socket.refuse(world.socket.only("join"), { code: "unknown_room", message: "there is no such room" });
  const after = outcome(refused.send("message", 2));
  const { room, socket } = joined();
  socket.say({ type: "left", room: "chat", code: "banned" });
  const removed = outcome(room.send("message", 3));
  await settled();
  for (const { error } of [before, after]) {
    assert.equal(error.code, "unknown_room");
    assert.equal(error.message, "there is no such room");
  }
  assert.equal(removed.code, "banned");
  assert.match(removed.error.message, /the server removed this page from chat: banned/);
});

test("what was under way to a left room is uncertain when the link breaks, and not repeated", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  world.room.leave();
  world.socket.drop();
  await settled();
  assert.equal(sent.code, "uncertain");
});

test("what was under way to a left room is not repeated after a refusal", async () => {
  const world = joined();
  const sent = outcome(world.room.send("message", 1));
  world.room.leave();
  world.socket.refuse(world.socket.last("event"), limited(1));
  await settled();
  assert.equal(sent.code, "rate_limited");
});

test("what one user wrote is not sent in the name of another", async () => {
  const world = joined();
  const flying = outcome(world.room.send("message", 1));
  world.socket.drop();
  const queued = outcome(world.room.send("message", 2));
  await world.clock.advance(250);
  world.socket.accept({ user: "bob" });
  resumed(world.socket);
  await settled();
  assert.equal(flying.code, "uncertain");
  assert.equal(queued.code, "user_changed");
  assert.equal(world.socket.all("event").length, 0);
  assert.equal(world.client.user, "bob");
});

test("what the server would close for, or could not name, is refused before it is sent", async () => {
  const { client, socket } = start();
  socket.accept({ limits: { message_bytes: 200, rooms: 100 } });
  let deep = 0;
  for (let n = 0; n < 40; n++) deep = [deep];
  const shared = { a: 1 };
  const results = {
    large: "é".repeat(80),
    fits: "é".repeat(20),
    deep,
    nan: { a: [NaN] },
    infinite: -Infinity,
    integer: 2 ** 53 + 2,
    double: 1e300,
    half: "\ud83d",
    pair: "😀",
    key: { "\ud83d": 1 },
    shared: [shared, shared, [[shared]]],
  };
  for (const [name, data] of Object.entries(results)) {
    results[name] = outcome(client.send("x", data));
    const frame = socket.sent.at(-1);
    if (frame.type === "event") socket.reply(frame, "ok");
  }
  await settled();
  const codes = Object.fromEntries(Object.entries(results).map(([name, { code, value }]) => [name, code ?? value]));
  assert.deepEqual(codes, {
    large: "too_large", fits: "ok", deep: "invalid_payload", nan: "invalid_payload", infinite: "invalid_payload",
    integer: "invalid_payload", double: "ok", half: "invalid_payload", pair: "ok", key: "invalid_payload", shared: "ok",
  });
  assert.equal(client.state, "online");
});

const circle = () => {
  const around = { text: "round" };
  return Object.assign(around, { around });
};
const UNSAYABLE = {
  "a BigInt": [() => ({ n: 1n }), /BigInt: send a string/],
  "a circle": [circle, /circular/],
  "an object whose toJSON throws": [() => ({ toJSON: () => assert.fail("not today") }), /not today/],
};

for (const [what, [make, message]] of Object.entries(UNSAYABLE)) {
  test(`${what} is an invalid payload, and nothing else in the queue suffers`, async () => {
    const world = joined();
    const { client, room } = world;
    const sent = [room.send("message", 1), client.send("message", 2)].map(outcome);
    const bad = [
      ...[room.send("message", make()), client.send("message", make())],
      ...[room.history({ before: make() }), room.setStatus("away", make()), client.setStatus("away", make())],
    ].map(outcome);
    sent.push(outcome(room.send("message", 3)));
    for (const one of [client, room]) {
      assert.throws(() => one.sendVolatile("x", make()), { name: "RealtimeError", code: "invalid_payload", message });
    }
    await settled();
    for (const { error } of bad) {
      assert.deepEqual([error.name, error.code], ["RealtimeError", "invalid_payload"]);
      assert.match(error.message, message);
    }
    for (const n of [0, 1, 2]) world.socket.reply(world.socket.all("event")[n], n);
    await settled();
    assert.deepEqual(sent.map(({ value }) => value), [0, 1, 2]);
    assert.deepEqual(world.socket.all("event").map(({ data }) => data), [1, 2, 3]);
    assert.deepEqual([world.errors, client.state], [[], "online"]);
  });

  test(`${what} as meta refuses the room that it is for, and no other`, async () => {
    const world = joined();
    const bad = world.client.join("bad", { meta: make() });
    const ready = outcome(bad.ready);
    await settled();
    assert.deepEqual([bad.state, ready.code], ["refused", "invalid_payload"]);
    assert.match(bad.error.message, message);
    world.socket.drop();
    const offline = outcome(world.client.join("bad, too", { meta: make() }).ready);
    await world.clock.advance(250);
    world.socket.accept();
    resumed(world.socket);
    await settled();
    assert.equal(offline.code, "invalid_payload");
    assert.equal(world.room.state, "joined");
    assert.deepEqual(world.socket.all("join").map((frame) => frame.room), ["chat"]);
  });
}

test("a status that JSON can't say leaves the last one, the one that waits, and the next join", async () => {
  const world = joined();
  world.room.setStatus("away", { colour: "teal" });
  const waiting = outcome(world.room.setStatus("online"));
  const bad = outcome(world.room.setStatus("away", { n: 1n }));
  await settled();
  assert.equal(bad.code, "invalid_payload");
  assert.deepEqual(waiting, {});
  world.socket.reply(world.socket.last("status"));
  const { status, meta } = world.socket.last("status");
  assert.deepEqual({ status, meta }, { status: "online", meta: { colour: "teal" } });
  await world.relink();
  const join = world.socket.only("join");
  assert.deepEqual([join.status, join.meta], ["online", { colour: "teal" }]);
});

test("nothing is written to a socket that is closing, and what was queued goes out by the next one", async () => {
  const world = joined();
  const { client, room, socket } = world;
  const flying = outcome(room.send("message", 1));
  const before = socket.sent.length;
  socket.closing();
  const queued = [room.send("message", 2), client.send("message", 3)].map(outcome);
  assert.equal(room.sendVolatile("typing"), false);
  assert.equal(client.sendVolatile("cursor"), false);
  const other = client.join("other");
  client.join("gone").leave();
  const refresh = outcome(client.refresh());
  socket.say({ type: "ping" });
  await settled();
  assert.equal(socket.sent.length, before);
  socket.drop(4440, "slow_consumer");
  await settled();
  assert.equal(refresh.code, "disconnected");
  await world.clock.advance(99_000);
  world.socket.accept();
  resumed(world.socket);
  world.socket.reply(world.socket.only("join", "other"), { position: at(1) });
  assert.equal(other.state, "joined");
  await world.clock.advance(2_000);
  assert.equal(flying.code, "uncertain", "it was written 101 s ago");
  for (const event of world.socket.all("event")) world.socket.reply(event, event.data);
  for (const event of world.socket.all("event").slice(2)) world.socket.reply(event, event.data);
  await settled();
  assert.deepEqual(queued.map(({ value }) => value), [2, 3], "these were not");
});

test("something too large does not hold up what follows", async () => {
  const world = start();
  const large = outcome(world.client.send("x", "y".repeat(300)));
  const small = outcome(world.client.send("x", "z"));
  world.socket.accept({ limits: { message_bytes: 200, rooms: 100 } });
  world.socket.reply(world.socket.only("event"), "ok");
  await settled();
  assert.equal(large.code, "too_large");
  assert.equal(small.value, "ok");
});

test("volatile events go out now or never", () => {
  const { client, room, socket } = joined();
  assert.equal(room.sendVolatile("typing", { on: true }), true);
  assert.deepEqual(socket.sent.at(-1), { type: "event", room: "chat", event: "typing", data: { on: true } });
  assert.equal(client.sendVolatile("cursor"), true);
  assert.deepEqual(socket.sent.at(-1), { type: "event", event: "cursor" });
  socket.bufferedAmount = 70_000;
  assert.equal(room.sendVolatile("typing"), false, "a slow network");
  socket.drop();
  assert.equal(room.sendVolatile("typing"), false);
  assert.equal(client.sendVolatile("cursor"), false);
});

test("history is asked beside the messages, and repeated over a broken link", async () => {
  const world = joined();
  world.room.send("message", 1);
  const page = outcome(world.room.history({ before: at(9), limit: 20 }));
  const { id, ...frame } = world.socket.only("history");
  assert.deepEqual(frame, { type: "history", room: "chat", before: at(9), limit: 20 });
  await world.relink();
  resumed(world.socket);
  world.socket.reply(world.socket.only("history"), { events: [], more: false, truncated: true });
  await settled();
  assert.deepEqual(page.value, { events: [], more: false, truncated: true });
});

test("history gives up after the client's timeout", async () => {
  const { room, clock } = joined();
  const page = outcome(room.history());
  await clock.advance(10_000);
  assert.equal(page.code, "timeout");
});

test("a status is sent, kept for the next join, and only the newest waits", async () => {
  const world = joined();
  const first = outcome(world.room.setStatus("away", { typing: false }));
  const { id, ...frame } = world.socket.only("status");
  assert.deepEqual(frame, { type: "status", room: "chat", status: "away", meta: { typing: false } });
  const waiting = ["online", "away", "online"].map((status) => outcome(world.room.setStatus(status)));
  world.socket.reply({ id }, {});
  await settled();
  assert.ok("value" in first);
  assert.deepEqual(waiting.map((one) => "value" in one), [true, true, false]);
  assert.equal(world.socket.all("status").length, 2);
  assert.equal(world.socket.last("status").status, "online");
  await world.relink();
  assert.equal(world.socket.only("join").status, "online");
  assert.deepEqual(world.socket.only("join").meta, { typing: false });
});

test("statuses set offline do not fill the queue", async () => {
  const world = joined({ queue: 4 });
  world.socket.drop();
  for (let n = 0; n < 100; n++) world.room.setStatus(n % 2 ? "online" : "away");
  const sent = outcome(world.room.send("message", 1));
  await settled();
  assert.deepEqual(sent, {});
});

test("a state listener that sends keeps its place in the queue", async () => {
  const world = start();
  world.client.send("x", 1);
  world.client.on("rt:state", ({ state }) => state === "online" && world.client.send("x", 2));
  world.socket.accept();
  world.socket.reply(world.socket.last("event"));
  assert.deepEqual(world.socket.all("event").map(({ data }) => data), [1, 2]);
  assert.deepEqual(heard(world.client, "rt:error"), []);
});
