/** Who is in a room: a snapshot, kept up to date by numbered differences; a gap in the numbers asks for a new one. */
import { Emitter } from "./emitter.js";
import type { Presentee, Snapshot } from "./types.js";
/** Emits `change` with `{joined, updated, left}`, lists of `Presentee`: all of them empty where only `total` is new. */
export declare class Presence extends Emitter {
    #private;
    /** @type {Map<string, Presentee>} by user, or by connection where there is no user */
    members: Map<string, Presentee>;
    /** connections in the room, also those that a sample leaves out */
    total: number;
    seq: number;
    /** false: the room is too large, `members` is a sample */
    complete: boolean;
    /** @param {() => Promise<Snapshot>} ask */
    constructor(ask: () => Promise<Snapshot>);
}
