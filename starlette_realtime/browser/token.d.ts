/** Asking the app for a token: within a time, and nothing but a token is taken for one. */
import { RealtimeError } from "./errors.js";
import type { Clock, Options } from "./types.js";
/** @import { Clock, Options } from "./types.js" */
/**
 * @param {Options["token"]} ask none: there is no token, and that is known at once
 * @param {number} timeout ms
 * @param {Clock} clock
 * @param {(error: RealtimeError | null, token?: string) => void} done called once
 */
export declare function token(ask: Options["token"], timeout: number, clock: Clock, done: (error: RealtimeError | null, token?: string) => void): void;
