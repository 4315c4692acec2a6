/** Close codes, backoff, draining, several addresses, and the end. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { CLOSE_CODES } from "../../starlette_realtime/browser/client.js";
import { heard, joined, outcome, settled, start } from "./support/fakes.mjs";

for (const { code, name, reconnect } of Object.values(CLOSE_CODES)) {
  test(`close ${code} (${name}): reconnect ${reconnect}`, () => {
    const { client, socket, states, errors } = start();
    socket.accept();
    socket.drop(code, name);
    if (reconnect === "no") {
      assert.equal(client.state, "closed");
      const message = client.closed.message;
      assert.deepEqual(client.closed, { code, name, reason: name, message });
      assert.deepEqual(states.at(-1), { state: "closed", code, reason: name, message });
      assert.equal(errors.at(-1).code, name, "a final close is told, even where the server did not say why");
    } else {
      assert.deepEqual(states.at(-1), { state: "waiting", code, reason: name, retryIn: 250 });
      assert.equal(client.closed, null);
    }
  });
}

test("a lost connection, and a code that nobody knows, are tried again", async () => {
  for (const code of [1006, 1000, 3999, 4999]) {
    const world = start();
    world.socket.accept();
    world.socket.drop(code, "");
    assert.equal(world.client.state, "waiting");
    assert.equal(world.states.at(-1).reason, "connection_lost");
    await world.clock.advance(250);
    assert.equal(world.sockets.length, 2);
  }
});

test("an address at which nothing answers is told once, after three tries, and tried on", async () => {
  const world = start({}, "https://ann:secret@example.com:8443/rt?ticket=1");
  for (let attempt = 0; attempt < 12; attempt++) {
    assert.equal(world.errors.length, attempt < 3 ? 0 : 1);
    world.socket.drop();
    assert.equal(world.client.state, "waiting");
    await world.clock.advance(world.client.retryIn);
  }
  const [{ name, code, message }] = world.errors;
  assert.deepEqual([name, code], ["RealtimeError", "unreachable"]);
  assert.equal(
    message,
    "nothing answers at wss://example.com:8443/rt/ws: is the server running, and the kit mounted there?",
  );
  world.socket.accept();
  assert.equal(world.client.state, "online");
});

test("something at the address that never says welcome is no answer", async () => {
  const world = start();
  for (let attempt = 0; attempt < 3; attempt++) {
    world.socket.open();
    await world.clock.advance(15_000);
    assert.equal(world.states.at(-1).reason, "silent");
    await world.clock.advance(world.client.retryIn);
  }
  assert.deepEqual(world.errors.map(({ code }) => code), ["unreachable"]);
});

test("of several addresses each is tried before they are told, all of them", async () => {
  const world = start({}, ["a", "b", "c", "d"].map((host) => `https://${host}.example/rt`));
  for (let attempt = 0; attempt < 4; attempt++) {
    assert.deepEqual(world.errors, []);
    world.socket.drop();
    await world.clock.advance(world.client.retryIn);
  }
  assert.match(world.errors[0].message, /wss:\/\/a\.example\/rt\/ws, .*wss:\/\/d\.example\/rt\/ws:/);
});

const ANSWERS = {
  "was online": (socket) => (socket.accept(), socket.drop()),
  "said welcome": (socket) => (socket.open(), socket.welcome(), socket.drop()),
  "closed with a code of its own": (socket) => socket.drop(1013, "unavailable"),
};
for (const [what, answer] of Object.entries(ANSWERS)) {
  test(`a server that ${what} is known to be there, however long it is away then`, async () => {
    const world = start();
    world.socket.drop();
    await world.clock.advance(250);
    answer(world.socket);
    for (let attempt = 0; attempt < 6; attempt++) {
      await world.clock.advance(world.client.retryIn);
      world.socket.drop();
    }
    assert.deepEqual(world.errors, []);
  });
}

test("a token function that fails says nothing about the address", async () => {
  const world = start({ token: () => Promise.reject(new Error("no network")) });
  for (let attempt = 0; attempt < 6; attempt++) await world.clock.advance(world.client.retryIn ?? 0);
  assert.deepEqual([...new Set(world.errors.map(({ code }) => code))], ["token_failed"]);
});

test("retry ends the waiting, once, and does nothing otherwise", async () => {
  const world = start();
  world.client.retry();
  assert.equal(world.sockets.length, 1, "connecting");
  world.socket.drop();
  world.client.retry();
  assert.equal(world.client.state, "connecting");
  world.client.retry();
  await world.clock.advance(1_000);
  assert.equal(world.sockets.length, 2, "one connection at a time");
  world.socket.accept();
  world.client.retry();
  assert.equal(world.client.state, "online");
  world.socket.drop();
  assert.equal(world.client.retryIn, 500, "each try counts for the backoff");
  world.client.close();
  world.client.retry();
  await world.clock.advance(1_000);
  assert.deepEqual([world.sockets.length, world.client.state], [2, "closed"]);
});

test("retry does not come earlier than the server asked for", async () => {
  const world = start();
  world.socket.accept();
  world.socket.drop(4429, "rate_limited;12.5");
  await world.clock.advance(13_749);
  world.client.retry();
  assert.deepEqual([world.client.state, world.sockets.length], ["waiting", 1]);
  await world.clock.advance(1);
  assert.equal(world.sockets.length, 2);
});

test("the backoff doubles up to its bound, with full jitter", async () => {
  const world = start();
  const waits = [];
  world.chance.value = 0.999;
  for (let attempt = 0; attempt < 9; attempt++) {
    world.socket.drop();
    waits.push(Math.round(world.states.at(-1).retryIn / 0.999));
    await world.clock.advance(world.states.at(-1).retryIn);
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000, 20000]);
  world.chance.value = 0;
  world.socket.drop();
  assert.equal(world.states.at(-1).retryIn, 0);
  assert.equal(world.client.retryIn, 0);
  await world.clock.advance(0);
  assert.equal(world.client.retryIn, null, "while it connects it waits for nothing");
});

test("a server that accepts and drops at once is not hammered", async () => {
  const world = start();
  const waits = [];
  for (let attempt = 0; attempt < 4; attempt++) {
    world.socket.accept();
    await world.clock.advance(9_999);
    world.socket.drop();
    waits.push(world.states.at(-1).retryIn);
    await world.clock.advance(waits.at(-1));
  }
  assert.deepEqual(waits, [250, 500, 1000, 2000]);
});

test("a link that held for 10 s starts the backoff over", async () => {
  const world = start();
  for (let attempt = 0; attempt < 3; attempt++) {
    world.socket.accept();
    await world.clock.advance(10_000);
    world.socket.drop();
    assert.equal(world.states.at(-1).retryIn, 250);
    assert.equal(world.clock.timers, 1, "nothing of the old link is left but the next try");
    await world.clock.advance(250);
  }
});

test("4401 gets one new token; a second refusal without an auth between them is final", async () => {
  let count = 0;
  const world = start({ token: () => `t${++count}` });
  await settled();
  world.socket.accept();
  world.socket.drop(4401, "expired");
  await world.clock.advance(250);
  world.socket.open();
  assert.equal(world.socket.only("auth").token, "t2");
  world.socket.drop(4401, "unauthenticated");
  assert.equal(world.client.closed.code, 4401);
  assert.equal(world.client.closed.reason, "unauthenticated");
  assert.equal(count, 2);
});

test("an auth between two 4401 makes the second one a first one", async () => {
  const world = start();
  for (let round = 0; round < 3; round++) {
    world.socket.accept();
    world.socket.drop(4401, "expired");
    assert.equal(world.client.state, "waiting");
    await world.clock.advance(20_000);
  }
});

test("a lost link between two 4401 does not hide that the first token was refused", async () => {
  const world = start();
  world.socket.open();
  world.socket.drop(4401, "unauthenticated");
  await world.clock.advance(20_000);
  world.socket.drop(1006, "");
  await world.clock.advance(20_000);
  world.socket.open();
  world.socket.drop(4401, "unauthenticated");
  assert.equal(world.client.state, "closed");
});

const REFUSALS = { unauthenticated: 4401, expired: 4401, forbidden: 4403, revoked: 4450, bad_frame: 4400 };
for (const [code, closing] of Object.entries(REFUSALS)) {
  test(`an auth refused as ${code} counts as close ${closing}, before the server closes`, async () => {
    const world = start();
    for (let attempt = 0; attempt < 2 && !world.client.closed; attempt++) {
      world.socket.open();
      world.socket.welcome();
      world.socket.refuse(world.socket.only("auth"), code);
      assert.ok(world.socket.closed);
      await world.clock.advance(20_000);
    }
    assert.equal(world.client.closed.code, closing);
    assert.equal(world.errors.at(-1).code, code);
  });
}

test("an auth refused as unavailable or for its rate is tried again", () => {
  const limited = { code: "rate_limited", message: "", retry_after: 7 };
  for (const [error, retryIn] of [["unavailable", 250], [limited, 7700]]) {
    const world = start();
    world.socket.open();
    world.socket.welcome();
    world.socket.refuse(world.socket.only("auth"), error);
    assert.equal(world.states.at(-1).state, "waiting");
    assert.equal(world.states.at(-1).retryIn, retryIn);
  }
});

test("the delay in a close reason is kept, even when the network comes back", async () => {
  const page = new EventTarget();
  globalThis.addEventListener = page.addEventListener.bind(page);
  globalThis.removeEventListener = page.removeEventListener.bind(page);
  try {
    const world = start();
    world.socket.accept();
    world.socket.drop(4429, "rate_limited;12.5");
    assert.deepEqual(world.states.at(-1), { state: "waiting", code: 4429, reason: "rate_limited", retryIn: 13_750 });
    page.dispatchEvent(new Event("online"));
    await world.clock.advance(13_749);
    assert.equal(world.sockets.length, 1);
    await world.clock.advance(1);
    assert.equal(world.sockets.length, 2);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});

test("the browser's online event ends the waiting, and is not listened to after the close", async () => {
  const page = new EventTarget();
  const removed = [];
  globalThis.addEventListener = page.addEventListener.bind(page);
  globalThis.removeEventListener = (event, listener) => {
    removed.push(event);
    page.removeEventListener(event, listener);
  };
  try {
    const world = start();
    world.socket.drop();
    page.dispatchEvent(new Event("online"));
    assert.equal(world.sockets.length, 2);
    page.dispatchEvent(new Event("online"));
    await world.clock.advance(1_000);
    assert.equal(world.sockets.length, 2, "one connection at a time");
    world.client.close();
    page.dispatchEvent(new Event("online"));
    assert.equal(world.sockets.length, 2);
    assert.deepEqual(removed, ["online"]);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});

test("reconnect closes after the delay that the server chose and a jitter, and comes back at once", async () => {
  const world = start();
  world.socket.accept();
  await world.clock.advance(10_000);
  world.socket.say({ type: "reconnect", after: 3, reason: "draining" });
  await world.clock.advance(3_299);
  assert.equal(world.client.state, "online");
  await world.clock.advance(1);
  assert.equal(world.sockets.length, 2);
  assert.ok(world.sockets[0].closed);
  assert.deepEqual(
    world.states.slice(-2).map(({ state, reason, retryIn }) => [state, reason, retryIn]),
    [["waiting", "draining", 0], ["connecting", undefined, undefined]],
  );
});

test("a server that closes before its announced delay is not asked earlier", async () => {
  const world = start();
  world.socket.accept();
  await world.clock.advance(10_000);
  world.socket.say({ type: "reconnect", after: 3, reason: "draining" });
  await world.clock.advance(1_000);
  world.socket.drop(1012, "draining");
  assert.equal(world.states.at(-1).retryIn, 2_300);
  await world.clock.advance(2_300);
  assert.equal(world.sockets.length, 2);
  world.socket.drop();
  assert.equal(world.states.at(-1).retryIn, 250, "the next failure has the usual backoff");
  await world.clock.advance(250);
  world.socket.accept();
  await world.clock.advance(10_000);
  world.socket.drop();
  assert.equal(world.states.at(-1).retryIn, 250, "and the next link is nothing special");
});

test("a stable link does not make the failures after it look stable", async () => {
  const world = start();
  world.socket.accept();
  await world.clock.advance(10_000);
  for (const retryIn of [250, 500, 1000]) {
    world.socket.drop();
    assert.equal(world.states.at(-1).retryIn, retryIn);
    await world.clock.advance(retryIn);
  }
});

test("equal delays bring clients back at different times: a fifth later at most, or a quarter of a second", async () => {
  for (const [after, least, most] of [[10, 10_000, 12_000], [0.5, 500, 750]]) {
    for (const [chance, wait] of [[0, least], [1, most]]) {
      const told = start();
      const closed = start();
      told.chance.value = closed.chance.value = chance;
      for (const world of [told, closed]) {
        world.socket.accept();
        await world.clock.advance(10_000);
      }
      closed.socket.drop(1012, `draining;${after}`);
      assert.equal(closed.states.at(-1).retryIn, wait);
      told.socket.say({ type: "reconnect", after, reason: "draining" });
      await told.clock.advance(wait - 1);
      assert.equal(told.client.state, "online");
      await told.clock.advance(1);
      assert.equal(told.sockets.length, 2);
    }
  }
});

test("a server that says reconnect to each newcomer is not hammered", async () => {
  const world = start();
  world.chance.value = 1;
  for (const least of [500, 1000, 2000]) {
    world.socket.accept();
    world.socket.say({ type: "reconnect", after: 0, reason: "draining" });
    await world.clock.advance(250);
    assert.equal(world.states.at(-1).retryIn, least);
    await world.clock.advance(least);
  }
});

test("several addresses are tried in turn, with session and positions", async () => {
  const world = start({}, ["https://a.example/rt", "https://b.example/rt"]);
  world.socket.accept({ session: "s" });
  const room = world.client.join("chat");
  world.socket.reply(world.socket.only("join"), { position: { epoch: "e", offset: 3, id: "x" } });
  world.socket.drop();
  await world.clock.advance(250);
  assert.equal(world.socket.url, "wss://b.example/rt/ws");
  world.socket.accept();
  assert.equal(world.socket.only("auth").session, "s");
  assert.deepEqual(world.socket.only("join").since, room.position);
  world.socket.drop();
  await world.clock.advance(500);
  assert.equal(world.socket.url, "wss://a.example/rt/ws");
});

/** Addresses a.example, b.example, …; what `tried` returns is the letters of those that were tried. */
function abroad(letters, options) {
  const world = start(options, [...letters].map((letter) => `https://${letter}.example/rt`));
  const tried = () => world.sockets.map(({ url }) => new URL(url).hostname[0]).join("");
  return { ...world, tried, get socket() { return world.socket; } };
}

test("a broken connection is replaced elsewhere; where one worked last comes before where none has", async () => {
  const world = abroad("abcd");
  const next = () => world.clock.advance(world.client.retryIn);
  world.socket.drop();
  await next();
  world.socket.accept();
  world.socket.drop();
  await next();
  world.socket.drop();
  await next();
  assert.equal(world.tried(), "abcb", "b worked, c is the next one, and a and d are not known to be there");
  world.socket.drop();
  for (const _ of "dacb") {
    await next();
    world.socket.drop();
  }
  assert.equal(world.tried(), "abcbdacb", "then all of them in turn");
});

test("all addresses are tried before the backoff grows", async () => {
  const world = abroad("abc");
  const waits = [];
  for (let attempt = 0; attempt < 9; attempt++) {
    world.socket.drop();
    waits.push(world.client.retryIn);
    await world.clock.advance(world.client.retryIn);
  }
  assert.deepEqual(waits, [250, 250, 250, 500, 500, 500, 1000, 1000, 1000]);
});

test("a server that drains sends its clients elsewhere, with what they need to go on", async () => {
  const world = abroad("ab");
  world.socket.accept({ session: "s" });
  const room = world.client.join("chat");
  world.socket.reply(world.socket.only("join"), { position: { epoch: "e", offset: 3, id: "x" } });
  await world.clock.advance(10_000);
  world.socket.say({ type: "reconnect", after: 3, reason: "draining" });
  await world.clock.advance(3_300);
  assert.equal(world.tried(), "ab");
  world.socket.accept();
  assert.equal(world.socket.only("auth").session, "s");
  assert.deepEqual(world.socket.only("join").since, room.position);
});

test("an address that no socket can be made for is passed over", async () => {
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  try {
    const opened = [];
    class Picky extends EventTarget {
      constructor(url) {
        super();
        if (url.startsWith("ws:")) throw new Error("insecure");
        opened.push(url);
      }
      close() {}
    }
    const world = start({ WebSocket: Picky }, ["http://a.example/rt", "https://b.example/rt"]);
    await world.clock.advance(250);
    assert.deepEqual([opened, reported], [["wss://b.example/rt/ws"], ["insecure"]]);
    world.client.close();
  } finally {
    delete globalThis.reportError;
  }
});

test("a token that could not be had says nothing about the address", async () => {
  let works = false;
  const world = abroad("ab", { token: async () => (works ? "t" : Promise.reject(new Error("no network"))) });
  await world.clock.advance(0);
  works = true;
  await world.clock.advance(world.client.retryIn);
  assert.equal(world.tried(), "a");
});

test("no address at all is the app's mistake", () => {
  assert.throws(() => start({}, []), { name: "TypeError", message: "connect() takes an address, or several" });
});

test("close ends everything and says so", async () => {
  const { client, socket, room, clock, states } = joined();
  const left = heard(room, "rt:left");
  const pending = client.join("other");
  const ready = outcome(pending.ready);
  const flying = outcome(room.send("message", 1));
  const queued = outcome(room.send("message", 2));
  client.close();
  client.close();
  await settled();
  assert.equal(client.state, "closed");
  assert.deepEqual(client.closed, {
    code: 1000,
    name: "closed",
    reason: "closed",
    message: "the app has closed the client",
  });
  assert.ok(socket.closed);
  assert.deepEqual(left, [{ code: "closed" }]);
  assert.equal(ready.code, "closed");
  assert.equal(flying.code, "uncertain");
  assert.equal(queued.code, "closed");
  assert.equal(states.filter(({ state }) => state === "closed").length, 1);
  await clock.advance(600_000);
  assert.equal(client.state, "closed");
  assert.equal(clock.timers, 0);
});

test("only the app's close is a normal closure; a link that is given up has another after it", async () => {
  const world = start();
  world.socket.accept();
  const [first] = world.sockets;
  await world.clock.advance(40_000);
  assert.ok(first.closed);
  assert.equal(first.closeCode, undefined);
  await world.clock.advance(250);
  world.client.close();
  assert.equal(world.socket.closeCode, 1000);
});

test("a closed client takes nothing more", async () => {
  const { client } = start();
  client.close();
  const sent = outcome(client.send("x"));
  const room = client.join("chat");
  const ready = outcome(room.ready);
  const message = outcome(room.send("x"));
  await settled();
  assert.equal(sent.code, "closed");
  assert.equal(ready.code, "closed");
  assert.equal(message.code, "closed");
  assert.equal(client.sendVolatile("x"), false);
  assert.equal(client.room("chat"), undefined);
});

test("what is sent after the server has closed for good is rejected with its reason", async () => {
  const { client, room, socket } = joined();
  const flying = outcome(client.send("before"));
  socket.say({ type: "error", code: "banned", message: "you were rude" });
  socket.drop(4403, "banned");
  const sent = [client.send("x"), room.send("x"), client.join("other").send("x")].map(outcome);
  await settled();
  assert.deepEqual(client.closed, { code: 4403, name: "forbidden", reason: "banned", message: "you were rude" });
  assert.equal(flying.code, "uncertain");
  for (const { error } of sent) assert.deepEqual([error.code, error.message], ["banned", "you were rude"]);
});

test("an earlier complaint is not taken for the reason of the close", () => {
  const { client, socket } = joined();
  socket.say({ type: "error", code: "rate_limited", message: "slow down" });
  socket.drop(4450, "revoked");
  assert.equal(client.closed.message, "revoked");
});

test("a refusal before the welcome says what it means: the origin, or the path", () => {
  for (const [code, message] of [["forbidden", /this page's origin/], ["not_found", /path where the kit is mounted/]]) {
    for (const told of [true, false]) {
      const { client, socket, errors } = start();
      socket.open();
      if (told) socket.say({ type: "error", code, message: "not allowed" });
      socket.drop(4403, code);
      assert.match(client.closed.message, message);
      assert.deepEqual(errors.map((error) => [error.code, message.test(error.message)]), [[code, true]]);
    }
  }
});

test("close while the token is still being fetched opens nothing", async () => {
  let give;
  const world = start({ token: () => new Promise((resolve) => (give = resolve)) });
  world.client.close();
  give("t");
  await settled();
  assert.equal(world.sockets.length, 0);
});

test("close from a listener of the state is obeyed", async () => {
  const world = start();
  world.client.on("rt:state", ({ state }) => state === "waiting" && world.client.close());
  world.socket.accept();
  world.socket.drop();
  await world.clock.advance(60_000);
  assert.equal(world.sockets.length, 1);
  assert.equal(world.client.state, "closed");
});

test("nothing piles up over a day of broken links", async () => {
  const world = joined();
  for (let round = 0; round < 300; round++) {
    world.socket.drop();
    await world.clock.advance(world.states.at(-1).retryIn);
    world.socket.accept();
    world.socket.reply(world.socket.only("join"), { position: world.room.position, recovered: true });
    await world.clock.advance(11_000);
  }
  assert.ok(world.clock.timers < 5, `${world.clock.timers} timers`);
});
