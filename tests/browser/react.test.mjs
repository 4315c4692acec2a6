/** The React hooks, with React itself: StrictMode, leaving, sharing, changes of the room, and no render without need. */

import assert from "node:assert/strict";
import { after, afterEach, test } from "node:test";

import { JSDOM } from "jsdom";

// React looks for a page when it is loaded.
const page = new JSDOM("<!doctype html><div></div>");
globalThis.window = page.window;
globalThis.document = page.window.document;
globalThis.IS_REACT_ACT_ENVIRONMENT = true;
after(() => page.window.close());

const { act, createElement: h, StrictMode, useState } = await import("react");
const { createRoot } = await import("react-dom/client");
const { renderToString } = await import("react-dom/server");
const { RealtimeProvider, useConnection, usePresence, useRoom } = await import(
  "../../starlette_realtime/browser/react.js"
);
const { at, kept, start } = await import("./support/fakes.mjs");

/** @type {(() => Promise<void>)[]} */
const mounted = [];
afterEach(async () => {
  for (const unmount of mounted.splice(0)) await unmount();
});

/** Let timers of the page run that were set before. */
const later = () => act(() => new Promise((resolve) => setTimeout(resolve)));

/** Render `element` below a client, and again with `show`. */
async function mount(world, element, { strict = false } = {}) {
  const host = document.createElement("div");
  const root = createRoot(host);
  const show = (inner) =>
    act(async () => root.render(h(strict ? StrictMode : "div", null, h(RealtimeProvider, { client: world.client }, inner))));
  const unmount = () => act(async () => root.unmount());
  mounted.push(unmount);
  await show(element);
  return { host, show, unmount, text: () => host.textContent };
}

function online(options) {
  const world = start(options);
  world.socket.accept();
  return world;
}

/** A component that shows a room's state, and hands out what the hook returns. */
function probe(seen = []) {
  function Probe({ name, ...options }) {
    const view = useRoom(name, options);
    seen.push(view);
    return `${name}: ${view.state}${view.error ? ` (${view.error.code})` : ""}`;
  }
  return { Probe, seen };
}

test("a room is joined when the component is mounted, and left when it is gone", async () => {
  const world = online();
  const { Probe, seen } = probe();
  const { text, unmount } = await mount(world, h(Probe, { name: "chat", status: "away", meta: { a: 1 } }));
  const { status, meta } = world.socket.only("join");
  assert.deepEqual({ status, meta }, { status: "away", meta: { a: 1 } });
  assert.equal(text(), "chat: joining");
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  assert.equal(text(), "chat: joined");
  assert.equal(seen.at(-1).room, world.client.room("chat"));
  await unmount();
  await later();
  world.socket.only("leave");
  assert.equal(world.client.room("chat"), undefined);
});

test("in StrictMode, which mounts twice, the room is joined once and not left", async () => {
  const world = online();
  const { Probe } = probe();
  const { unmount } = await mount(world, h(Probe, { name: "chat" }), { strict: true });
  await later();
  world.socket.only("join");
  assert.deepEqual(world.socket.all("leave"), []);
  await unmount();
  await later();
  world.socket.only("leave");
});

test("components of one name share the room, and the last one leaves it", async () => {
  const world = online();
  const { Probe } = probe();
  const both = (one, two) => h("div", null, one && h(Probe, { key: 1, name: "chat" }), two && h(Probe, { key: 2, name: "chat" }));
  const { show, text } = await mount(world, both(true, true));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  assert.equal(text(), "chat: joinedchat: joined");
  await show(both(true, false));
  await later();
  assert.deepEqual(world.socket.all("leave"), []);
  await show(both(false, false));
  await later();
  world.socket.only("leave");
});

test("a component that moves keeps its room", async () => {
  const world = online();
  const { Probe } = probe();
  const { show } = await mount(world, h("p", null, h(Probe, { name: "chat" })));
  await show(h("b", null, h(Probe, { name: "chat" })));
  await later();
  world.socket.only("join");
  assert.deepEqual(world.socket.all("leave"), []);
});

test("a room that the app joined by itself stays", async () => {
  const world = online();
  const room = world.client.join("chat");
  const { Probe, seen } = probe();
  const { unmount } = await mount(world, h(Probe, { name: "chat" }));
  assert.equal(seen.at(-1).room, room);
  await unmount();
  await later();
  assert.deepEqual(world.socket.all("leave"), []);
});

test("another name is another room: never the old one under the new name", async () => {
  const world = online();
  const { Probe, seen } = probe();
  const { show, text } = await mount(world, h(Probe, { name: "one" }));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  seen.length = 0;
  await show(h(Probe, { name: "two" }));
  await later();
  assert.ok(seen.every(({ room }) => room === null || room.name === "two"));
  assert.equal(text(), "two: joining");
  world.socket.only("join", "two");
  world.socket.only("leave", "one");
  await show(h(Probe, { name: null }));
  await later();
  assert.equal(text(), "null: joining");
  world.socket.only("leave", "two");
});

test("listeners hear everything from the join on, and are always the latest", async () => {
  const world = online();
  const told = [];
  function Chat() {
    const [count, setCount] = useState(0);
    useRoom("chat", {
      since: at(1),
      on: {
        message: (data, { recovered }) => {
          told.push([count, data, recovered]);
          setCount(count + 1);
        },
        "rt:recovered": ({ count: missed }) => told.push(missed),
      },
    });
    return String(count);
  }
  const { text } = await mount(world, h(Chat), { strict: true });
  const { since } = world.socket.only("join");
  assert.deepEqual(since, at(1));
  await act(async () =>
    world.socket.reply(world.socket.only("join"), { recovered: true, position: at(2), events: [kept(2)] }),
  );
  await act(async () => world.socket.say(kept(3)));
  await act(async () => world.socket.say(kept(3)));
  assert.deepEqual(told, [[0, 2, true], 1, [1, 3, false]]);
  assert.equal(text(), "2");
});

test("a listener that comes with a later render hears, one that goes doesn't", async () => {
  const world = online();
  const { Probe } = probe();
  const told = [];
  const chat = (on) => h(Probe, { name: "chat", on });
  const { show } = await mount(world, chat({}));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  await act(async () => world.socket.say(kept(2)));
  await show(chat({ message: (data) => told.push(data) }));
  await act(async () => world.socket.say(kept(3)));
  await show(chat({ other: (data) => told.push(data) }));
  await act(async () => world.socket.say(kept(4)));
  assert.deepEqual(told, [3]);
});

test("a listener's return value answers the server", async () => {
  const world = online();
  const { Probe } = probe();
  await mount(world, h(Probe, { name: "chat", on: { colour: async (choices) => choices[1] } }));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  await act(async () => world.socket.say({ type: "event", room: "chat", event: "colour", data: ["red", "teal"], id: 9 }));
  assert.deepEqual(world.socket.only("reply"), { type: "reply", id: 9, data: "teal" });
});

test("send is the same function in every render, and goes to the present room", async () => {
  const world = online();
  const { Probe, seen } = probe();
  const { show } = await mount(world, h(Probe, { name: "one" }));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  await show(h(Probe, { name: "two" }));
  await act(async () => world.socket.reply(world.socket.only("join", "two"), { position: at(1) }));
  const [{ send, sendVolatile }] = seen;
  assert.ok(seen.every((view) => view.send === send && view.sendVolatile === sendVolatile));
  const sent = send("message", { text: "hi" });
  assert.equal(world.socket.only("event").room, "two");
  world.socket.reply(world.socket.only("event"), 7);
  assert.equal(await sent, 7);
  assert.equal(sendVolatile("typing"), true);
  await show(h(Probe, { name: null }));
  assert.equal(sendVolatile("typing"), false);
  await assert.rejects(send("message"), { name: "RealtimeError", code: "not_joined" });
});

test("a room that is refused or left says so, and a new component joins anew", async () => {
  const world = online();
  const { Probe } = probe();
  const { show, text } = await mount(world, h(Probe, { key: 1, name: "chat" }));
  await act(async () => world.socket.refuse(world.socket.only("join"), "forbidden"));
  assert.equal(text(), "chat: refused (forbidden)");
  await show(h(Probe, { key: 2, name: "chat" }));
  assert.equal(text(), "chat: joining");
  await act(async () => world.socket.reply(world.socket.last("join"), { position: at(1) }));
  await act(async () => world.socket.say({ type: "left", room: "chat", code: "forbidden" }));
  assert.equal(text(), "chat: left (forbidden)");
});

test("a broken link and a stale store are seen, and that they are over", async () => {
  const world = online();
  const { Probe, seen } = probe();
  const { text } = await mount(world, h(Probe, { name: "chat" }));
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  await act(async () => world.socket.say({ type: "stale", room: "chat" }));
  assert.equal(seen.at(-1).stale, true);
  await act(async () => world.relink());
  assert.equal(text(), "chat: joining");
  await act(async () => world.socket.reply(world.socket.only("join"), { recovered: true, position: at(1) }));
  assert.equal(text(), "chat: joined");
  assert.equal(seen.at(-1).stale, false);
});

test("a new status or meta is sent, the same one isn't", async () => {
  const world = online();
  const { Probe } = probe();
  const chat = (status, meta) => h(Probe, { name: "chat", status, meta });
  const { show } = await mount(world, chat("online", { colour: "teal" }), { strict: true });
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1) }));
  await show(chat("online", { colour: "teal" }));
  assert.deepEqual(world.socket.all("status"), []);
  await show(chat("away", { colour: "teal" }));
  const { status, meta } = world.socket.only("status");
  assert.deepEqual({ status, meta }, { status: "away", meta: { colour: "teal" } });
  await show(chat("away", { colour: "red" }));
  world.socket.reply(world.socket.only("status"));
  assert.deepEqual(world.socket.all("status").map((frame) => frame.meta.colour), ["teal", "red"]);
  await show(chat());
  assert.equal(world.socket.all("status").length, 2, "undefined leaves it as it is");
});

test("presence renders when somebody comes, changes or goes, and at nothing else", async () => {
  const world = online();
  let renders = 0;
  const seen = [];
  function List({ room }) {
    renders++;
    const view = usePresence(room);
    seen.push(view);
    return view.members.map(({ user, status }) => `${user} ${status}`).join();
  }
  function Chat() {
    return h(List, useRoom("chat"));
  }
  const { text } = await mount(world, h(Chat));
  const person = (connection, user, status = "online") => ({ connection, user, status, since: 1 });
  const members = { seq: 1, total: 1, list: [person("c1", "ann")] };
  await act(async () => world.socket.reply(world.socket.only("join"), { position: at(1), members }));
  assert.equal(text(), "ann online");
  const diff = (seq, change) =>
    act(async () => world.socket.say({ type: "presence", room: "chat", prev: seq - 1, seq, joined: [], updated: [], left: [], ...change }));
  const before = renders;
  await act(async () => world.socket.say(kept(2)));
  await diff(2, { updated: [person("c1", "ann")] });
  assert.equal(renders, before);
  await diff(3, { joined: [person("c2", "bob")] });
  assert.equal(text(), "ann online,bob online");
  await diff(4, { updated: [person("c1", "ann", "away")] });
  assert.equal(text(), "ann away,bob online");
  await diff(5, { left: ["c2"] });
  assert.equal(text(), "ann away");
  assert.equal(renders, before + 3);
  assert.deepEqual([seen.at(-1).total, seen.at(-1).complete], [1, true]);
});

test("the connection is shown in each of its states", async () => {
  const world = start();
  const seen = [];
  function Light() {
    const connection = useConnection();
    seen.push(connection);
    return connection.state;
  }
  const { text } = await mount(world, h(Light), { strict: true });
  assert.equal(text(), "connecting");
  await act(async () => world.socket.accept());
  assert.equal(text(), "online");
  assert.deepEqual([seen.at(-1).user, seen.at(-1).connection], ["ann", "c1"]);
  await act(async () => world.socket.drop());
  assert.equal(text(), "waiting");
  assert.deepEqual([seen.at(-1).retryIn, seen.at(-1).connection], [250, null]);
  await act(async () => world.client.close());
  assert.equal(text(), "closed");
  assert.equal(seen.at(-1).closed.reason, "closed");
  assert.equal(new Set(seen).size, 4, "the same object while nothing changes");
});

test("on the server there is no client, and the page begins as it was rendered there", async () => {
  function App() {
    const { state } = useConnection();
    const { room, state: joining } = useRoom("chat");
    return `${state} ${joining} ${usePresence(room).members.length}`;
  }
  assert.equal(renderToString(h(RealtimeProvider, { client: null }, h(App))), "connecting joining 0");
  assert.equal(renderToString(h(App)), "connecting joining 0");
  const world = online();
  assert.equal(renderToString(h(RealtimeProvider, { client: world.client }, h(App))), "connecting joining 0");
  assert.deepEqual(world.socket.all("join"), [], "nothing is joined by rendering");
});

test("another client is another connection", async () => {
  const [one, two] = [online(), online()];
  const { Probe } = probe();
  const { host } = await mount(one, h(Probe, { name: "chat" }));
  const root = createRoot(host.cloneNode());
  const show = (client) => act(async () => root.render(h(RealtimeProvider, { client }, h(Probe, { name: "x" }))));
  mounted.push(() => act(async () => root.unmount()));
  await show(one.client);
  await show(two.client);
  await later();
  one.socket.only("leave", "x");
  two.socket.only("join", "x");
});
