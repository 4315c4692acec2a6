/** React hooks: the client's state, a room for as long as a component shows it, and who is there. React 18 or newer. */

import {
  createContext,
  createElement,
  useCallback,
  useContext,
  useEffect,
  useInsertionEffect,
  useMemo,
  useRef,
  useSyncExternalStore,
} from "react";

import { RealtimeError } from "./client.js";

/** @import { FunctionComponentElement, ProviderProps, ReactNode } from "react" */
/** @import { Client, Info, JoinOptions, Presentee, Room, SendOptions } from "./client.js" */

/**
 * @typedef {object} Connection what `useConnection` returns
 * @property {Client["state"]} state
 * @property {number | null} retryIn ms that it waits for the next try, from when it began to wait
 * @property {Client["closed"]} closed why it is closed for good
 * @property {string | null} user
 * @property {string | null} connection
 *
 * @typedef {{[event: string]: (data: any, info: Info) => unknown}} Listeners those of `rt:…` get what the room's do
 *
 * @typedef {object} RoomOptions
 * @property {Listeners} [on] listeners by event; the latest ones are called
 * @property {JoinOptions["status"]} [status] what presence shows; a change is sent
 * @property {any} [meta] the same
 * @property {JoinOptions["since"]} [since] of the first join
 *
 * @typedef {object} RoomView what `useRoom` returns
 * @property {Room | null} room null before the component is mounted, on the server, and without a name or a client
 * @property {Room["state"]} state
 * @property {boolean} stale the server's store is away: events may be late
 * @property {RealtimeError | null} error why it was left or refused
 * @property {(event: string, data?: unknown, options?: SendOptions) => Promise<any>} send always the same function
 * @property {(event: string, data?: unknown) => boolean} sendVolatile always the same function
 *
 * @typedef {object} PresenceView what `usePresence` returns
 * @property {Presentee[]} members those that came first come first
 * @property {number} total connections
 * @property {boolean} complete false: the room is too large, `members` is a sample
 */

/**
 * A room that components hold.
 * @typedef {{client: Client, room: Room, users: number, ours: boolean}} Held
 * @internal
 */

const Context = createContext(/** @type {Client | null} */ (null));

/** @type {WeakMap<Client, Map<string, Held>>} */
const HELD = new WeakMap();

/** @type {Connection} */
const OFFLINE = { state: "connecting", retryIn: null, closed: null, user: null, connection: null };
/** @type {{room: Room | null, state: Room["state"], stale: boolean, error: RealtimeError | null}} */
const OUTSIDE = { room: null, state: "joining", stale: false, error: null };
/** What changes the state of a room, beside the connection's. */
const CHANGES = ["rt:joined", "rt:left", "rt:refused", "rt:stale", "rt:fresh"];
const NO_ROOM = "there is no room yet: send from an event handler or an effect, with a name and a client";
const NOBODY = { members: /** @type {ReadonlyMap<string, Presentee>} */ (new Map()), total: 0, complete: true };

/**
 * Gives the client to the hooks below; null where there is none, as on the server.
 * @param {{client: Client | null, children?: ReactNode}} props
 * @returns {FunctionComponentElement<ProviderProps<Client | null>>}
 */
export function RealtimeProvider({ client, children }) {
  return createElement(Context.Provider, { value: client }, children);
}

/**
 * The state of the connection.
 * @returns {Connection}
 */
export function useConnection() {
  const client = useContext(Context);
  return useSnapshot(
    useCallback((changed) => client?.on("rt:state", changed) ?? nothing, [client]),
    () => {
      if (!client) return OFFLINE;
      const { state, retryIn, closed, user, connection } = client;
      return { state, retryIn, closed, user, connection };
    },
    OFFLINE,
  );
}

/**
 * Join a room for as long as the component is mounted. Components of one name share the room, and the last one leaves it,
 * unless the app had joined it by itself before.
 * @param {string | null | undefined} name none: no room yet
 * @param {RoomOptions} [options]
 * @returns {RoomView}
 */
export function useRoom(name, { on = {}, status, meta, since } = {}) {
  const client = useContext(Context);
  const latest = useRef({ on, status, meta, since });
  useInsertionEffect(() => {
    latest.current = { on, status, meta, since };
  });

  /** @type {{current: Held | null}} */
  const held = useRef(null);
  const view = useSnapshot(
    useCallback(
      (changed) => {
        if (!client || !name) return nothing;
        const mine = (held.current = hold(client, name, latest.current));
        const off = [client.on("rt:state", changed), ...CHANGES.map((event) => mine.room.on(event, changed))];
        return () => {
          for (const remove of off) remove();
          held.current = null;
          release(mine);
        };
      },
      [client, name],
    ),
    () => {
      const room = held.current?.room;
      // Between a new name and its effects there still is the old room.
      if (!room || room.name !== name || held.current?.client !== client) return OUTSIDE;
      return { room, state: room.state, stale: room.stale, error: room.error };
    },
    OUTSIDE,
  );

  const { room } = view;
  const events = JSON.stringify(Object.keys(on));
  useEffect(() => {
    const there = held.current?.room; // at the first time before `room` is, so that nothing is missed
    if (!there) return;
    const off = Object.keys(latest.current.on).map((event) =>
      there.on(event, (data, about) => latest.current.on[event]?.(data, about)),
    );
    return () => off.forEach((remove) => remove());
  }, [client, name, room, events]);

  const shown = JSON.stringify(meta);
  useEffect(() => {
    if (!room || room.error) return;
    const { self } = room;
    const same = [status ?? self.status, shown ?? JSON.stringify(self.meta)];
    if (same[0] !== self.status || same[1] !== JSON.stringify(self.meta)) void room.setStatus(status, latest.current.meta);
  }, [room, status, shown]);

  const send = useCallback(
    /** @type {RoomView["send"]} */
    (event, data, options) => {
      const there = held.current?.room;
      return there?.send(event, data, options) ?? Promise.reject(new RealtimeError("not_joined", NO_ROOM));
    },
    [],
  );
  const sendVolatile = useCallback(
    /** @type {RoomView["sendVolatile"]} */
    (event, data) => held.current?.room.sendVolatile(event, data) ?? false,
    [],
  );
  return useMemo(() => ({ ...view, send, sendVolatile }), [view, send, sendVolatile]);
}

/**
 * Who is in a room; renders anew when that changes.
 * @param {Room | null} room of `useRoom`
 * @returns {PresenceView}
 */
export function usePresence(room) {
  const { members, total, complete } = useSnapshot(
    useCallback((changed) => room?.presence.on("change", changed) ?? nothing, [room]),
    () => (room ? { members: room.presence.members, total: room.presence.total, complete: room.presence.complete } : NOBODY),
    NOBODY,
  );
  return useMemo(() => ({ members: [...members.values()], total, complete }), [members, total, complete]);
}

/**
 * Hold a room for one component more, joining it where nobody does.
 * @param {Client} client
 * @param {string} name
 * @param {JoinOptions} options
 * @returns {Held}
 */
function hold(client, name, { status, meta, since }) {
  const rooms = HELD.get(client) ?? new Map();
  HELD.set(client, rooms);
  let held = rooms.get(name);
  if (!held || held.room.error) {
    const known = client.room(name);
    held = { client, room: known ?? client.join(name, { status, meta, since }), users: 0, ours: !known };
    rooms.set(name, held);
  }
  held.users++;
  return held;
}

/** @param {Held} held */
function release(held) {
  const { client, room } = held;
  held.users--;
  // A moment later: StrictMode, and a component that only moves, hold it again at once.
  setTimeout(() => {
    const rooms = HELD.get(client);
    if (held.users || rooms?.get(room.name) !== held) return;
    rooms.delete(room.name);
    if (held.ours) room.leave();
  });
}

/**
 * What a store has now, as the same object until a field of it differs.
 * @template {object} T
 * @param {(changed: () => void) => () => void} subscribe
 * @param {() => T} read
 * @param {T} server what there is before anything is mounted
 * @returns {T}
 */
function useSnapshot(subscribe, read, server) {
  const last = useRef(server);
  const snapshot = () => {
    const next = read();
    const keys = /** @type {(keyof T)[]} */ (Object.keys(next));
    if (keys.some((key) => next[key] !== last.current[key])) last.current = next;
    return last.current;
  };
  return useSyncExternalStore(subscribe, snapshot, () => server);
}

function nothing() {}
