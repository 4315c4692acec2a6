/**
 * What waits to be sent and acknowledged: bounded, in order, across links, nothing accepted twice.
 *
 * Entries of one lane (a room's, say) go out one at a time, each after the answer to the one before it. With several
 * under way, the server could refuse one for its rate and accept the next, and order would be lost.
 */
import { RealtimeError } from "./errors.js";
import type { Link } from "./link.js";
import type { Room } from "./room.js";
import type { Retry } from "./retry.js";
import type { Clock, Frame, SendOptions, Waiting } from "./types.js";
export declare const RETRIED: Set<string>;
export declare class Outbox {
    #private;
    /**
     * @param {Clock} clock
     * @param {Retry} retry
     * @param {number} limit entries
     * @param {() => Link | null} link the authenticated one
     */
    constructor(clock: Clock, retry: Retry, limit: number, link: () => Link | null);
    /**
     * @param {string} event
     * @param {unknown} data
     * @param {SendOptions} [options]
     * @param {Room} [room]
     * @returns {Promise<any>} the data of the reply
     */
    send(event: string, data: unknown, { key, timeout }?: SendOptions, room?: Room): Promise<any>;
    /**
     * Now or never.
     * @param {string} event
     * @param {unknown} data
     * @param {Room} [room]
     * @returns {boolean} whether it went out
     */
    volatile(event: string, data: unknown, room?: Room): boolean;
    /**
     * @param {Frame} frame
     * @param {Waiting} waiting
     * @returns {Promise<any>} the data of the reply
     */
    push(frame: Frame, { lane, room, timeout }: Waiting): Promise<any>;
    /**
     * The server said what is left to spend.
     * @param {Link} link
     * @param {{event?: string, remaining: number, retry_after: number}} frame
     */
    pace(link: Link, frame: {
        event?: string;
        remaining: number;
        retry_after: number;
    }): void;
    /** Write whatever may go out now, and come back when the first of the rest may. */
    pump(): void;
    /**
     * Give up what waits for `room`, or for anything. What is under way to a room still gets its answer.
     * @param {RealtimeError} error
     * @param {Room} [room]
     */
    drop(error: RealtimeError, room?: Room): void;
    /**
     * Nothing more is sent.
     * @param {RealtimeError} error
     */
    close(error: RealtimeError): void;
    /**
     * A newer state makes those of `lane` that still wait superfluous.
     * @param {unknown} lane
     */
    supersede(lane: unknown): void;
}
