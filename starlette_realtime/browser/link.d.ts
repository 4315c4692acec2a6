/** One WebSocket from its opening to its end: frames out and in, replies matched to commands, silence noticed. */
import type { Clock, Done, Owner } from "./types.js";
/**
 * A frame's JSON. What the server's door check would refuse throws `invalid_payload` here, where the stack still
 * says who sent it: the server can't tell which command a malformed frame was.
 * @param {unknown} frame
 */
export declare function encode(frame: unknown): string;
export declare class Link {
    #private;
    /** @type {{message_bytes?: number}} */
    limits: {
        message_bytes?: number;
    };
    /**
     * @param {string} url
     * @param {typeof WebSocket} Socket
     * @param {Clock} clock
     * @param {Owner} owner
     */
    constructor(url: string, Socket: typeof WebSocket, clock: Clock, owner: Owner);
    /** After `auth` every frame is a sign of life; before, all of the opening has one grace. */
    live(): void;
    /**
     * The server said what is left to spend, of one event or in all.
     * @param {{event?: string, remaining: number, retry_after: number}} frame
     */
    pace({ event, remaining, retry_after }: {
        event?: string;
        remaining: number;
        retry_after: number;
    }): void;
    /**
     * @param {string} [event]
     * @returns {number} ms for which the server would refuse it; none: 0 or less
     */
    rest(event?: string): number;
    /** Whether what is written may still get there: a socket that the server is closing drops it. */
    get open(): boolean;
    /**
     * Send what wants no answer.
     * @param {string} body
     * @param {boolean} [volatile] drop it rather than let it wait
     * @returns {boolean} whether it went out
     */
    send(body: string, volatile?: boolean): boolean;
    /**
     * Send a command; `done` is called once, in the order of frames, and with `disconnected` when the link ends first.
     * @param {string} body
     * @param {Done} [done]
     */
    request(body: string, done?: Done): void;
    /**
     * The link is over, now: a dead network may not let the socket say so for minutes, hence its handlers come off.
     * @param {number} code
     * @param {string} reason
     */
    end(code: number, reason: string): void;
}
