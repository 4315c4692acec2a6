/**
 * A page that chats as the query says, and writes down whatever happens to it, as `window.chat`.
 *
 * `user`; `at` (repeatable: addresses, `/realtime` by default); `room`; `backoff`: the longest wait, in ms; `speed`: how
 * much faster the client's clock runs than the wall's.
 */

import { connect } from "/realtime/client.js";

const query = new URLSearchParams(location.search);
const user = query.get("user");
const speed = Number(query.get("speed") ?? 1);

const clock = {
  now: () => performance.now() * speed,
  setTimeout: (fn, ms) => setTimeout(fn, ms / speed),
  clearTimeout: (timer) => clearTimeout(timer),
};

async function token() {
  const response = await fetch(`/token?user=${encodeURIComponent(user)}`);
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.text();
}

const addresses = query.getAll("at");
const client = connect(addresses.length ? addresses : "/realtime", {
  token,
  backoff: { min: 50, max: Number(query.get("backoff") ?? 300) },
  ...(speed !== 1 && { clock }),
});
const room = client.join(query.get("room") ?? "chat:1");

const chat = (window.chat = {
  client,
  room,
  /** @type {{text: string, offset?: number, recovered: boolean}[]} */
  heard: [],
  typing: [],
  direct: [],
  resets: [],
  recoveries: [],
  left: [],
  refused: [],
  presence: [],
  /** what the server's handlers answered, in the order of their answers */
  acked: [],
  failed: [],
  states: ["connecting"],
  /** ms from one state to the next */
  lasted: [],
  /** ms that the client said it would wait */
  waits: [],
  errors: [],

  /** Send texts, without waiting for anything. */
  say(...texts) {
    for (const text of texts) {
      room.send("message", { text }).then(
        ({ offset }) => chat.acked.push({ text, offset }),
        (error) => chat.failed.push({ text, code: error.code }),
      );
    }
  },

  /** Who is here: user, status and number of connections of each, in the order of names. */
  present() {
    const members = [...room.presence.members.values()];
    return members.map(({ user, status, connections }) => `${user} ${status} ${connections.length}`).sort().join();
  },

  /** For the message of a test that fails. */
  diary() {
    const { client: _, room: __, heard, acked, ...rest } = chat;
    return JSON.stringify({ ...rest, heard: heard.length, acked: acked.length, closed: client.closed, room: room.state });
  },
});

room.on("message", ({ text }, { position, recovered }) => {
  chat.heard.push({ text, offset: position?.offset, recovered });
});
room.on("typing", (_, { from }) => chat.typing.push(from.user));
room.on("rt:reset", ({ reason }) => chat.resets.push(reason));
room.on("rt:recovered", ({ count }) => chat.recoveries.push(count));
room.on("rt:left", ({ code }) => chat.left.push(code));
room.on("rt:refused", ({ code }) => chat.refused.push(code));
room.presence.on("change", ({ joined, left }) => {
  chat.presence.push(...joined.map((one) => `+${one.user}`), ...left.map((one) => `-${one.user}`));
});
client.on("direct", ({ text }, { recovered }) => chat.direct.push({ text, recovered }));
let since = performance.now();
client.on("rt:state", ({ state, retryIn }) => {
  chat.states.push(state);
  chat.lasted.push(performance.now() - since);
  since = performance.now();
  if (retryIn !== undefined) chat.waits.push(retryIn);
});
client.on("rt:error", ({ code }) => chat.errors.push(code));
