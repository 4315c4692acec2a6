/** When to come back: what each end of a link means for the next one, so that clients don't come back as a herd. */
import type { RealtimeError } from "./errors.js";
import type { Clock } from "./types.js";
export declare class Retry {
    #private;
    /** The server named the delay of the present wait: nobody comes earlier. */
    asked: boolean;
    /**
     * @param {Clock} clock
     * @param {{min: number, max: number}} backoff ms
     * @param {() => number} random
     * @param {number} addresses that are tried in turn: all of them before the backoff grows
     */
    constructor(clock: Clock, backoff: {
        min: number;
        max: number;
    }, random: () => number, addresses: number);
    /** The link is authenticated. */
    online(): void;
    /**
     * The server is about to end the link.
     * @param {number} seconds
     * @returns {number} ms after which to end it ourselves
     */
    announce(seconds: number): number;
    /**
     * The link has ended.
     * @param {number} code
     * @param {number} seconds that the server named with it, or NaN
     * @returns {number | null} ms until the next try; null: never
     */
    ended(code: number, seconds: number): number | null;
    /**
     * @param {RealtimeError} error
     * @param {number} tries before this one
     * @returns {number} ms after which to try a refused command again
     */
    pause(error: RealtimeError, tries: number): number;
}
