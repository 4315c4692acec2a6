/** Opening, authentication, heartbeat, and when a link counts as dead. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { at, heard, joined, kept, outcome, settled, start } from "./support/fakes.mjs";

test("an address becomes the websocket below it, with the subprotocol", () => {
  for (const [url, expected] of [
    ["https://example.com/realtime", "wss://example.com/realtime/ws"],
    ["http://example.com:8000/realtime/", "ws://example.com:8000/realtime/ws"],
    ["wss://example.com/realtime?ticket=1#top", "wss://example.com/realtime/ws?ticket=1"],
  ]) {
    const { socket } = start({}, url);
    assert.equal(socket.url, expected);
    assert.equal(socket.protocol, "starlette-realtime.v1.json");
  }
});

test("a relative address belongs to the page", () => {
  globalThis.location = { href: "https://example.com/app/index.html" };
  try {
    assert.equal(start({}, "/realtime").socket.url, "wss://example.com/realtime/ws");
  } finally {
    delete globalThis.location;
  }
});

test("auth is the first command, and joins follow its reply without waiting for each other", () => {
  const { client, socket } = start();
  client.join("a");
  client.join("b", { meta: { avatar: 1 }, status: "away", since: at(7) });
  assert.equal(client.state, "connecting");
  socket.open();
  socket.welcome({ connection: "c9" });
  assert.deepEqual(socket.sent, [{ id: 1, type: "auth", since: {} }]);
  socket.reply(socket.only("auth"), { user: "ann", expires_in: 600, session: "s1" });
  assert.deepEqual(socket.sent.slice(1), [
    { id: 2, type: "join", room: "a" },
    { id: 3, type: "join", room: "b", since: at(7), meta: { avatar: 1 }, status: "away" },
  ]);
  assert.equal(client.state, "online");
  assert.equal(client.user, "ann");
  assert.equal(client.connection, "c9");
});

test("the token is asked for before the socket opens, and before each one", async () => {
  let count = 0;
  const world = start({ token: async () => `t${++count}` });
  assert.equal(world.sockets.length, 0);
  await settled();
  world.socket.accept();
  assert.equal(world.socket.only("auth").token, "t1");
  await world.relink();
  assert.equal(world.socket.only("auth").token, "t2");
});

test("a token of null is no token", async () => {
  const world = start({ token: () => null });
  await settled();
  world.socket.accept();
  assert.ok(!("token" in world.socket.only("auth")));
});

test("a token callback that fails or hangs is told, and tried again", async () => {
  const answers = [() => Promise.reject(new Error("no network")), () => new Promise(() => {}), () => "t"];
  const world = start({ token: () => answers.shift()() });
  await settled();
  assert.equal(world.client.state, "waiting");
  assert.deepEqual(world.errors.map((error) => error.code), ["token_failed"]);
  assert.match(world.errors[0].message, /no network/);
  await world.clock.advance(250);
  assert.equal(world.client.state, "connecting");
  await world.clock.advance(10_000);
  assert.deepEqual(world.errors.map((error) => error.code), ["token_failed", "token_timeout"]);
  await world.clock.advance(500);
  assert.equal(world.sockets.length, 1);
});

test("what the token function returns by mistake is not sent, and the error says what it is", async () => {
  const answers = [new Response("t"), Promise.resolve(new Response("t")), 7, () => "t", true, undefined, "t"];
  const world = start({ token: () => answers.shift() });
  for (let n = 0; n < 5; n++) {
    await settled();
    assert.deepEqual([world.client.state, world.sockets.length], ["waiting", 0]);
    await world.clock.advance(world.client.retryIn);
  }
  const object = "the token function returned an object, not a string: await response.text()?";
  const other = (kind) => `the token function returned a ${kind}, not a string`;
  assert.deepEqual(
    world.errors.map(({ message }) => message),
    [object, object, ...["number", "function", "boolean"].map(other)],
  );
  for (const { name, code } of world.errors) assert.deepEqual([name, code], ["RealtimeError", "token_failed"]);
  await settled();
  world.socket.accept();
  assert.ok(!("token" in world.socket.only("auth")), "undefined is none");
  await world.relink();
  assert.equal(world.socket.only("auth").token, "t");
});

test("a token that is none fails a refresh, and the link goes on", async () => {
  const answers = ["t", {}];
  const world = start({ token: () => answers.shift() });
  await settled();
  world.socket.accept();
  const refresh = outcome(world.client.refresh());
  await settled();
  assert.equal(refresh.code, "token_failed");
  assert.equal(world.socket.all("auth").length, 1);
  assert.equal(world.client.state, "online");
});

test("the session of the last reply goes with the next auth", async () => {
  const world = start();
  world.socket.accept({ session: "first" });
  await world.relink({ session: "second" });
  assert.equal(world.socket.only("auth").session, "first");
  await world.relink();
  assert.equal(world.socket.only("auth").session, "second");
});

test("a ping is answered with a pong", () => {
  const { socket } = start();
  socket.accept();
  socket.say({ type: "ping" });
  assert.deepEqual(socket.sent.at(-1), { type: "pong" });
});

test("a link that is silent for the heartbeat and 15 s is given up at once", async () => {
  const world = start();
  world.socket.accept({ heartbeat: 20 });
  const first = world.socket;
  await world.clock.advance(30_000);
  first.say({ type: "ping" });
  await world.clock.advance(34_999);
  assert.equal(world.client.state, "online");
  await world.clock.advance(1);
  assert.equal(world.client.state, "waiting");
  assert.ok(first.closed);
  assert.deepEqual(world.states.at(-1).reason, "silent");
  assert.equal(world.clock.timers, 1, "nothing but the next try");
});

test("where the server sends no pings, silence does not end the link", async () => {
  for (const heartbeat of [0, undefined]) {
    const world = start();
    world.socket.open();
    world.socket.say({ type: "welcome", connection: "c", heartbeat, limits: {}, server: "test" });
    await world.clock.advance(14_999);
    world.socket.reply(world.socket.only("auth"), { user: "ann", expires_in: 600, session: "s" });
    await world.clock.advance(86_400_000);
    assert.equal(world.client.state, "online");
    assert.equal(world.clock.timers, 0, "nobody watches for what can't be seen");
  }
});

test("where the server sends no pings, an auth without an answer is given up after 15 s all the same", async () => {
  const world = start();
  world.socket.open();
  world.socket.welcome({ heartbeat: 0 });
  await world.clock.advance(14_999);
  assert.equal(world.client.state, "connecting");
  await world.clock.advance(1);
  assert.equal(world.states.at(-1).reason, "silent");
});

test("what a given-up socket still says is not heard", async () => {
  const { room, socket, clock, client } = joined();
  const messages = heard(room, "message");
  const late = socket.onmessage;
  await clock.advance(40_000);
  assert.equal(client.state, "waiting");
  assert.equal(socket.onmessage, null);
  assert.equal(socket.onclose, null);
  assert.ok(late);
  socket.say(kept(2));
  assert.deepEqual(messages, []);
});

test("an opening that gets no answer is given up after 15 s, whatever else arrives", async () => {
  const world = start();
  await world.clock.advance(15_000);
  assert.equal(world.client.state, "waiting");
  await world.clock.advance(250);
  world.socket.open();
  world.socket.welcome();
  await world.clock.advance(14_000);
  world.socket.say({ type: "ping" });
  assert.equal(world.client.state, "connecting");
  await world.clock.advance(1_000);
  assert.equal(world.client.state, "waiting");
});

test("a frame that cannot be read ends the link, since it may have been an event", async () => {
  const world = joined();
  world.socket.garble('{"type":"event","eve');
  assert.equal(world.client.state, "waiting");
  await world.clock.advance(250);
  world.socket.accept();
  assert.deepEqual(world.socket.only("join").since, at(1));
});

test("frames of an unknown type are ignored", () => {
  const { socket, client } = start();
  socket.accept();
  socket.say({ type: "news" });
  assert.equal(client.state, "online");
});

test("a socket that cannot even be made is tried again", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const world = start({
      WebSocket: class {
        constructor() {
          throw new Error("mixed content");
        }
      },
    });
    assert.equal(world.client.state, "waiting");
    assert.deepEqual(reported, ["mixed content"]);
    world.client.close();
  } finally {
    delete globalThis.reportError;
  }
});

test("an error without an id is told to the app", () => {
  const { socket, errors } = start();
  socket.accept();
  socket.say({ type: "error", code: "rate_limited", message: "slow down", retry_after: 2 });
  assert.equal(errors[0].code, "rate_limited");
  assert.equal(errors[0].message, "slow down");
  assert.equal(errors[0].retryAfter, 2);
});

test("an error that nobody listens for is a warning on the console", () => {
  const warned = [];
  const { warn } = console;
  console.warn = (error) => warned.push(error.code);
  try {
    const { socket, deaf } = start();
    deaf();
    socket.accept();
    socket.say({ type: "error", code: "bad_frame", message: "" });
    assert.deepEqual(warned, ["bad_frame"]);
  } finally {
    console.warn = warn;
  }
});

test("expiring refreshes in band and keeps the new session", async () => {
  let count = 0;
  const world = start({ token: () => `t${++count}` });
  await settled();
  world.socket.accept({ session: "s1" });
  world.socket.say({ type: "expiring", expires_in: 25 });
  await settled();
  const refresh = world.socket.last("auth");
  assert.equal(refresh.token, "t2");
  assert.equal(refresh.session, "s1");
  world.socket.reply(refresh, { user: "ann", expires_in: 600, session: "s2" });
  assert.equal(world.client.state, "online");
  assert.equal(world.sockets.length, 1);
  await world.relink();
  assert.equal(world.socket.only("auth").session, "s2");
});

test("a refresh that fails is told, and the link lives until the server closes it", async () => {
  const answers = ["t1", "bad", "t3"];
  const world = start({ token: () => answers.shift() });
  await settled();
  world.socket.accept();
  world.socket.say({ type: "expiring", expires_in: 25 });
  await settled();
  world.socket.refuse(world.socket.last("auth"), "unauthenticated");
  await settled();
  assert.equal(world.client.state, "online");
  assert.deepEqual(world.errors.map((error) => error.code), ["unauthenticated"]);
  world.socket.drop(4401, "expired");
  await world.clock.advance(250);
  world.socket.accept();
  assert.equal(world.socket.only("auth").token, "t3");
  assert.equal(world.client.state, "online");
});

test("a token callback that fails at expiring is asked again until it works", async () => {
  const answers = ["t1", null, null, "t4"];
  const fail = () => Promise.reject(new Error("no network"));
  const world = start({ token: () => answers.shift() ?? fail() });
  await settled();
  world.socket.accept();
  world.socket.say({ type: "expiring", expires_in: 25 });
  await settled();
  await world.clock.advance(249);
  assert.equal(answers.length, 2);
  await world.clock.advance(1 + 500);
  assert.deepEqual(world.errors.map(({ code }) => code), ["token_failed", "token_failed"]);
  assert.equal(world.socket.last("auth").token, "t4");
  world.socket.reply(world.socket.last("auth"), { user: "ann", expires_in: 600, session: "s2" });
  await world.clock.advance(20_000);
  assert.equal(answers.length, 0);
  assert.equal(world.socket.all("auth").length, 2);
});

test("a token callback is not asked on behalf of a link that has ended", async () => {
  let asked = 0;
  const world = start({ token: () => (asked++ ? Promise.reject(new Error("no network")) : "t1") });
  await settled();
  world.socket.accept();
  world.socket.say({ type: "expiring", expires_in: 25 });
  await settled();
  assert.equal(asked, 2);
  world.client.close();
  await world.clock.advance(60_000);
  assert.equal(asked, 2);
});

test("a refresh whose link breaks while the token is fetched is told so", async () => {
  const gives = [];
  const world = start({ token: () => new Promise((resolve) => gives.push(resolve)) });
  gives[0]("t1");
  await settled();
  world.socket.accept();
  const refresh = outcome(world.client.refresh());
  world.socket.drop();
  gives[1]("t2");
  await settled();
  assert.equal(refresh.code, "disconnected");
});

test("a token that is no function is refused at once", () => {
  assert.throws(() => start({ token: "abc" }), { name: "TypeError", message: /token is a function/ });
});

test("refresh tells its caller how it went", async () => {
  const world = start({ token: () => "t" });
  await settled();
  world.socket.accept();
  const good = outcome(world.client.refresh());
  await settled();
  world.socket.reply(world.socket.last("auth"), { user: "ann", expires_in: 600, session: "s" });
  await settled();
  assert.ok("value" in good);
  const bad = outcome(world.client.refresh());
  await settled();
  world.socket.refuse(world.socket.last("auth"), "forbidden");
  await settled();
  assert.equal(bad.code, "forbidden");
  const lost = outcome(world.client.refresh());
  await settled();
  world.socket.drop();
  await settled();
  assert.equal(lost.code, "disconnected");
  const offline = outcome(world.client.refresh());
  await settled();
  assert.ok("value" in offline);
});
