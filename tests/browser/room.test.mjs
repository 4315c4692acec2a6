/** Rooms: joining, resuming without gap or repetition, events, requests, and the ends of a stay. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { at, heard, joined, kept, outcome, settled, start } from "./support/fakes.mjs";

const data = (calls) => calls.map(([value]) => value);

test("a first join takes the position and tells ready", async () => {
  const { room, client } = joined();
  await room.ready;
  assert.equal(room.state, "joined");
  assert.deepEqual(room.position, at(1));
  assert.equal(client.join("chat"), room);
  assert.equal(client.room("chat"), room);
});

test("a first join is neither a recovery nor a reset", () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat");
  const told = [heard(room, "rt:reset"), heard(room, "rt:recovered")];
  socket.reply(socket.only("join"), { position: at(5), recovered: false, events: [] });
  assert.deepEqual(told, [[], []]);
});

test("events carry who, where and when", () => {
  const { room, socket } = joined();
  const messages = heard(room, "message");
  socket.say(kept(2));
  assert.deepEqual(messages, [
    [2, { from: { connection: "c2" }, position: at(2), at: 5, recovered: false, room: "chat", event: "message" }],
  ]);
  assert.deepEqual(room.position, at(2));
});

test("a kept event that was heard is not delivered again", () => {
  const { room, socket } = joined();
  const messages = heard(room, "message");
  for (const offset of [2, 2, 1, 3, 2]) socket.say(kept(offset));
  assert.deepEqual(data(messages), [2, 3]);
});

test("offsets of another epoch are another count", () => {
  const { room, socket } = joined({}, { reply: { position: at(9) } });
  const messages = heard(room, "message");
  socket.say(kept(1, { epoch: "f" }));
  socket.say(kept(1, { epoch: "f" }));
  assert.deepEqual(data(messages), [1]);
  assert.deepEqual(room.position, at(1, "f"));
});

test("a reply counts once", () => {
  const { room, socket } = joined();
  const resets = heard(room, "rt:reset");
  socket.reply(socket.only("join"), { position: at(7) });
  assert.deepEqual(resets, []);
  assert.deepEqual(room.position, at(1));
});

test("offsets may skip, since what this client sent to others only is not for it", () => {
  const { room, socket } = joined();
  const messages = heard(room, "message");
  for (const offset of [2, 5, 9]) socket.say(kept(offset));
  assert.deepEqual(data(messages), [2, 5, 9]);
});

test("volatile events are delivered as they come, and leave the position alone", () => {
  const { room, socket } = joined();
  const typing = heard(room, "typing");
  for (let turn = 0; turn < 2; turn++) socket.say({ type: "event", event: "typing", room: "chat", data: {}, at: 1 });
  assert.equal(typing.length, 2);
  assert.deepEqual(room.position, at(1));
});

test("a resume delivers what was missed, in order and once, and then says how much", async () => {
  const world = joined();
  const order = [];
  world.room.on("message", (value, { recovered }) => order.push([value, recovered]));
  world.room.on("rt:recovered", (told) => order.push(told));
  world.room.on("rt:reset", () => order.push("reset"));
  world.socket.say(kept(2));
  await world.relink();
  assert.deepEqual(world.socket.only("join").since, at(2));
  assert.equal(world.room.state, "joining");
  world.socket.reply(world.socket.only("join"), {
    recovered: true, position: at(6), events: [kept(2), kept(3), kept(5)],
  });
  world.socket.say(kept(6));
  world.socket.say(kept(7));
  assert.deepEqual(order, [[2, false], [3, true], [5, true], { count: 2 }, [7, false]]);
  assert.deepEqual(world.room.position, at(7));
});

test("while events are recovered, the position is that of the event in hand", async () => {
  const world = joined();
  const positions = [];
  world.room.on("message", () => positions.push(world.room.position.offset));
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(4), events: [kept(2), kept(3)] });
  assert.deepEqual(positions, [2, 3]);
  assert.deepEqual(world.room.position, at(4));
});

test("a resume with nothing missed is told, too", async () => {
  const world = joined();
  const recovered = heard(world.room, "rt:recovered");
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(1) });
  assert.deepEqual(recovered, [{ count: 0 }]);
});

test("a resume that failed adopts the new position and says reset with the reason", async () => {
  const world = joined();
  const resets = [];
  world.room.on("rt:reset", (told) => resets.push([told, world.room.position]));
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: false, reason: "trimmed", position: at(1, "new") });
  assert.deepEqual(resets, [[{ reason: "trimmed", position: at(1, "new") }, at(1, "new")]]);
  const messages = heard(world.room, "message");
  world.socket.say(kept(2, { epoch: "new" }));
  assert.deepEqual(data(messages), [2]);
});

test("a failed resume may step back within an epoch, and events count from there", async () => {
  const world = joined({}, { reply: { position: at(9) } });
  const messages = heard(world.room, "message");
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: false, reason: "rewound", position: at(4) });
  world.socket.say(kept(5));
  assert.deepEqual(data(messages), [5]);
});

test("events that come with a failed resume are delivered after the reset", async () => {
  const world = joined({}, { reply: { position: at(9) } });
  const order = [];
  world.room.on("message", (value) => order.push(value));
  world.room.on("rt:reset", () => order.push("reset"));
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: false, position: at(4), events: [kept(3), kept(4)] });
  assert.deepEqual(order, ["reset", 3, 4]);
  assert.deepEqual(world.room.position, at(4));
});

test("an ephemeral room is told of a reset after every broken link", async () => {
  const world = joined({}, { reply: {} });
  const resets = heard(world.room, "rt:reset");
  assert.equal(world.room.position, null);
  await world.relink();
  assert.ok(!("since" in world.socket.only("join")));
  assert.deepEqual(resets, []);
  world.socket.reply(world.socket.only("join"), {});
  assert.deepEqual(resets, [{ reason: "ephemeral", position: null }]);
});

test("a position that the app brings along is resumed from", () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat", { since: at(3) });
  const resets = heard(room, "rt:reset");
  const messages = heard(room, "message");
  assert.deepEqual(socket.only("join").since, at(3));
  socket.reply(socket.only("join"), { recovered: true, position: at(4), events: [kept(4)] });
  assert.deepEqual(data(messages), [4]);
  assert.deepEqual(resets, []);
});

test("a join whose reply was lost is a first join again", async () => {
  const world = start();
  world.socket.accept();
  const room = world.client.join("chat");
  const resets = heard(room, "rt:reset");
  await world.relink();
  world.socket.reply(world.socket.only("join"), { position: at(5) });
  assert.deepEqual(resets, []);
  assert.deepEqual(room.position, at(5));
});

test("a reset frame moves the position and is told", () => {
  const { room, socket } = joined();
  const resets = heard(room, "rt:reset");
  const messages = heard(room, "message");
  socket.say({ type: "reset", room: "chat", position: at(0, "f"), reason: "lost" });
  socket.say(kept(1, { epoch: "f" }));
  assert.deepEqual(resets, [{ reason: "lost", position: at(0, "f") }]);
  assert.deepEqual(data(messages), [1]);
  socket.say({ type: "reset", room: "chat", reason: "ephemeral" });
  assert.equal(room.position, null);
});

test("nothing is delivered before the join's reply or after leaving", () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat");
  const messages = heard(room, "message");
  socket.say(kept(1));
  socket.reply(socket.only("join"), { position: at(1) });
  room.leave();
  socket.say(kept(2));
  assert.deepEqual(messages, []);
  assert.equal(room.state, "left");
  assert.equal(socket.all("leave", "chat").length, 1);
  assert.equal(client.room("chat"), undefined);
});

test("leaving and joining again at once makes a new stay, unharmed by answers to the old one", () => {
  const { client, socket } = start();
  socket.accept();
  const old = client.join("chat");
  old.leave();
  const room = client.join("chat");
  assert.notEqual(room, old);
  const [first, second] = socket.all("join", "chat");
  const messages = heard(room, "message");
  socket.reply(first, { position: at(1) });
  assert.equal(room.state, "joining");
  socket.say(kept(2));
  socket.say({ type: "left", room: "chat", code: "forbidden" });
  socket.reply(second, { position: at(2) });
  socket.say(kept(3));
  assert.deepEqual(data(messages), [3]);
  assert.equal(old.state, "left");
});

test("a listener that leaves stops the delivery of what was recovered", async () => {
  const world = joined();
  const seen = [];
  world.room.on("message", (value) => {
    seen.push(value);
    world.room.leave();
  });
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(4), events: [kept(2), kept(3)] });
  assert.deepEqual(seen, [2]);
  assert.equal(world.room.state, "left");
});

test("a refused join rejects ready, tells the room, and can be tried again", async () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat");
  const refused = heard(room, "rt:refused");
  const sent = outcome(room.send("message", 1));
  socket.refuse(socket.only("join"), { code: "forbidden", message: "members only" });
  await assert.rejects(room.ready, { name: "RealtimeError", code: "forbidden", message: "members only" });
  assert.equal(room.state, "refused");
  assert.equal(refused[0].code, "forbidden");
  assert.equal(sent.code, "forbidden");
  assert.notEqual(client.join("chat"), room);
  assert.equal(socket.all("join").length, 2);
});

test("a refusal that nobody would hear of is a warning on the console, once", async () => {
  const warned = [];
  const { warn } = console;
  console.warn = (text) => warned.push(text);
  try {
    const { client, socket } = start();
    socket.accept();
    const refuse = (name) => socket.refuse(socket.only("join", name), { code: "forbidden", message: "members only" });
    client.join("awaited").ready.catch(() => {});
    client.join("heard").on("rt:refused", () => {});
    client.join("unheard");
    for (const name of ["awaited", "heard", "unheard"]) refuse(name);
    await settled();
    assert.deepEqual(warned, ["unheard was refused (forbidden): members only"]);
  } finally {
    console.warn = warn;
  }
});

test("a join that is unavailable or over the rate is tried again, with the same position", async () => {
  const world = joined();
  await world.relink();
  world.socket.refuse(world.socket.only("join"), "unavailable");
  await world.clock.advance(250);
  assert.equal(world.socket.all("join").length, 2);
  world.socket.refuse(world.socket.last("join"), { code: "rate_limited", message: "", retry_after: 4 });
  await world.clock.advance(3_999);
  assert.equal(world.socket.all("join").length, 2);
  await world.clock.advance(1);
  assert.deepEqual(world.socket.last("join").since, at(1));
  assert.equal(world.room.state, "joining");
});

test("a repetition of a join does not outlive its link or its room", async () => {
  const world = joined();
  await world.relink();
  world.socket.refuse(world.socket.only("join"), "unavailable");
  await world.relink();
  await world.clock.advance(10_000);
  assert.equal(world.socket.all("join").length, 1);
  world.socket.refuse(world.socket.only("join"), "unavailable");
  world.room.leave();
  await world.clock.advance(10_000);
  assert.equal(world.socket.all("join").length, 1);
});

test("a meta that cannot be sent refuses the room instead of ending the connection", async () => {
  const { client, socket } = start();
  socket.accept({ limits: { message_bytes: 1000, rooms: 100 } });
  const room = client.join("chat", { meta: "x".repeat(2000) });
  await assert.rejects(room.ready, { code: "too_large" });
  assert.equal(socket.all("join").length, 0);
  assert.equal(client.state, "online");
});

test("a room left by the server's will is told, and not joined again", async () => {
  const world = joined();
  const left = heard(world.room, "rt:left");
  world.socket.say({ type: "left", room: "chat", code: "forbidden" });
  assert.deepEqual(left, [{ code: "forbidden" }]);
  assert.equal(world.room.state, "left");
  await world.relink();
  assert.equal(world.socket.all("join").length, 0);
});

test("stale and fresh reach a room, or all of them and the client", () => {
  const { client, socket, room } = joined();
  socket.say({ type: "joined", room: "user:ann", position: at(1) });
  const told = [];
  client.on("rt:stale", () => told.push("client stale"));
  client.on("rt:fresh", () => told.push("client fresh"));
  room.on("rt:stale", () => told.push("room stale"));
  room.on("rt:fresh", () => told.push("room fresh"));
  socket.say({ type: "stale", room: "chat" });
  socket.say({ type: "stale" });
  assert.ok(room.stale);
  socket.say({ type: "fresh" });
  assert.deepEqual(told, ["room stale", "client stale", "client fresh", "room fresh"]);
  assert.ok(!room.stale);
});

test("a link that breaks while the store is away doesn't leave a room stale for ever", async () => {
  const world = joined();
  const told = heard(world.room, "rt:fresh");
  world.socket.say({ type: "stale", room: "chat" });
  await world.relink();
  assert.ok(world.room.stale);
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(1) });
  assert.equal(world.room.stale, false);
  assert.equal(told.length, 1);
});

test("a room says when it is joined, and again after each break, behind what was missed", async () => {
  const world = start();
  world.socket.accept();
  const room = world.client.join("chat");
  const told = [];
  room.on("rt:joined", ({ recovered }) => told.push(recovered));
  room.on("message", (data) => told.push(data));
  world.socket.reply(world.socket.only("join"), { position: at(1), recovered: false });
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(2), events: [kept(2)] });
  await world.relink();
  world.socket.reply(world.socket.only("join"), { recovered: false, reason: "expired", position: at(9) });
  assert.deepEqual(told, [false, 2, true, false]);
});

test("a listener that leaves while it hears what was missed is not told that the room is joined", () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat", { since: at(1) });
  const told = heard(room, "rt:joined");
  room.on("rt:recovered", () => room.leave());
  socket.reply(socket.only("join"), { recovered: true, position: at(2), events: [kept(2)] });
  assert.equal(room.state, "left");
  assert.deepEqual(told, []);
});

test("the client's status is that of all its rooms", async () => {
  const { client, socket, room } = joined();
  const other = client.join("other");
  const done = outcome(client.setStatus("away", { colour: "teal" }));
  assert.deepEqual(socket.only("status").room, "chat");
  socket.reply(socket.only("join", "other"), { position: at(1) });
  for (const name of ["chat", "other"]) {
    const { status, meta } = socket.only("status", name);
    assert.deepEqual({ status, meta }, { status: "away", meta: { colour: "teal" } });
    socket.reply(socket.only("status", name));
  }
  await settled();
  assert.ok("value" in done);
  assert.deepEqual([room.self, other.self], [room.self, room.self]);
});

test("an event without a room is the client's", () => {
  const { client, socket } = start();
  socket.accept();
  const news = heard(client, "news");
  socket.say({ type: "event", event: "news", data: 1, at: 2 });
  assert.equal(news[0][0], 1);
  assert.equal(news[0][1].room, undefined);
});

test("the user room speaks through the client, once, and resumes with auth", async () => {
  const world = start();
  const rooms = heard(world.client, "rt:joined");
  const notes = heard(world.client, "note");
  const recovered = heard(world.client, "rt:recovered");
  const resets = heard(world.client, "rt:reset");
  world.socket.accept();
  world.socket.say({ type: "joined", room: "user:ann", position: at(3) });
  const note = (offset) => kept(offset, { room: "user:ann", event: "note" });
  world.socket.say(note(4));
  world.socket.say(note(4));
  assert.deepEqual(rooms.map(({ name, state }) => [name, state]), [["user:ann", "joined"]]);
  assert.deepEqual(data(notes), [4]);
  await world.relink();
  assert.deepEqual(world.socket.only("auth").since, { "user:ann": at(4) });
  assert.equal(world.socket.all("join").length, 0);
  world.socket.say({ type: "joined", room: "user:ann", recovered: true, position: at(6), events: [note(5), note(6)] });
  assert.deepEqual(data(notes), [4, 5, 6]);
  assert.deepEqual(recovered, [{ count: 2 }]);
  await world.relink();
  world.socket.say({ type: "joined", room: "user:ann", recovered: false, reason: "trimmed", position: at(1, "f") });
  assert.deepEqual(resets, [{ reason: "trimmed", position: at(1, "f") }]);
  assert.equal(rooms.length, 1);
});

test("a room that the server joined is a room like others, and ends when it is not joined again", async () => {
  const world = start();
  world.socket.accept();
  world.socket.say({ type: "joined", room: "lobby", position: at(1) });
  const room = world.client.room("lobby");
  assert.equal(world.client.join("lobby"), room);
  const left = heard(room, "rt:left");
  const sent = outcome(room.send("message", 1));
  world.socket.reply(world.socket.only("event"), "ok");
  await settled();
  assert.equal(sent.value, "ok");
  await world.relink();
  const waiting = outcome(room.send("message", 2));
  await world.clock.advance(9_999);
  assert.deepEqual(left, []);
  await world.clock.advance(1);
  assert.deepEqual(left, [{ code: "not_joined" }]);
  assert.equal(waiting.code, "not_joined");
});

test("a room that the server says it did not join again ends at once", async () => {
  const world = start();
  world.socket.accept();
  world.socket.say({ type: "joined", room: "lobby", position: at(1) });
  const left = heard(world.client.room("lobby"), "rt:left");
  await world.relink();
  world.socket.say({ type: "left", room: "lobby", code: "not_joined" });
  assert.deepEqual(left, [{ code: "not_joined" }]);
  assert.equal(world.client.room("lobby"), undefined);
});

test("being told of a room twice changes nothing", () => {
  const world = start();
  world.socket.accept();
  const rooms = heard(world.client, "rt:joined");
  world.socket.say({ type: "joined", room: "lobby", position: at(1) });
  const resets = heard(rooms[0], "rt:reset");
  world.socket.say({ type: "joined", room: "lobby", position: at(5) });
  assert.equal(rooms.length, 1);
  assert.deepEqual(resets, []);
  assert.deepEqual(rooms[0].position, at(1));
});

test("a room that both joined is resumed by its join", async () => {
  const world = joined();
  const resets = heard(world.room, "rt:reset");
  const messages = heard(world.room, "message");
  await world.relink();
  world.socket.say({ type: "joined", room: "chat", position: at(5) });
  world.socket.say(kept(6));
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(6), events: [kept(5), kept(6)] });
  assert.deepEqual(resets, []);
  assert.deepEqual(data(messages), [5, 6]);
});

test("only so many positions go with auth as the server takes", async () => {
  const world = start();
  world.socket.accept();
  for (let n = 0; n < 150; n++) world.socket.say({ type: "joined", room: `r${n}`, position: at(1) });
  await world.relink();
  assert.equal(Object.keys(world.socket.only("auth").since).length, 100);
});

test("a request of the server gets what the first listener returns", async () => {
  const { client, room, socket } = joined();
  room.on("ask", async (value) => value + 1);
  room.on("ask", () => "ignored");
  client.on("who", () => undefined);
  socket.say({ type: "event", event: "ask", room: "chat", data: 1, id: 7 });
  socket.say({ type: "event", event: "who", data: 1, id: 8 });
  await settled();
  assert.deepEqual(socket.all("reply").sort((a, b) => a.id - b.id), [
    { type: "reply", id: 7, data: 2 },
    { type: "reply", id: 8, data: null },
  ]);
});

test("a request that nobody listens for, or whose listener fails, is answered so", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const { room, socket } = joined();
    room.on("ask", () => {
      throw new Error("secret");
    });
    room.on("later", async () => Promise.reject(new Error("later")));
    room.on("bad", () => NaN);
    for (const [id, event] of ["none", "ask", "later", "bad"].entries()) {
      socket.say({ type: "event", event, room: "chat", data: 1, id });
    }
    await settled();
    const codes = new Map(socket.all("reply").map(({ id, error }) => [id, error.code]));
    assert.deepEqual([...codes].sort(), [[0, "unknown_event"], [1, "internal"], [2, "internal"], [3, "internal"]]);
    assert.ok(!JSON.stringify(socket.all("reply")).includes("secret"));
    assert.match(socket.all("reply")[0].error.message, /no listener for none/);
    assert.deepEqual([reported[0], reported[2]], ["secret", "later"]);
    assert.match(reported[1], /NaN/);
  } finally {
    delete globalThis.reportError;
  }
});

test("a reply never goes to another link than the request came from", async () => {
  const world = joined();
  let answer;
  world.room.on("ask", () => new Promise((resolve) => (answer = resolve)));
  world.socket.say({ type: "event", event: "ask", room: "chat", data: 1, id: 7 });
  await world.relink();
  answer(1);
  await settled();
  assert.equal(world.socket.all("reply").length, 0);
});

test("a listener that throws is reported and harms nobody else", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const { room, socket, client } = joined();
    room.on("message", () => {
      throw new Error("mine");
    });
    const messages = heard(room, "message");
    socket.say(kept(2));
    socket.say(kept(3));
    await settled();
    assert.deepEqual(data(messages), [2, 3]);
    assert.deepEqual(reported, ["mine", "mine"]);
    assert.equal(client.state, "online");
  } finally {
    delete globalThis.reportError;
  }
});

test("without the browser's reportError, the console tells", async () => {
  const logged = [];
  const { error } = console;
  console.error = (one) => logged.push(one.message);
  try {
    const { room, socket } = joined();
    room.on("message", () => Promise.reject(new Error("mine")));
    socket.say(kept(2));
    await settled();
    assert.deepEqual(logged, ["mine"]);
  } finally {
    console.error = error;
  }
});

test("on gives back what takes the listener off", () => {
  const { room, socket } = joined();
  const seen = [];
  const off = room.on("message", (value) => seen.push(value));
  socket.say(kept(2));
  off();
  off();
  socket.say(kept(3));
  assert.deepEqual(seen, [2]);
});
