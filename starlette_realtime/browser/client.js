/** The client: one connection that comes back by itself, and the rooms on it. */

import { CLOSE_CODES } from "./codes.js";
import { Emitter } from "./emitter.js";
import { RealtimeError, report } from "./errors.js";
import { Link, encode } from "./link.js";
import { Outbox, RETRIED } from "./outbox.js";
import { Room, info } from "./room.js";

export { CLOSE_CODES, RealtimeError };

/** @import { Clock, JoinOptions, Options, SendOptions } from "./types.js" */

const STABLE = 10_000; // ms online after which the backoff starts over: a server that drops at once isn't hammered
const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once
const SINCE = 100; // positions that the server takes with `auth`

/** How a refused `auth` ends the link, where the server doesn't close by itself. @type {Record<string, number>} */
const REFUSED = { unauthenticated: 4401, expired: 4401, forbidden: 4403, rate_limited: 4429, bad_frame: 4400 };

/** What the server can't say better before it knows who is there. @type {Record<string, string>} */
const OUTSIDE = {
  forbidden: "the server refused this page's origin, or this user",
  not_found: "nothing here: connect() takes the path where the kit is mounted, like '/realtime'",
};

/** @type {Clock} */
const CLOCK = {
  now: () => Date.now(),
  setTimeout: (fn, ms) => setTimeout(fn, Math.min(ms, LONGEST)),
  clearTimeout: (timer) => clearTimeout(timer),
};

/**
 * Connect, at once, and again whenever the connection breaks.
 * @param {string | string[]} urls where the kit is mounted (`/realtime`, `https://example.com/realtime`); several are
 *   tried in turn
 * @param {Options} [options]
 */
export function connect(urls, options) {
  return new Client(urls, options);
}

/**
 * Emits the connection's events and those of the user room with `(data, info)`, and
 *
 * - `rt:state` ({state, code, reason, retryIn}): `retryIn` in ms while it waits;
 * - `rt:joined` (room): the server joined this connection to a room;
 * - `rt:error` (RealtimeError): what no promise tells; without a listener it is a warning on the console;
 * - `rt:stale` and `rt:fresh`: the server's store is away, back; `rt:limits`: what is left to spend.
 */
export class Client extends Emitter {
  /** @type {"connecting" | "online" | "waiting" | "closed"} */
  state = "connecting";
  /** @type {{code: number, name: string, reason: string, message: string} | null} why it is closed for good */
  closed = null;
  /** @type {string | null} null: anonymous, or not yet known */
  user = null;
  /** @type {string | null} the public id of the present connection */
  connection = null;
  /** @type {Map<string, Room>} */
  #rooms = new Map();
  /** @type {string | undefined} kept in memory alone: a copied tab must not share it */
  #session;
  /** @type {Link | null} */
  #link = null;
  #online = NaN; // clock time of the last `auth`; NaN: the link isn't through yet
  #attempt = 0; // unstable links and failures in a row
  #turn = 0; // which opening is the present one
  #rejected = false; // a 4401, and no `auth` since
  /** @type {RealtimeError | null} the last complaint on the present link */
  #said = null;
  /** @type {RealtimeError | null} with which everything ends once it is closed */
  #over = null;
  #resume = NaN; // clock time that a draining server gave us
  #keys = 0;
  /** @type {any} */
  #timer;
  #asked = false; // the server named the delay: don't come earlier
  #outbox;
  #urls;
  #token;
  #timeout;
  #backoff;
  #WebSocket;
  #clock;
  #random;
  #prefix = [...crypto.getRandomValues(new Uint32Array(4))].map((word) => word.toString(36)).join("");

  /**
   * @param {string | string[]} urls
   * @param {Options} [options]
   */
  constructor(urls, options = {}) {
    super();
    if (options.token && typeof options.token !== "function") {
      throw new TypeError("token is a function that returns a token");
    }
    this.#urls = [urls].flat().map(socketUrl);
    this.#token = options.token;
    this.#timeout = options.timeout ?? 10_000;
    this.#backoff = options.backoff ?? { min: 500, max: 20_000 };
    this.#WebSocket = options.WebSocket ?? WebSocket;
    this.#clock = options.clock ?? CLOCK;
    this.#random = options.random ?? Math.random;
    this.#outbox = new Outbox(
      this.#clock,
      options.queue ?? 256,
      () => (this.state === "online" ? this.#link : null),
      (error, tries) => this.#pause(error, tries),
    );
    globalThis.addEventListener?.("online", this.#wake);
    this.#open();
  }

  /**
   * Join a room, now or as soon as there is a connection, and again after each break, from where it was.
   * @param {string} name
   * @param {JoinOptions} [options]
   * @returns {Room} the same one until it is left or refused, whatever the options
   */
  join(name, options = {}) {
    const known = this.#rooms.get(name);
    if (known) return known;
    const room = this.#room(name, options, false);
    if (this.#over) this.#end(room, "left", this.#over);
    else if (this.state === "online") this.#join(room);
    return room;
  }

  /**
   * @param {string} name
   * @returns {Room | undefined} the room, if it was joined and not left or refused
   */
  room(name) {
    return this.#rooms.get(name);
  }

  /**
   * Send an event to the connection's own handlers, like `room.send`.
   * @param {string} event
   * @param {unknown} [data]
   * @param {SendOptions} [options]
   * @returns {Promise<any>}
   */
  send(event, data, { key = this.#key(), timeout } = {}) {
    if (this.#over) return Promise.reject(this.#over);
    return this.#outbox.push({ type: "event", event, data, key }, { lane: this, timeout });
  }

  /**
   * @param {string} event
   * @param {unknown} [data]
   * @returns {boolean} whether it went out
   */
  sendVolatile(event, data) {
    return this.#volatile({ type: "event", event, data });
  }

  /**
   * Ask the token callback now and give the server what it returns, e.g. after the user's rights changed.
   * @returns {Promise<void>} rejects with a RealtimeError when the callback fails or the server refuses
   */
  refresh() {
    return new Promise((resolve, reject) => {
      const link = this.state === "online" && this.#link;
      if (!link) return resolve(); // the next connection asks anyway
      this.#ask((error, token) => {
        if (error) return reject(error);
        const body = encode({ type: "auth", token, session: this.#session });
        link.request(body, (refusal, data) => {
          if (refusal) return reject(refusal);
          this.#session = data.session;
          resolve();
        });
      });
    });
  }

  /** Close for good: what was not acknowledged fails, rooms end. */
  close() {
    this.#finish(1000, new RealtimeError("closed"));
  }

  #open() {
    this.#clock.clearTimeout(this.#timer);
    const url = this.#urls[this.#turn++ % this.#urls.length];
    const turn = this.#turn;
    this.#said = null;
    this.#set("connecting");
    // The token comes before the socket: once that is open, the server waits for `auth` for seconds only.
    this.#ask((error, token) => {
      if (turn !== this.#turn) return;
      if (error) {
        this.#warn(error);
        return this.#ended(1006, error.code);
      }
      try {
        this.#link = new Link(url, this.#WebSocket, this.#clock, {
          opened: (link) => this.#authenticate(link, token),
          frame: (frame, link) => this.#frame(frame, link),
          ended: (code, reason) => turn === this.#turn && this.#ended(code, reason),
        });
      } catch (cause) {
        report(cause); // e.g. ws: on a page that came by https:
        this.#ended(1006, "");
      }
    });
  }

  /** @param {(error: RealtimeError | null, token?: string) => void} done called once */
  #ask(done) {
    const ask = this.#token;
    if (!ask) return done(null);
    let open = true;
    /** @type {typeof done} */
    const settle = (error, token) => {
      if (!open) return;
      open = false;
      this.#clock.clearTimeout(timer);
      done(error, token);
    };
    const timer = this.#clock.setTimeout(() => settle(new RealtimeError("token_timeout")), this.#timeout);
    new Promise((resolve) => resolve(ask())).then(
      (token) => settle(null, /** @type {any} */ (token) ?? undefined),
      (cause) => settle(new RealtimeError("token_failed", `the token callback failed: ${cause}`)),
    );
  }

  /**
   * @param {Link} link
   * @param {string} [token]
   */
  #authenticate(link, token) {
    const served = [...this.#rooms.values()].filter((room) => room.served && room.position).slice(0, SINCE);
    const since = Object.fromEntries(served.map((room) => [room.name, room.position]));
    link.request(encode({ type: "auth", token, session: this.#session, since }), (error, data) => {
      if (error) {
        if (error.code === "disconnected") return;
        this.#warn((this.#said = error));
        return link.end(REFUSED[error.code] ?? 1013, `${error.code};${error.retryAfter ?? ""}`);
      }
      link.live();
      this.#online = this.#clock.now();
      this.#rejected = false;
      const user = data.user ?? null;
      // What one user wrote isn't sent in the name of the next one.
      if (this.#session !== undefined && user !== this.user) this.#outbox.drop(new RealtimeError("user_changed"));
      this.#session = data.session;
      this.user = user;
      for (const room of this.#rooms.values()) if (!room.served) this.#join(room);
      this.#clock.setTimeout(() => this.#link === link && this.#forsaken(), this.#timeout);
      this.#set("online");
      this.#outbox.pump();
    });
  }

  /** Rooms that the server had joined this connection to, and has not again. */
  #forsaken() {
    for (const room of [...this.#rooms.values()]) {
      if (room.served && room.state === "joining") this.#end(room, "left", new RealtimeError("not_joined"));
    }
  }

  /**
   * @param {number} code
   * @param {string} reason as the server closes: `code` or `code;retry_after`
   */
  #ended(code, reason) {
    const now = this.#clock.now();
    const stable = now - this.#online >= STABLE;
    const announced = !isNaN(this.#resume);
    const row = CLOSE_CODES[code];
    const [name, after] = reason.split(";");
    const why = name || row?.name || "connection_lost";
    const asked = Math.max(Number(after) ? this.#spread(Number(after)) : 0, this.#resume - now || 0);
    const error = this.#said?.code === why ? this.#said : new RealtimeError(why, this.#outside(why));
    this.#link = null;
    this.#online = this.#resume = NaN;
    this.connection = null;
    for (const room of this.#rooms.values()) room.state = "joining";
    if (row?.reconnect === "no" || (row?.reconnect === "token" && this.#rejected)) {
      this.#finish(code, error);
      if (error !== this.#said) this.#warn(error);
      return;
    }
    if (row?.reconnect === "token") this.#rejected = true;
    if (stable) this.#attempt = 0;
    // A draining server says when.
    const retryIn = stable && announced ? asked : Math.max(asked, this.#jitter(this.#attempt++));
    this.#asked = asked > 0;
    this.#timer = this.#clock.setTimeout(() => this.#open(), retryIn);
    this.#set("waiting", { code, reason: why, retryIn });
  }

  /** The browser is back on a network. */
  #wake = () => {
    if (this.state === "waiting" && !this.#asked) this.#open();
  };

  /**
   * @param {number} code
   * @param {RealtimeError} error
   */
  #finish(code, error) {
    if (this.closed) return;
    this.#turn++; // whatever is opening is too late
    this.#clock.clearTimeout(this.#timer);
    globalThis.removeEventListener?.("online", this.#wake);
    const [reason, message] = [error.code, error.message];
    this.#over = error;
    this.closed = { code, name: CLOSE_CODES[code]?.name ?? "closed", reason, message };
    this.state = "closed";
    this.connection = null;
    const link = this.#link;
    this.#link = null;
    link?.end(code, reason);
    this.#outbox.drop(error);
    for (const room of [...this.#rooms.values()]) this.#end(room, "left", error);
    this.#set("closed", { code, reason, message });
  }

  /**
   * @param {Client["state"]} state
   * @param {{code?: number, reason?: string, message?: string, retryIn?: number}} [detail]
   */
  #set(state, detail) {
    this.state = state;
    this.emit("rt:state", { state, ...detail });
  }

  /**
   * @param {any} frame
   * @param {Link} link
   */
  #frame(frame, link) {
    const room = this.#rooms.get(frame.room);
    // Before the reply to a join, frames belong to an earlier stay in the room.
    const there = room?.state === "joined" ? room : undefined;
    switch (frame.type) {
      case "welcome":
        this.connection = frame.connection;
        break;
      case "event":
        this.#event(frame, link, there);
        break;
      case "presence":
        there?.presence.diff(frame);
        break;
      case "joined":
        if (!room || (room.served && !there)) this.#served(frame, room);
        break;
      case "left":
        // What the server had joined and won't again is over, too.
        if (room && (there || room.served)) this.#end(room, "left", new RealtimeError(frame.code, removed(frame)));
        break;
      case "reset":
        there?.reset(frame);
        break;
      case "stale":
      case "fresh":
        if (frame.room) there?.emit(`rt:${frame.type}`);
        else {
          this.emit(`rt:${frame.type}`);
          for (const one of this.#rooms.values()) if (!mirrored(one)) one.emit(`rt:${frame.type}`);
        }
        break;
      case "expiring":
        if (this.#token) this.#renew(link);
        break;
      case "reconnect": {
        const wait = this.#spread(frame.after);
        this.#resume = this.#clock.now() + wait;
        this.#clock.setTimeout(() => link.end(1012, frame.reason), wait);
        break;
      }
      case "limits":
        this.emit("rt:limits", frame);
        break;
      case "error":
        this.#said = new RealtimeError(
          frame.code,
          this.#outside(frame.code) || frame.message,
          frame.retry_after,
          frame.fields,
        );
        this.#warn(this.#said);
    }
  }

  /**
   * @param {any} frame
   * @param {Link} link
   * @param {Room} [room]
   */
  #event(frame, link, room) {
    const { id } = frame;
    /** @type {Promise<unknown> | undefined} */
    let result;
    if (!frame.room) result = this.emit(frame.event, frame.data, info(frame, false));
    else if (room?.accept(frame)) result = room.deliver(frame, false);
    if (id === undefined) return;
    /** @param {string} code */
    const refuse = (code, message = "") => void link.send(encode({ type: "reply", id, error: { code, message } }));
    if (!result) return refuse("unknown_event", `the page has no listener for ${frame.event}`);
    result.then(
      (data) => {
        try {
          link.send(encode({ type: "reply", id, data: data ?? null }));
        } catch (error) {
          report(error);
          refuse("internal");
        }
      },
      () => refuse("internal"),
    );
  }

  /**
   * The server joined this connection to a room.
   * @param {any} frame
   * @param {Room} [known] of an earlier connection
   */
  #served(frame, known) {
    const room = known ?? this.#room(frame.room, {}, true);
    room.joined(frame);
    if (!known) this.emit("rt:joined", room);
    this.#outbox.pump();
  }

  /**
   * @param {string} name
   * @param {JoinOptions} options
   * @param {boolean} served
   */
  #room(name, options, served) {
    const room = new Room(name, options, served, (self) => ({
      push: (frame, entry) => this.#outbox.push(frame, entry),
      supersede: (lane) => this.#outbox.supersede(lane),
      volatile: (event, data) => this.#volatile({ type: "event", room: name, event, data }),
      leave: () => this.#leave(self),
      key: () => this.#key(),
      timeout: this.#timeout,
      mirror: mirrored(self) ? this : undefined,
    }));
    this.#rooms.set(name, room);
    return room;
  }

  /**
   * @param {Room} room
   * @param {number} [tries]
   */
  #join(room, tries = 0) {
    const link = this.#link;
    const stale = () => !link || this.#link !== link || this.#rooms.get(room.name) !== room;
    if (!link || stale()) return;
    try {
      const body = encode({ type: "join", room: room.name, since: room.position ?? undefined, ...room.self });
      link.request(body, (error, data) => {
        if (stale()) return;
        if (!error) {
          room.joined(data);
          this.#outbox.pump();
        } else if (RETRIED.has(error.code)) {
          this.#clock.setTimeout(() => this.#join(room, tries + 1), this.#pause(error, tries));
        } else this.#end(room, "refused", error);
      });
    } catch (error) {
      this.#end(room, "refused", /** @type {RealtimeError} */ (error)); // `meta` can't be sent
    }
  }

  /** @param {Room} room */
  #leave(room) {
    if (this.#rooms.get(room.name) !== room) return;
    if (this.state === "online") this.#link?.request(encode({ type: "leave", room: room.name }));
    this.#end(room, "left", new RealtimeError("left"));
  }

  /**
   * @param {Room} room
   * @param {"left" | "refused"} state
   * @param {RealtimeError} error
   */
  #end(room, state, error) {
    this.#rooms.delete(room.name);
    room.end(state, error);
    this.#outbox.drop(error, room);
  }

  /** @param {object} frame */
  #volatile(frame) {
    return this.state === "online" && !!this.#link?.send(encode(frame), true);
  }

  #key() {
    return `${this.#prefix}-${++this.#keys}`;
  }

  /** @param {number} tries */
  #jitter(tries) {
    return this.#random() * Math.min(this.#backoff.max, this.#backoff.min * 2 ** tries);
  }

  /**
   * @param {RealtimeError} error
   * @param {number} tries
   */
  #pause(error, tries) {
    return error.retryAfter ? error.retryAfter * 1000 : this.#jitter(tries);
  }

  /**
   * What the server says to everybody at once must not bring everybody back at once.
   * @param {number} seconds
   */
  #spread(seconds) {
    const ms = seconds * 1000;
    return ms + this.#random() * Math.max(250, ms / 5);
  }

  /**
   * Refresh, until it works or the link ends.
   * @param {Link} link
   * @param {number} [tries]
   */
  #renew(link, tries = 0) {
    if (this.#link !== link) return;
    this.refresh().catch((error) => {
      if (this.#link !== link) return;
      this.#warn(error);
      this.#clock.setTimeout(() => this.#renew(link, tries + 1), this.#pause(error, tries));
    });
  }

  /**
   * @param {string} code
   * @returns {string | undefined} what a refusal before `welcome` means
   */
  #outside(code) {
    return this.connection === null ? OUTSIDE[code] : undefined;
  }

  /** @param {RealtimeError} error */
  #warn(error) {
    if (!this.emit("rt:error", error)) console.warn(error);
  }
}

/** @param {{room: string, code: string}} frame */
function removed({ room, code }) {
  return code === "not_joined" ? "" : `the server removed this page from ${room}: ${code}`;
}

/** @param {Room} room the user's own, whose events the client emits as well */
function mirrored(room) {
  return room.served && room.name.startsWith("user:");
}

/** @param {string} url */
function socketUrl(url) {
  const parsed = new URL(url, globalThis.location?.href);
  parsed.protocol = parsed.protocol.replace("http", "ws");
  parsed.pathname = `${parsed.pathname.replace(/\/+$/, "")}/ws`;
  parsed.hash = "";
  return parsed.href;
}
