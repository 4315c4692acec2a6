/**
 * A server of one room and of the user's own, as the wire protocol has it, on a fake clock and behind a network that
 * fails: it keeps a history, knows keys for 120 s, lets tokens expire, and remembers all that a test may ask.
 */

import assert from "node:assert/strict";

const KEYS = 120_000; // ms for which a key is known
const HISTORY = 64; // publications that a room keeps
const EXPIRING = 25; // seconds before a token's end

class Log {
  /** @type {{offset: number, data: any, key?: string}[]} all that was ever published */
  all = [];

  get position() {
    return this.at(this.all.length);
  }

  at(offset) {
    return { epoch: "e", offset, id: `id${offset}` };
  }

  /** What a join is answered: what was missed, or that it no longer can be told. */
  since(position, frame) {
    const missed = position ? this.all.slice(position.offset) : [];
    const recovered = !!position && missed.length <= HISTORY;
    const events = recovered ? missed.map(frame) : [];
    return { position: this.position, recovered, events, ...(position && !recovered && { reason: "trimmed" }) };
  }
}

export class Server {
  rooms = { chat: new Log(), "user:ann": new Log() };
  /** The network: down, sockets neither open nor say anything. */
  reachable = true;
  /** Joins that were told that something is lost. */
  lost = 0;
  refreshes = 0;
  repeats = 0;
  /** @type {Set<Socket>} */
  sockets = new Set();
  #keys = new Map();
  #clock;
  #chance;

  constructor(clock, chance) {
    this.#clock = clock;
    this.#chance = chance;
    const server = this;
    this.Socket = class extends Socket {
      constructor() {
        super(server, clock, chance);
      }
    };
  }

  /** A token that is good for two minutes. */
  issue() {
    return String(this.#clock.now() + 120_000);
  }

  publish(room, data, key) {
    const log = this.rooms[room];
    log.all.push({ offset: log.all.length + 1, data, key });
    for (const socket of this.sockets) if (socket.joined.has(room)) socket.say(this.frame(room)(log.all.at(-1)));
    return log.all.length;
  }

  frame(room) {
    const log = this.rooms[room];
    return ({ offset, data }) => ({ type: "event", event: "message", room, data, position: log.at(offset), at: 1 });
  }

  /** Take an event once for each key, for as long as keys are known. */
  take({ room, data, key }) {
    const now = this.#clock.now();
    for (const [old, { at }] of this.#keys) {
      if (now - at < KEYS) break;
      this.#keys.delete(old);
    }
    const known = this.#keys.get(key);
    if (known) this.repeats++;
    else this.#keys.set(key, { at: now, offset: this.publish(room, data, key) });
    return { offset: this.#keys.get(key).offset };
  }

  get socket() {
    return [...this.sockets].at(-1);
  }
}

class Socket {
  readyState = 0;
  bufferedAmount = 0;
  onopen = null;
  onmessage = null;
  onclose = null;
  joined = new Set();
  #expires = 0;
  #dead = false;
  /** Ways on which nothing gets through. */
  #silent = new Set();
  #timers = new Set();
  /** Frames keep their order, however long each takes. */
  #arrives = { there: 0, here: 0 };
  #server;
  #clock;
  #chance;

  constructor(server, clock, chance) {
    this.#server = server;
    this.#clock = clock;
    this.#chance = chance;
    if (!server.reachable) return void this.#after(chance.between(10, 3_000), () => this.drop(1006, ""));
    server.sockets.add(this);
    this.#after(chance.between(5, 200), () => {
      this.readyState = 1;
      this.onopen?.({});
      this.say({ type: "welcome", connection: "c", heartbeat: 25, limits: { message_bytes: 65_536 }, server: "test" });
    });
  }

  // The client's side:

  send(text) {
    assert.ok(!this.#dead, "sent to a closed socket");
    this.#travel("there", () => this.#hear(JSON.parse(text)));
  }

  close() {
    this.#end();
  }

  // The server's:

  say(frame) {
    const text = JSON.stringify(frame);
    this.#travel("here", () => this.onmessage?.({ data: text }));
  }

  /** Close, behind what was said before. */
  shut(code, reason) {
    this.#server.sockets.delete(this);
    this.#travel("here", () => this.drop(code, reason));
  }

  // The network's:

  drop(code, reason) {
    const tell = this.onclose;
    this.#end();
    tell?.({ code, reason });
  }

  /** Nothing comes here any more, soon after nothing gets there, and nobody is told. */
  silence() {
    this.#silent.add("here");
    this.#after(this.#chance.between(0, 20_000), () => this.#silent.add("there"));
    this.#server.sockets.delete(this);
  }

  #end() {
    this.#dead = true;
    this.readyState = 3;
    this.#server.sockets.delete(this);
    for (const timer of this.#timers) this.#clock.clearTimeout(timer);
    this.#timers.clear();
  }

  #after(ms, fn) {
    const timer = this.#clock.setTimeout(() => {
      this.#timers.delete(timer);
      if (!this.#dead) fn();
    }, ms);
    this.#timers.add(timer);
  }

  #travel(way, fn) {
    if (this.#dead || this.#silent.has(way)) return;
    const now = this.#clock.now();
    this.#arrives[way] = Math.max(this.#arrives[way], now + this.#chance.between(2, 150));
    this.#after(this.#arrives[way] - now, () => this.#silent.has(way) || fn());
  }

  #hear(frame) {
    const { type, id, room } = frame;
    const server = this.#server;
    const reply = (data) => this.say({ type: "reply", id, data });
    const refuse = (error) => this.say({ type: "reply", id, error: { message: "", ...error } });
    switch (type) {
      case "auth":
        return this.#authenticate(frame, reply, refuse);
      case "join": {
        if (this.#chance.random() < 0.05) return refuse({ code: "unavailable" });
        const answer = server.rooms[room].since(frame.since, server.frame(room));
        if (answer.reason) server.lost++;
        this.joined.add(room);
        return reply(answer);
      }
      case "event": {
        const luck = this.#chance.random();
        if (luck < 0.02) return refuse({ code: "rate_limited", retry_after: this.#chance.between(0.1, 3) });
        if (luck < 0.04) return refuse({ code: "unavailable" });
        if (luck < 0.05) return this.drop(1006, ""); // before it is taken
        const answer = server.take(frame);
        if (luck < 0.06) return this.drop(1006, ""); // after it
        if (luck < 0.07) return refuse({ code: "unavailable" });
        if (luck < 0.1) this.say({ type: "limits", remaining: 0, retry_after: this.#chance.between(0.1, 5) });
        return reply(answer);
      }
      default:
        assert.equal(type, "pong");
    }
  }

  #authenticate({ token, since }, reply, refuse) {
    const first = !this.#expires;
    const left = Number(token) - this.#clock.now();
    if (left <= 0) return refuse({ code: "expired" });
    this.#expires = Number(token);
    reply({ user: "ann", expires_in: left / 1000, session: "s" });
    this.#after(left - EXPIRING * 1000, () => this.say({ type: "expiring", expires_in: EXPIRING }));
    this.#after(left, () => this.#clock.now() >= this.#expires && this.shut(4401, "expired"));
    if (!first) return void this.#server.refreshes++;
    const room = "user:ann";
    const answer = this.#server.rooms[room].since(since[room], this.#server.frame(room));
    if (answer.reason) this.#server.lost++;
    this.joined.add(room);
    this.say({ type: "joined", room, ...answer });
    this.#beat();
  }

  #beat() {
    this.#after(25_000, () => {
      this.say({ type: "ping" });
      this.#beat();
    });
  }
}
