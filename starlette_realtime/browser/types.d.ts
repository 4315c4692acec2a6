/** The types that the modules share. Nothing imports this file at run time, so that no page loads it. */
export type Options = {
    /**
     * asked before every
     * connection and before the old token expires; leave it out where a cookie says who this is
     */
    token?: () => string | null | undefined | Promise<string | null | undefined>;
    /**
     * 10000 ms for the token function and for `history`
     */
    timeout?: number;
    /**
     * 256 entries that wait to be sent or answered; more are refused with `queue_full`
     */
    queue?: number;
    /**
     * 500 and 20000 ms: retries wait a random part of `min`, doubled up
     * to `max`
     */
    backoff?: {
        min: number;
        max: number;
    };
    /**
     * this and the next two are for tests
     */
    WebSocket?: typeof WebSocket;
    clock?: Clock;
    /**
     * from 0 to 1
     */
    random?: () => number;
};
export type JoinOptions = {
    /**
     * shown to the others in presence, at most 1 KiB of JSON
     */
    meta?: any;
    status?: "online" | "away";
    /**
     * resume from here, e.g. from a page that the server rendered
     */
    since?: Position;
};
export type SendOptions = {
    /**
     * at most 64 characters: the server takes one key once; made where there is none
     */
    key?: string;
    /**
     * ms after which to give up with `timeout`, offline or not. Without it the entry waits for
     * a connection as long as it takes, is repeated over later ones, and fails `uncertain` 100 s after its first write
     */
    timeout?: number;
};
export type Position = {
    epoch: string;
    offset: number;
    id: string;
};
export type Info = {
    /**
     * who sent it; none: the server
     */
    from?: {
        connection: string;
        user?: string;
    };
    /**
     * of a kept event; volatile ones have none
     */
    position?: Position;
    /**
     * Unix milliseconds of the server
     */
    at?: number;
    /**
     * it was missed, and delivered after a reconnect
     */
    recovered: boolean;
    room?: string;
    event: string;
};
export type Member = {
    connection: string;
    user?: string;
    status: "online" | "away";
    meta?: any;
    /**
     * Unix milliseconds
     */
    since: number;
};
export type Presentee = {
    user: string | null;
    /**
     * online if any connection is
     */
    status: "online" | "away";
    /**
     * of the connection that joined last among those that have any
     */
    meta: any;
    connections: string[];
    /**
     * Unix milliseconds of the first connection
     */
    since: number;
};
export type Clock = {
    /**
     * ms
     */
    now: () => number;
    setTimeout: (fn: () => void, ms: number) => any;
    clearTimeout: (timer: any) => void;
};
export type Done = (error: import("./errors.js").RealtimeError | null, data?: any) => void;
export type Owner = {
    opened: (link: import("./link.js").Link) => void;
    frame: (frame: any, link: import("./link.js").Link) => void;
    ended: (code: number, reason: string) => void;
};
export type Frame = {
    type: string;
    event?: string;
    [field: string]: unknown;
};
export type Waiting = {
    /**
     * what it keeps its order with
     */
    lane: unknown;
    /**
     * wait until it is joined
     */
    room?: import("./room.js").Room;
    /**
     * ms from now until `timeout`, whatever happens
     */
    timeout?: number;
};
export type Entry = {
    event?: string;
    body: string;
    lane: unknown;
    room?: import("./room.js").Room;
    resolve: (data: any) => void;
    reject: (error: unknown) => void;
    /**
     * written to the present link, unanswered
     */
    flying: boolean;
    /**
     * it may have been accepted: an answer was lost, or said too little
     */
    doubt: boolean;
    /**
     * clock time before which it rests
     */
    until: number;
    tries: number;
    /**
     * clock time from which a repetition could be accepted twice
     */
    deadline?: number;
    timers: any[];
};
export type Snapshot = {
    seq: number;
    total: number;
    list: Member[];
};
export type Diff = {
    seq: number;
    prev?: number;
    joined?: Member[];
    updated?: Member[];
    /**
     * connections
     */
    left?: string[];
    total?: number;
    sample?: Member[];
};
/**
 * @typedef {object} Options of `connect`
 * @property {() => string | null | undefined | Promise<string | null | undefined>} [token] asked before every
 *   connection and before the old token expires; leave it out where a cookie says who this is
 * @property {number} [timeout] 10000 ms for the token function and for `history`
 * @property {number} [queue] 256 entries that wait to be sent or answered; more are refused with `queue_full`
 * @property {{min: number, max: number}} [backoff] 500 and 20000 ms: retries wait a random part of `min`, doubled up
 *   to `max`
 * @property {typeof WebSocket} [WebSocket] this and the next two are for tests
 * @property {Clock} [clock]
 * @property {() => number} [random] from 0 to 1
 *
 * @typedef {object} JoinOptions
 * @property {any} [meta] shown to the others in presence, at most 1 KiB of JSON
 * @property {"online" | "away"} [status]
 * @property {Position} [since] resume from here, e.g. from a page that the server rendered
 *
 * @typedef {object} SendOptions
 * @property {string} [key] at most 64 characters: the server takes one key once; made where there is none
 * @property {number} [timeout] ms after which to give up with `timeout`, offline or not. Without it the entry waits for
 *   a connection as long as it takes, is repeated over later ones, and fails `uncertain` 100 s after its first write
 *
 * @typedef {{epoch: string, offset: number, id: string}} Position how far a room was heard; keep it as it is
 *
 * @typedef {object} Info what comes with an event
 * @property {{connection: string, user?: string}} [from] who sent it; none: the server
 * @property {Position} [position] of a kept event; volatile ones have none
 * @property {number} [at] Unix milliseconds of the server
 * @property {boolean} recovered it was missed, and delivered after a reconnect
 * @property {string} [room]
 * @property {string} event
 *
 * @typedef {object} Member one connection in a room
 * @property {string} connection
 * @property {string} [user]
 * @property {"online" | "away"} status
 * @property {any} [meta]
 * @property {number} since Unix milliseconds
 *
 * @typedef {object} Presentee a user, with all of their connections; someone anonymous, with the one
 * @property {string | null} user
 * @property {"online" | "away"} status online if any connection is
 * @property {any} meta of the connection that joined last among those that have any
 * @property {string[]} connections
 * @property {number} since Unix milliseconds of the first connection
 */
/**
 * @typedef {object} Clock
 * @property {() => number} now ms
 * @property {(fn: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 *
 * @typedef {(error: import("./errors.js").RealtimeError | null, data?: any) => void} Done
 *
 * @typedef {object} Owner of a link
 * @property {(link: import("./link.js").Link) => void} opened
 * @property {(frame: any, link: import("./link.js").Link) => void} frame
 * @property {(code: number, reason: string) => void} ended
 *
 * @typedef {{type: string, event?: string, [field: string]: unknown}} Frame
 *
 * @typedef {object} Waiting how an entry waits in the outbox
 * @property {unknown} lane what it keeps its order with
 * @property {import("./room.js").Room} [room] wait until it is joined
 * @property {number} [timeout] ms from now until `timeout`, whatever happens
 *
 * @typedef {object} Entry of the outbox
 * @property {string} [event]
 * @property {string} body
 * @property {unknown} lane
 * @property {import("./room.js").Room} [room]
 * @property {(data: any) => void} resolve
 * @property {(error: unknown) => void} reject
 * @property {boolean} flying written to the present link, unanswered
 * @property {boolean} doubt it may have been accepted: an answer was lost, or said too little
 * @property {number} until clock time before which it rests
 * @property {number} tries
 * @property {number} [deadline] clock time from which a repetition could be accepted twice
 * @property {any[]} timers
 *
 * @typedef {{seq: number, total: number, list: Member[]}} Snapshot
 *
 * @typedef {object} Diff
 * @property {number} seq
 * @property {number} [prev]
 * @property {Member[]} [joined]
 * @property {Member[]} [updated]
 * @property {string[]} [left] connections
 * @property {number} [total]
 * @property {Member[]} [sample]
 */
export {};
