/** The client: one connection that comes back by itself, and what it hears. */

import { CLOSE_CODES } from "./codes.js";
import { Emitter } from "./emitter.js";
import { RealtimeError, report } from "./errors.js";
import { Link, encode } from "./link.js";
import { Outbox } from "./outbox.js";
import { Retry } from "./retry.js";
import { info } from "./room.js";
import { Rooms } from "./rooms.js";
import { token } from "./token.js";

export { CLOSE_CODES, RealtimeError };

/**
 * What TypeScript users name.
 * @typedef {import("./room.js").Room} Room
 * @typedef {import("./presence.js").Presence} Presence
 * @typedef {import("./types.js").Clock} Clock
 * @typedef {import("./types.js").Info} Info
 * @typedef {import("./types.js").JoinOptions} JoinOptions
 * @typedef {import("./types.js").Member} Member
 * @typedef {import("./types.js").Options} Options
 * @typedef {import("./types.js").Position} Position
 * @typedef {import("./types.js").Presentee} Presentee
 * @typedef {import("./types.js").SendOptions} SendOptions
 */

const LONGEST = 2 ** 31 - 1; // ms; a longer timer would fire at once
const SILENT = 3; // tries in a row at which nothing answered, after which the address may be wrong

/** How a refused `auth` ends the link, where the server doesn't close by itself. @type {Record<string, number>} */
const REFUSED = {
  unauthenticated: 4401,
  expired: 4401,
  forbidden: 4403,
  revoked: 4450,
  rate_limited: 4429,
  bad_frame: 4400,
};

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
 * @param {string | string[]} urls where the kit is mounted (`/realtime`, `https://example.com/realtime`); several
 *   processes or sites of one store: the first is tried first, and after a broken connection another one
 * @param {Options} [options]
 */
export function connect(urls, options) {
  return new Client(urls, options);
}

/**
 * Emits the connection's events and those of the user room with `(data, info)`, and
 *
 * - `rt:state` ({state, code, reason, message, retryIn});
 * - `rt:joined` (room): the server joined this connection to a room;
 * - `rt:error` (RealtimeError): what no promise tells; without a listener it is a warning on the console. `unreachable`
 *   once, when nothing has ever answered: the address may be wrong. It goes on trying;
 * - `rt:stale` and `rt:fresh`: the server's store is away, back;
 * - `rt:limits` ({event, remaining, retry_after}): what is left to spend; `send` keeps to it by itself.
 */
export class Client extends Emitter {
  /** @type {"connecting" | "online" | "waiting" | "closed"} */
  state = "connecting";
  /** @type {number | null} ms that it waits for the next try, from when it began to wait */
  retryIn = null;
  /** @type {{code: number, name: string, reason: string, message: string} | null} why it is closed for good */
  closed = null;
  /** @type {string | null} null: anonymous, or not yet known */
  user = null;
  /** @type {string | null} the public id of the present connection */
  connection = null;
  /** @type {string | undefined} kept in memory alone: a copied tab must not share it */
  #session;
  /** @type {Link | null} */
  #link = null;
  #turn = 0; // which opening is the present one
  #unanswered = 0; // tries in a row; NaN: something has answered, or the app was told
  /** @type {RealtimeError | null} the last complaint on the present link */
  #said = null;
  /** @type {any} */
  #timer;
  #rooms;
  #outbox;
  #retry;
  #urls; // the next one first
  #token;
  #timeout;
  #WebSocket;
  #clock;

  /**
   * @param {string | string[]} urls
   * @param {Options} [options]
   */
  constructor(urls, options = {}) {
    super();
    const { timeout = 10_000, queue = 256, backoff = { min: 500, max: 20_000 }, clock = CLOCK } = options;
    if (options.token && typeof options.token !== "function") {
      throw new TypeError("token is a function that returns a token");
    }
    this.#urls = [urls].flat().map(socketUrl);
    if (!this.#urls[0]) throw new TypeError("connect() takes an address, or several");
    this.#token = options.token;
    this.#timeout = timeout;
    this.#clock = clock;
    this.#WebSocket = options.WebSocket ?? WebSocket;
    this.#retry = new Retry(clock, backoff, options.random ?? Math.random, this.#urls.length);
    const ready = () => (this.state === "online" && this.#link?.open ? this.#link : null);
    this.#outbox = new Outbox(clock, this.#retry, queue, ready);
    this.#rooms = new Rooms(clock, this.#retry, this.#outbox, timeout, this);
    globalThis.addEventListener?.("online", this.#online);
    this.#open();
  }

  /**
   * Join a room, now or as soon as there is a connection, and again after each break, from where it was.
   * @param {string} name
   * @param {JoinOptions} [options]
   * @returns {Room} the same one until it is left or refused, whatever the options
   */
  join(name, options = {}) {
    return this.#rooms.join(name, options);
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
  send(event, data, options) {
    return this.#outbox.send(event, data, options);
  }

  /**
   * @param {string} event
   * @param {unknown} [data]
   * @returns {boolean} whether it went out; throws a RealtimeError for what never could
   */
  sendVolatile(event, data) {
    return this.#outbox.volatile(event, data);
  }

  /**
   * Change how presence shows this connection in all rooms that are joined; `room.setStatus` does for one.
   * @param {"online" | "away"} [status] undefined: as it is
   * @param {any} [meta] undefined: as it is
   * @returns {Promise<void>}
   */
  async setStatus(status, meta) {
    await Promise.all(this.#rooms.all.map((room) => room.setStatus(status, meta)));
  }

  /**
   * Ask the token function now and give the server what it returns, e.g. after the user's rights changed.
   * @returns {Promise<void>} rejects with a RealtimeError when the function fails or the server refuses
   */
  refresh() {
    return new Promise((resolve, reject) => {
      const link = this.state === "online" && this.#link;
      if (!link) return resolve(); // the next connection asks anyway
      token(this.#token, this.#timeout, this.#clock, (error, given) => {
        if (error) return reject(error);
        const body = encode({ type: "auth", token: given, session: this.#session });
        link.request(body, (refusal, data) => {
          if (refusal) return reject(refusal);
          this.#session = data.session;
          resolve();
        });
      });
    });
  }

  /**
   * Connect now instead of waiting for the next try: for a "try now" button. Does nothing in another state, nor while
   * the wait is one that the server asked for.
   */
  retry() {
    if (this.state === "waiting" && !this.#retry.asked) this.#open();
  }

  /** Close for good: what was not acknowledged fails, rooms end. */
  close() {
    this.#finish(1000, new RealtimeError("closed"));
  }

  #open() {
    this.#clock.clearTimeout(this.#timer);
    const turn = ++this.#turn;
    this.#said = null;
    this.#set("connecting");
    // The token comes before the socket: once that is open, the server waits for `auth` for seconds only.
    token(this.#token, this.#timeout, this.#clock, (error, given) => {
      if (turn !== this.#turn) return;
      if (error) {
        this.#warn(error);
        return this.#ended(1006, error.code);
      }
      const url = /** @type {string} */ (this.#urls.shift());
      this.#urls.push(url);
      try {
        this.#link = new Link(url, this.#WebSocket, this.#clock, {
          opened: (link) => this.#authenticate(link, given),
          frame: (frame, link) => this.#frame(frame, link),
          ended: (code, reason) => turn === this.#turn && this.#ended(code, reason),
        });
      } catch (cause) {
        report(cause); // e.g. ws: on a page that came by https:
        this.#ended(1006, "");
      }
    });
  }

  /**
   * @param {Link} link
   * @param {string} [given] token
   */
  #authenticate(link, given) {
    const body = encode({ type: "auth", token: given, session: this.#session, since: this.#rooms.since });
    link.request(body, (error, data) => {
      if (error) {
        if (error.code === "disconnected") return;
        this.#warn((this.#said = error));
        return link.end(REFUSED[error.code] ?? 1013, `${error.code};${error.retryAfter ?? ""}`);
      }
      link.live();
      this.#retry.online();
      const user = data.user ?? null;
      // What one user wrote isn't sent in the name of the next one.
      if (this.#session !== undefined && user !== this.user) this.#outbox.drop(new RealtimeError("user_changed"));
      this.#session = data.session;
      this.user = user;
      this.#rooms.online(link);
      this.#set("online");
      this.#outbox.pump();
    });
  }

  /**
   * @param {number} code
   * @param {string} reason as the server closes: `code` or `code;retry_after`
   */
  #ended(code, reason) {
    const [name, after] = reason.split(";");
    const why = name || CLOSE_CODES[code]?.name || "connection_lost";
    const error = this.#said?.code === why ? this.#said : new RealtimeError(why, this.#outside(why));
    const retryIn = this.#retry.ended(code, Number(after));
    const missing = this.#missing(code);
    // The next try is elsewhere; but one that was there a moment ago comes before those that were not.
    if (this.state === "online") this.#urls.splice(1, 0, ...this.#urls.splice(-1));
    this.#link = null;
    this.connection = null;
    this.#rooms.offline();
    if (retryIn === null) {
      this.#finish(code, error);
      if (error !== this.#said) this.#warn(error);
      return;
    }
    this.#timer = this.#clock.setTimeout(() => this.#open(), retryIn);
    this.#set("waiting", { code, reason: why, retryIn });
    if (missing) this.#warn(missing);
  }

  /**
   * Whether the link that ended with `code` makes it likely that nothing is at the address: a browser can't tell a path
   * without a kit from a broken network.
   * @param {number} code
   * @returns {RealtimeError | undefined} what to tell, once
   */
  #missing(code) {
    if (!this.#link) return; // no token, say: nothing was tried
    if (this.connection !== null || CLOSE_CODES[code]) this.#unanswered = NaN;
    if (!(++this.#unanswered >= Math.max(SILENT, this.#urls.length))) return;
    this.#unanswered = NaN;
    // Without the query, which may hold a ticket.
    const where = this.#urls.map((url) => new URL(url)).map(({ origin, pathname }) => origin + pathname);
    const message = `nothing answers at ${where.join(", ")}: is the server running, and the kit mounted there?`;
    return new RealtimeError("unreachable", message);
  }

  /** The browser is back on a network. */
  #online = () => this.retry();

  /**
   * @param {number} code
   * @param {RealtimeError} error
   */
  #finish(code, error) {
    if (this.closed) return;
    this.#turn++; // whatever is opening is too late
    this.#clock.clearTimeout(this.#timer);
    globalThis.removeEventListener?.("online", this.#online);
    const [reason, message] = [error.code, error.message];
    this.closed = { code, name: CLOSE_CODES[code]?.name ?? "closed", reason, message };
    this.state = "closed";
    this.connection = null;
    const link = this.#link;
    this.#link = null;
    this.#rooms.offline();
    link?.end(code, reason);
    this.#outbox.close(error);
    this.#rooms.close(error);
    this.#set("closed", { code, reason, message });
  }

  /**
   * @param {Client["state"]} state
   * @param {{code?: number, reason?: string, message?: string, retryIn?: number}} [detail]
   */
  #set(state, detail) {
    this.state = state;
    this.retryIn = detail?.retryIn ?? null;
    this.emit("rt:state", { state, ...detail });
  }

  /**
   * @param {any} frame
   * @param {Link} link
   */
  #frame(frame, link) {
    switch (frame.type) {
      case "welcome":
        this.connection = frame.connection;
        break;
      case "event":
        this.#event(frame, link);
        break;
      case "expiring":
        if (this.#token) this.#renew(link);
        break;
      case "reconnect":
        this.#clock.setTimeout(() => link.end(1012, frame.reason), this.#retry.announce(frame.after));
        break;
      case "limits":
        this.#outbox.pace(link, frame);
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
        break;
      default:
        this.#rooms.frame(frame);
    }
  }

  /**
   * @param {any} frame
   * @param {Link} link
   */
  #event(frame, link) {
    const { id } = frame;
    const result = frame.room ? this.#rooms.frame(frame) : this.emit(frame.event, frame.data, info(frame, false));
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
   * Refresh, until it works or the link ends.
   * @param {Link} link
   * @param {number} [tries]
   */
  #renew(link, tries = 0) {
    if (this.#link !== link) return;
    this.refresh().catch((error) => {
      if (this.#link !== link) return;
      this.#warn(error);
      this.#clock.setTimeout(() => this.#renew(link, tries + 1), this.#retry.pause(error, tries));
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

/** @param {string} url */
function socketUrl(url) {
  const parsed = new URL(url, globalThis.location?.href);
  parsed.protocol = parsed.protocol.replace("http", "ws");
  parsed.pathname = `${parsed.pathname.replace(/\/+$/, "")}/ws`;
  parsed.hash = "";
  return parsed.href;
}
