/** Asking the app for a token: within a time, and nothing but a token is taken for one. */

import { RealtimeError } from "./errors.js";

/** @import { Clock, Options } from "./types.js" */

/**
 * @param {Options["token"]} ask none: there is no token, and that is known at once
 * @param {number} timeout ms
 * @param {Clock} clock
 * @param {(error: RealtimeError | null, token?: string) => void} done called once
 */
export function token(ask, timeout, clock, done) {
  if (!ask) return done(null);
  let open = true;
  /** @type {typeof done} */
  const settle = (error, given) => {
    if (!open) return;
    open = false;
    clock.clearTimeout(timer);
    done(error, given);
  };
  /** @param {string} why */
  const fail = (why) => settle(new RealtimeError("token_failed", `the token function ${why}`));
  const timer = clock.setTimeout(() => settle(new RealtimeError("token_timeout")), timeout);
  new Promise((resolve) => resolve(ask())).then(
    (given) => {
      if (given === null || given === undefined) settle(null);
      else if (typeof given === "string") settle(null, given);
      else if (typeof given === "object") fail("returned an object, not a string: await response.text()?");
      else fail(`returned a ${typeof given}, not a string`);
    },
    (cause) => fail(`failed: ${cause}`),
  );
}
