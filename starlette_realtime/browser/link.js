/** One WebSocket from its opening to its end: frames out and in, replies matched to commands, silence noticed. */

import { RealtimeError } from "./errors.js";

/** @import { Clock, Done, Owner } from "./types.js" */

const SUBPROTOCOL = "starlette-realtime.v1.json";
const GRACE = 15_000; // ms without a frame beyond the heartbeat, and for the opening and `auth` each
const CLOSING = 2; // WebSocket.CLOSING; CLOSED is more
const DEPTH = 32; // the server's own bound
const VOLATILE = 65_536; // bytes waiting in the socket above which volatile events are dropped

/**
 * A frame's JSON. What the server's door check would refuse throws `invalid_payload` here, where the stack still
 * says who sent it: the server can't tell which command a malformed frame was.
 * @param {unknown} frame
 */
export function encode(frame) {
  try {
    return JSON.stringify(frame, door());
  } catch (cause) {
    // Not ours are a circle's, and those of the app's own `toJSON`.
    throw cause instanceof RealtimeError ? cause : new RealtimeError("invalid_payload", `not for JSON: ${cause}`);
  }
}

/** @returns {(this: unknown, key: string, value: unknown) => unknown} for `JSON.stringify`, called with each value */
function door() {
  const depths = new Map();
  return function (_, value) {
    const depth = (depths.get(this) ?? 0) + 1;
    let wrong;
    if (typeof value === "number") {
      if (!Number.isFinite(value)) wrong = "JSON has no NaN and no infinity";
      // From 1e21 on JSON has an exponent, and so a double.
      else if (Number.isInteger(value) && Math.abs(value) > 2 ** 53 && Math.abs(value) < 1e21) {
        wrong = "an integer beyond 2^53 loses digits: send a string";
      }
    } else if (typeof value === "bigint") {
      wrong = "JSON has no BigInt: send a string";
    } else if (typeof value === "string") {
      if (/\p{Cs}/u.test(value)) wrong = "a string has half a surrogate pair";
    } else if (value && typeof value === "object") {
      if (depth > DEPTH) wrong = `nested deeper than ${DEPTH}`;
      if (/\p{Cs}/u.test(Object.keys(value).join())) wrong = "a key has half a surrogate pair";
      depths.set(value, depth);
    }
    if (wrong) throw new RealtimeError("invalid_payload", wrong);
    return value;
  };
}

export class Link {
  /** @type {{message_bytes?: number}} */
  limits = {};
  #heard;
  #limit = GRACE;
  #live = false;
  #ended = false;
  #last = 0;
  /** @type {Map<number, Done>} */
  #pending = new Map();
  /** @type {Map<string | undefined, number>} clock time before which an event, or anything, is to rest */
  #rests = new Map();
  /** @type {any} */
  #timer;
  #socket;
  #clock;
  #owner;

  /**
   * @param {string} url
   * @param {typeof WebSocket} Socket
   * @param {Clock} clock
   * @param {Owner} owner
   */
  constructor(url, Socket, clock, owner) {
    this.#clock = clock;
    this.#owner = owner;
    this.#heard = clock.now();
    const socket = (this.#socket = new Socket(url, SUBPROTOCOL));
    socket.onopen = () => {
      this.#heard = clock.now();
      owner.opened(this);
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.end(code, reason);
    this.#watch();
  }

  /** After `auth` every frame is a sign of life; before, all of the opening has one grace. */
  live() {
    this.#live = true;
    this.#heard = this.#clock.now();
  }

  /**
   * The server said what is left to spend, of one event or in all.
   * @param {{event?: string, remaining: number, retry_after: number}} frame
   */
  pace({ event, remaining, retry_after }) {
    this.#rests.set(event, remaining > 0 ? 0 : this.#clock.now() + retry_after * 1000);
  }

  /**
   * @param {string} [event]
   * @returns {number} ms for which the server would refuse it; none: 0 or less
   */
  rest(event) {
    return Math.max(this.#rests.get(undefined) ?? 0, this.#rests.get(event) ?? 0) - this.#clock.now();
  }

  /** Whether what is written may still get there: a socket that the server is closing drops it. */
  get open() {
    return !(this.#ended || this.#socket.readyState >= CLOSING);
  }

  /**
   * Send what wants no answer.
   * @param {string} body
   * @param {boolean} [volatile] drop it rather than let it wait
   * @returns {boolean} whether it went out
   */
  send(body, volatile = false) {
    if (!this.open || (volatile && this.#socket.bufferedAmount > VOLATILE)) return false;
    const limit = this.limits.message_bytes;
    // Refused here because the server's answer is a close that is final.
    if (limit && body.length * 3 > limit && new TextEncoder().encode(body).length > limit) {
      throw new RealtimeError("too_large");
    }
    this.#socket.send(body);
    return true;
  }

  /**
   * Send a command; `done` is called once, in the order of frames, and with `disconnected` when the link ends first.
   * @param {string} body
   * @param {Done} [done]
   */
  request(body, done) {
    if (this.#ended) return done?.(new RealtimeError("disconnected"));
    const id = ++this.#last;
    this.send(`{"id":${id},${body.slice(1)}`);
    if (done) this.#pending.set(id, done);
  }

  /**
   * The link is over, now: a dead network may not let the socket say so for minutes, hence its handlers come off.
   * @param {number} code
   * @param {string} reason
   */
  end(code, reason) {
    if (this.#ended) return;
    this.#ended = true;
    const socket = this.#socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code === 1000 ? code : undefined); // without a code presence lingers there, for the next link
    this.#clock.clearTimeout(this.#timer);
    this.#owner.ended(code, reason); // first, so that nobody writes to this link because of what follows
    for (const done of this.#pending.values()) done(new RealtimeError("disconnected"));
  }

  /** @param {string} text */
  #receive(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.end(1006, "bad_frame"); // it may have been an event: connect again and resume
    }
    if (this.#live) this.#heard = this.#clock.now();
    if (frame.type === "ping") this.send('{"type":"pong"}');
    else if (frame.type === "reply") {
      const done = this.#pending.get(frame.id);
      this.#pending.delete(frame.id);
      const error = frame.error;
      done?.(error ? new RealtimeError(error.code, error.message, error.retry_after, error.fields) : null, frame.data);
    } else {
      if (frame.type === "welcome") {
        this.limits = frame.limits;
        // Without pings silence says nothing.
        this.#limit = frame.heartbeat > 0 ? GRACE + frame.heartbeat * 1000 : Infinity;
      }
      this.#owner.frame(frame, this);
    }
  }

  #watch() {
    const left = this.#heard + (this.#live ? this.#limit : GRACE) - this.#clock.now();
    if (left <= 0) this.end(1006, "silent");
    else if (left < Infinity) this.#timer = this.#clock.setTimeout(() => this.#watch(), left);
  }
}
