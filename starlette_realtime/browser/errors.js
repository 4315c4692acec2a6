/** Errors: the one the app catches, and where errors of the app's own listeners go. */

/** What went wrong, by `code`: the server's word, or one of ours in `MESSAGES`. */
export class RealtimeError extends Error {
  /**
   * @param {string} code
   * @param {string} [message]
   * @param {number} [retryAfter] seconds
   * @param {Record<string, string>} [fields] field of the payload → what is wrong with it
   */
  constructor(code, message, retryAfter, fields) {
    super(message || MESSAGES[code] || code);
    this.name = "RealtimeError";
    this.code = code;
    this.retryAfter = retryAfter;
    this.fields = fields;
  }
}

/** @type {Record<string, string>} */
const MESSAGES = {
  closed: "the app has closed the client",
  disconnected: "the link broke before the answer",
  left: "the app has left the room: join it again",
  not_joined: "the server has not joined this page to the room again",
  queue_full: "too much is waiting to be sent: raise `queue`, or await what you send",
  timeout: "no answer in time; it may still have arrived",
  token_timeout: "the token function did not settle in time",
  too_large: "larger than the server takes: send less, or raise its limit",
  uncertain: "sent, but never answered: it may have arrived, or not; ask the server before you send it again",
  user_changed: "another user signed in before this was sent",
};

/** @param {unknown} error a listener's: it must be seen, and must not break what called the listener */
export function report(error) {
  if (typeof reportError === "function") reportError(error);
  else console.error(error);
}
