/** The client: one connection that comes back by itself, and what it hears. */
import { CLOSE_CODES } from "./codes.js";
import { Emitter } from "./emitter.js";
import { RealtimeError } from "./errors.js";
export { CLOSE_CODES, RealtimeError };
export type Room = import("./room.js").Room;
export type Presence = import("./presence.js").Presence;
export type Clock = import("./types.js").Clock;
export type Info = import("./types.js").Info;
export type JoinOptions = import("./types.js").JoinOptions;
export type Member = import("./types.js").Member;
export type Options = import("./types.js").Options;
export type Position = import("./types.js").Position;
export type Presentee = import("./types.js").Presentee;
export type SendOptions = import("./types.js").SendOptions;
/**
 * Connect, at once, and again whenever the connection breaks.
 * @param {string | string[]} urls where the kit is mounted (`/realtime`, `https://example.com/realtime`); several
 *   processes or sites of one store: the first is tried first, and after a broken connection another one
 * @param {Options} [options]
 */
export declare function connect(urls: string | string[], options?: Options): Client;
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
export declare class Client extends Emitter {
    #private;
    /** @type {"connecting" | "online" | "waiting" | "closed"} */
    state: "connecting" | "online" | "waiting" | "closed";
    /** @type {number | null} ms that it waits for the next try, from when it began to wait */
    retryIn: number | null;
    /** @type {{code: number, name: string, reason: string, message: string} | null} why it is closed for good */
    closed: {
        code: number;
        name: string;
        reason: string;
        message: string;
    } | null;
    /** @type {string | null} null: anonymous, or not yet known */
    user: string | null;
    /** @type {string | null} the public id of the present connection */
    connection: string | null;
    /**
     * @param {string | string[]} urls
     * @param {Options} [options]
     */
    constructor(urls: string | string[], options?: Options);
    /**
     * Join a room, now or as soon as there is a connection, and again after each break, from where it was.
     * @param {string} name
     * @param {JoinOptions} [options]
     * @returns {Room} the same one until it is left or refused, whatever the options
     */
    join(name: string, options?: JoinOptions): Room;
    /**
     * @param {string} name
     * @returns {Room | undefined} the room, if it was joined and not left or refused
     */
    room(name: string): Room | undefined;
    /**
     * Send an event to the connection's own handlers, like `room.send`.
     * @param {string} event
     * @param {unknown} [data]
     * @param {SendOptions} [options]
     * @returns {Promise<any>}
     */
    send(event: string, data?: unknown, options?: SendOptions): Promise<any>;
    /**
     * @param {string} event
     * @param {unknown} [data]
     * @returns {boolean} whether it went out; throws a RealtimeError for what never could
     */
    sendVolatile(event: string, data?: unknown): boolean;
    /**
     * Change how presence shows this connection in all rooms that are joined; `room.setStatus` does for one.
     * @param {"online" | "away"} [status] undefined: as it is
     * @param {any} [meta] undefined: as it is
     * @returns {Promise<void>}
     */
    setStatus(status?: "online" | "away", meta?: any): Promise<void>;
    /**
     * Ask the token function now and give the server what it returns, e.g. after the user's rights changed.
     * @returns {Promise<void>} rejects with a RealtimeError when the function fails or the server refuses
     */
    refresh(): Promise<void>;
    /**
     * Connect now instead of waiting for the next try: for a "try now" button. Does nothing in another state, nor while
     * the wait is one that the server asked for.
     */
    retry(): void;
    /** Close for good: what was not acknowledged fails, rooms end. */
    close(): void;
}
