/** A room as the app holds it: what it hears, how far, who is there, and what it sends. */
import { Emitter } from "./emitter.js";
import { RealtimeError } from "./errors.js";
import { Presence } from "./presence.js";
import type { Info, Position, SendOptions } from "./types.js";
/** @import { Rooms } from "./rooms.js" */
/** @import { Frame, Info, JoinOptions, Position, SendOptions } from "./types.js" */
/**
 * Emits the room's events with `(data, info)`, and
 *
 * - `rt:joined` ({recovered}): it is joined, for the first time or again, and what was missed is delivered;
 * - `rt:recovered` ({count}): so many missed events were just delivered;
 * - `rt:reset` ({reason, position}): events were lost, load your state anew;
 * - `rt:stale` and `rt:fresh`: the server's store is away, events may be late; it is back;
 * - `rt:left` ({code}) and `rt:refused` (a RealtimeError): the object is done, join again for a new one.
 */
export declare class Room extends Emitter {
    #private;
    name: string;
    served: boolean;
    /** @type {"joining" | "joined" | "left" | "refused"} */
    state: "joining" | "joined" | "left" | "refused";
    /** @type {Position | null} the last kept event that was delivered; null: none yet, or an ephemeral room */
    position: Position | null;
    /** @type {RealtimeError | null} why it was left or refused; what is sent here is rejected with it */
    error: RealtimeError | null;
    /** the server's store is away: events may be late */
    stale: boolean;
    presence: Presence;
    /** @type {Promise<void>} the first join; rejects with a RealtimeError */
    get ready(): Promise<void>;
    /**
     * Send an event; the room's are sent in order, one after the other.
     * @param {string} event
     * @param {unknown} [data]
     * @param {SendOptions} [options]
     * @returns {Promise<any>} what the server's handler returned; rejects with a RealtimeError
     */
    send(event: string, data?: unknown, options?: SendOptions): Promise<any>;
    /**
     * Send what is worthless a moment later (typing, cursors): now or never.
     * @param {string} event
     * @param {unknown} [data]
     * @returns {boolean} whether it went out; throws a RealtimeError for what never could
     */
    sendVolatile(event: string, data?: unknown): boolean;
    /**
     * Older events, oldest first.
     * @param {{before?: Position, limit?: number, timeout?: number}} [options]
     * @returns {Promise<{events: any[], more: boolean, truncated: boolean}>}
     */
    history({ before, limit, timeout }?: {
        before?: Position;
        limit?: number;
        timeout?: number;
    }): Promise<{
        events: any[];
        more: boolean;
        truncated: boolean;
    }>;
    /**
     * Change how presence shows this connection; kept over reconnects.
     * @param {"online" | "away"} [status] undefined: as it is
     * @param {any} [meta] undefined: as it is
     * @returns {Promise<void>} rejects with a RealtimeError; what JSON can't say leaves all as it was
     */
    setStatus(status?: "online" | "away", meta?: any): Promise<void>;
    /** Leave; what still waits to be sent here fails. */
    leave(): void;
}
/**
 * @param {any} frame
 * @param {boolean} recovered
 * @param {string} [room]
 * @returns {Info}
 */
export declare function info({ from, position, at, event }: any, recovered: boolean, room?: string): Info;
