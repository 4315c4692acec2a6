/** Presence: a snapshot and its differences, grouped by user. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { at, heard, joined, settled, start } from "./support/fakes.mjs";

const member = (connection, user, more = {}) => {
  return { connection, ...(user && { user }), status: "online", since: 1, ...more };
};
const snapshot = (seq, ...list) => ({ seq, total: list.length, list });
const diff = (prev, seq, more = {}) => ({ type: "presence", room: "chat", prev, seq, ...more });
const users = (room) => [...room.presence.members.keys()].sort();

function present(...list) {
  return joined({}, { reply: { position: at(1), members: snapshot(5, ...list) } });
}

test("the join's snapshot is grouped by user, and by connection where there is none", () => {
  const { room } = present(
    member("c2", "ann", { since: 2, status: "away", meta: { avatar: 2 } }),
    member("c1", "ann", { since: 1, meta: { avatar: 1 } }),
    member("c3", undefined, { since: 3, status: "away" }),
  );
  assert.deepEqual([...room.presence.members], [
    ["ann", { user: "ann", status: "online", meta: { avatar: 2 }, connections: ["c1", "c2"], since: 1 }],
    ["c3", { user: null, status: "away", meta: undefined, connections: ["c3"], since: 3 }],
  ]);
  assert.equal(room.presence.total, 3);
  assert.equal(room.presence.seq, 5);
  assert.equal(room.presence.complete, true);
});

test("differences tell who came, changed and left", () => {
  const { room, socket } = present(member("c1", "ann"), member("c2", "bob"));
  const changes = heard(room.presence, "change");
  const updates = [member("c1", "ann", { status: "away" })];
  socket.say(diff(5, 6, { joined: [member("c3", "cid")], updated: updates, left: ["c2"] }));
  assert.deepEqual(changes.length, 1);
  const [{ joined: came, updated, left }] = changes;
  assert.deepEqual([came, updated, left].map((list) => list.map(({ user }) => user)), [["cid"], ["ann"], ["bob"]]);
  assert.equal(room.presence.members.get("ann").status, "away");
  assert.deepEqual(users(room), ["ann", "cid"]);
  assert.equal(room.presence.total, 2);
});

test("a user with several connections leaves with the last", () => {
  const { room, socket } = present(member("c1", "ann"));
  const changes = heard(room.presence, "change");
  socket.say(diff(5, 6, { joined: [member("c2", "ann")] }));
  socket.say(diff(6, 7, { left: ["c1"] }));
  socket.say(diff(7, 8, { left: ["c2"] }));
  assert.deepEqual(
    changes.map((change) => ["joined", "updated", "left"].filter((kind) => change[kind].length)),
    [["updated"], ["updated"], ["left"]],
  );
});

test("what is known already changes nothing", () => {
  const { room, socket } = present(member("c1", "ann"));
  const changes = heard(room.presence, "change");
  socket.say(diff(4, 5, { left: ["c1"] }));
  socket.say(diff(3, 4, { joined: [member("c9", "zed")] }));
  assert.deepEqual(changes, []);
  assert.deepEqual(users(room), ["ann"]);
});

test("a difference that overlaps what is known is folded in", () => {
  const { room, socket } = present(member("c1", "ann"));
  socket.say(diff(3, 7, { joined: [member("c1", "ann"), member("c2", "bob")] }));
  assert.deepEqual(users(room), ["ann", "bob"]);
  assert.equal(room.presence.seq, 7);
});

test("a gap asks for a snapshot, once, and what comes meanwhile is applied after it", async () => {
  const { room, socket } = present(member("c1", "ann"));
  socket.say(diff(6, 7, { joined: [member("c2", "bob")] }));
  socket.say(diff(7, 8, { joined: [member("c3", "cid")] }));
  socket.say(diff(8, 9, { left: ["c1"] }));
  assert.deepEqual(users(room), ["ann"]);
  socket.reply(socket.only("members"), snapshot(8, member("c1", "ann"), member("c2", "bob"), member("c3", "cid")));
  await settled();
  assert.deepEqual(users(room), ["bob", "cid"]);
  assert.equal(room.presence.seq, 9);
});

test("more than the buffer holds only means to ask again", async () => {
  const { room, socket } = present(member("c1", "ann"));
  for (let seq = 7; seq < 200; seq++) socket.say(diff(seq - 1, seq, { joined: [member(`d${seq}`, `u${seq}`)] }));
  socket.reply(socket.only("members"), snapshot(6, member("c1", "ann")));
  await settled();
  assert.equal(room.presence.seq, 70);
  socket.say(diff(199, 200, { joined: [member("c2", "bob")] }));
  socket.reply(socket.last("members"), snapshot(200, member("c2", "bob")));
  await settled();
  assert.equal(socket.all("members").length, 2);
  assert.deepEqual(users(room), ["bob"]);
});

test("a snapshot that is refused is asked for again with the next difference", async () => {
  const { room, socket } = present(member("c1", "ann"));
  socket.say(diff(6, 7));
  socket.refuse(socket.only("members"), "internal");
  await settled();
  socket.say(diff(7, 8));
  socket.reply(socket.last("members"), snapshot(8, member("c2", "bob")));
  await settled();
  assert.deepEqual(users(room), ["bob"]);
});

test("a join's snapshot is newer than one that was asked for before", async () => {
  const world = present(member("c1", "ann"));
  world.socket.say(diff(6, 7));
  await world.relink();
  const changes = heard(world.room.presence, "change");
  const members = snapshot(20, member("c2", "bob"));
  world.socket.reply(world.socket.only("join"), { recovered: true, position: at(1), members });
  world.socket.say(diff(20, 21, { joined: [member("c3", "cid")] }));
  world.socket.reply(world.socket.only("members"), snapshot(19, member("c1", "ann")));
  await settled();
  assert.deepEqual(users(world.room), ["bob", "cid"]);
  assert.equal(changes.length, 2);
});

test("a rejoin tells the difference to what was known", async () => {
  const world = present(member("c1", "ann"), member("c2", "bob"));
  await world.relink();
  const changes = heard(world.room.presence, "change");
  world.socket.reply(world.socket.only("join"), {
    recovered: true, position: at(1), members: snapshot(2, member("c9", "ann"), member("c3", "cid")),
  });
  const [{ joined: came, updated, left }] = changes;
  assert.deepEqual([came, updated, left].map((list) => list.map(({ user }) => user)), [["cid"], ["ann"], ["bob"]]);
});

test("above the room's bound there is a sample, and it says so", async () => {
  const { room, socket } = present(member("c1", "ann"));
  socket.say({ type: "presence", room: "chat", seq: 9, total: 500, sample: [member("c2", "bob")] });
  assert.equal(room.presence.complete, false);
  assert.equal(room.presence.total, 500);
  assert.deepEqual(users(room), ["bob"]);
  socket.say(diff(9, 10, { left: ["c2"] }));
  socket.reply(socket.only("members"), snapshot(10, member("c1", "ann")));
  await settled();
  assert.equal(room.presence.complete, true);
  assert.deepEqual(users(room), ["ann"]);
});

test("a snapshot of a part of a large room is a sample", () => {
  const { room } = joined({}, { reply: { members: { seq: 1, total: 300, list: [member("c1", "ann")] } } });
  assert.equal(room.presence.complete, false);
  assert.equal(room.presence.total, 300);
});

test("a room without presence has nobody in it", () => {
  const { client, socket } = start();
  socket.accept();
  const room = client.join("chat");
  socket.reply(socket.only("join"), { position: at(1) });
  assert.equal(room.presence.members.size, 0);
});

test("after a reset a new snapshot is right, whatever its number", async () => {
  const { room, socket } = present(member("c1", "ann"), member("c2", "bob"));
  socket.say({ type: "reset", room: "chat", reason: "forgotten", position: at(0, "new") });
  socket.say(diff(1, 2, { joined: [member("c4", "eve")] }));
  socket.reply(socket.only("members"), snapshot(1, member("c3", "cid")));
  await settled();
  assert.equal(room.presence.seq, 2);
  assert.deepEqual(users(room), ["cid", "eve"]);
});

test("a new total is a change, and what changes nothing is none", () => {
  const { room, socket } = present(member("c1", "ann"));
  const changes = heard(room.presence, "change");
  const told = (seq, total) => socket.say({ type: "presence", room: "chat", seq, total, sample: [member("c1", "ann")] });
  told(9, 500);
  const { members } = room.presence;
  told(10, 500);
  told(11, 501);
  assert.deepEqual(changes, [{ joined: [], updated: [], left: [] }, { joined: [], updated: [], left: [] }]);
  assert.equal(room.presence.members, members, "the same map, as nobody in it is another");
});
