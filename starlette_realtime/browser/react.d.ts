/** React hooks: the client's state, a room for as long as a component shows it, and who is there. React 18 or newer. */
import { RealtimeError } from "./client.js";
import type { FunctionComponentElement, ProviderProps, ReactNode } from "react";
import type { Client, Info, JoinOptions, Presentee, Room, SendOptions } from "./client.js";
export type Connection = {
    state: Client["state"];
    /**
     * ms that it waits for the next try, from when it began to wait
     */
    retryIn: number | null;
    /**
     * why it is closed for good
     */
    closed: Client["closed"];
    user: string | null;
    connection: string | null;
};
export type Listeners = {
    [event: string]: (data: any, info: Info) => unknown;
};
export type RoomOptions = {
    /**
     * listeners by event; the latest ones are called
     */
    on?: Listeners;
    /**
     * what presence shows; a change is sent
     */
    status?: JoinOptions["status"];
    /**
     * the same
     */
    meta?: any;
    /**
     * of the first join
     */
    since?: JoinOptions["since"];
};
export type RoomView = {
    /**
     * null before the component is mounted, on the server, and without a name or a client
     */
    room: Room | null;
    state: Room["state"];
    /**
     * the server's store is away: events may be late
     */
    stale: boolean;
    /**
     * why it was left or refused
     */
    error: RealtimeError | null;
    /**
     * always the same function
     */
    send: (event: string, data?: unknown, options?: SendOptions) => Promise<any>;
    /**
     * always the same function
     */
    sendVolatile: (event: string, data?: unknown) => boolean;
};
export type PresenceView = {
    /**
     * those that came first come first
     */
    members: Presentee[];
    /**
     * connections
     */
    total: number;
    /**
     * false: the room is too large, `members` is a sample
     */
    complete: boolean;
};
export type Held = {
    client: Client;
    room: Room;
    users: number;
    ours: boolean;
};
/**
 * Gives the client to the hooks below; null where there is none, as on the server.
 * @param {{client: Client | null, children?: ReactNode}} props
 * @returns {FunctionComponentElement<ProviderProps<Client | null>>}
 */
export declare function RealtimeProvider({ client, children }: {
    client: Client | null;
    children?: ReactNode;
}): FunctionComponentElement<ProviderProps<Client | null>>;
/**
 * The state of the connection.
 * @returns {Connection}
 */
export declare function useConnection(): Connection;
/**
 * Join a room for as long as the component is mounted. Components of one name share the room, and the last one leaves it,
 * unless the app had joined it by itself before.
 * @param {string | null | undefined} name none: no room yet
 * @param {RoomOptions} [options]
 * @returns {RoomView}
 */
export declare function useRoom(name: string | null | undefined, { on, status, meta, since }?: RoomOptions): RoomView;
/**
 * Who is in a room; renders anew when that changes.
 * @param {Room | null} room of `useRoom`
 * @returns {PresenceView}
 */
export declare function usePresence(room: Room | null): PresenceView;
