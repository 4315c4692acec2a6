/** One person's visit: the connection, the rooms, the people in them, and how the page shows them. */

import { connect } from "/realtime/client.js";
import { Cursors } from "./cursors.js";
import { CuttableSocket } from "./cut.js";
import { Directs } from "./direct.js";
import { $, avatar, h, hueOf, paint, setHue, toast } from "./dom.js";
import { leave, side, view } from "./frame.js";
import { Log, message } from "./log.js";
import { addresses, Processes } from "./processes.js";
import { Tally } from "./tally.js";

const PAGE = 40; // messages that are loaded at once
const TYPING = 2000; // ms between two signs that we are typing
const ASKING = 3000; // ms that the server has to say who we are
const scroller = $("[data-messages]");
const textarea = $("[data-composer]").elements.text;

/**
 * A room on the page.
 * @typedef {object} Chat
 * @property {string} name
 * @property {string} title
 * @property {any} room as the client has it; null: not joined
 * @property {Log} log
 * @property {number} unread
 * @property {Map<string, any>} typing user → timer
 */

/** Everything that belongs to the one who has signed in. It ends with the page. */
export class Visit {
  tally = new Tally();
  /** @type {Map<string, Chat>} */
  chats = new Map();
  /** @type {Map<string, any>} the client's rooms, by name */
  rooms = new Map();
  /** @type {Chat} */
  current;
  cursors;
  /** They have said that they are away; a page that nobody sees is, too. */
  away = false;
  /** @type {(error: any) => boolean} whether an error that no promise tells was to be expected */
  expected = () => false;
  typed = -Infinity; // time of the last sign that we are typing
  /** @type {any} */
  retry;
  /** @type {any} */
  later;

  /**
   * @param {{ name: string, token: string }} session
   * @param {Record<string, string>} titles of the rooms
   * @param {import("./processes.js").Places} places
   */
  constructor({ name, token }, titles, places) {
    this.me = name;
    this.token = token;
    this.client = connect(addresses(places), { token: () => this.freshToken(), WebSocket: CuttableSocket });
    this.processes = new Processes(this.client, places, () => this.caughtUp());
    this.processes.moved = (move) => toast(move);
    this.cursors = new Cursors(name);
    this.directs = new Directs(
      name,
      this.tally,
      (data, key) => this.room(this.current).send("direct", data, { key }),
      () => this.drawDirects(),
    );
    for (const [room, title] of Object.entries(titles)) {
      const log = new Log(name, { attribute: "data-message", delivered: () => void this.tally.sent++ });
      this.chats.set(room, { name: room, title, room: null, log, unread: 0, typing: new Map() });
    }
    this.listen();
    this.current = this.chats.get(`chat:${location.hash.slice(1)}`) ?? [...this.chats.values()][0];
    setHue(name, Number(localStorage.getItem("hue") ?? hueOf(name)), []);
    this.show(this.current);
    this.showState({ state: this.client.state });
  }

  /** Another tab may have signed in as somebody else, or out; as long as our token is good, we stay who we are. */
  async freshToken() {
    // This page's own process may be gone, and the token that we have is good for another one.
    const answer = await fetch("/session", { signal: AbortSignal.timeout(ASKING) }).catch(() => null);
    const session = answer?.ok ? await answer.json() : null;
    if (session?.name === this.me) this.token = session.token;
    return this.token;
  }

  // --- the connection -----------------------------------------------------------------------------------------------

  listen() {
    const { client, directs, tally } = this;
    /** @type {string} */
    let own;
    client.on("rt:state", (/** @type {any} */ change) => this.showState(change));
    client.on("rt:error", (/** @type {any} */ error) => this.complain(error));
    client.on("rt:stale", () => toast("The server can't reach its store: messages may be late.", { seconds: 0 }));
    client.on("rt:fresh", () => toast("The server's store is back."));
    // The user's own room, which the server joins us to, is heard on the client itself.
    client.on("rt:joined", (/** @type {any} */ room) => {
      own = room.name;
      tally.start(own, room.position);
      directs.load(room);
    });
    client.on("direct", (/** @type {any} */ data, /** @type {any} */ info) => {
      tally.heard(own, info.position);
      directs.heard(data, info);
    });
    client.on("rt:recovered", () => {
      tally.caughtUp(own, client.room(own)?.position ?? null);
      this.draw();
    });
    client.on("rt:reset", (/** @type {any} */ { position }) => {
      tally.start(own, position);
      directs.clear();
      directs.load(client.room(own));
    });
  }

  /** @param {any} change */
  showState({ state, code, message, retryIn = 0 }) {
    const words = { connecting: "Connecting…", online: "Online", waiting: "Offline", closed: "Closed" };
    $("[data-state]").dataset.state = state;
    $("#state").textContent = words[/** @type {keyof typeof words} */ (state)];
    clearInterval(this.retry);
    const due = performance.now() + retryIn;
    const count = () => {
      const left = Math.ceil((due - performance.now()) / 1000);
      $("#retry").textContent = state === "waiting" && left > 0 ? `retrying in ${left} s` : "";
    };
    count();
    if (state === "waiting") this.retry = setInterval(count, 500);
    if (state === "closed" && code === 4401) leave("Your sign-in is no longer valid. Please sign in again.");
    else if (state === "closed" && code !== 1000) {
      toast(`The connection was closed: ${message}.`, { action: "Reload", run: () => location.reload(), seconds: 0 });
    }
    if (state !== "online") this.cursors.clear();
  }

  /** Once the room that is shown has what was missed meanwhile: how that went, in words. */
  async caughtUp() {
    const { room } = this.current;
    if (room) {
      await new Promise((resolve) => {
        const offs = ["rt:joined", "rt:left", "rt:refused"].map((event) => room.on(event, () => done()));
        const done = () => {
          for (const off of offs) off();
          resolve(null);
        };
      });
    }
    return `missed ${this.tally.missed}, repeated ${this.tally.repeated}`;
  }

  /** @param {any} error */
  complain(error) {
    if (this.expected(error)) return;
    const { code, message, retryAfter } = error;
    const seconds = Math.max(retryAfter ?? 1, 0.1).toFixed(1);
    if (code === "rate_limited") toast(`Too fast for the server: it listens again in ${seconds} s.`);
    else if (!code.startsWith("token_")) toast(`The server says: ${message}`);
  }

  // --- rooms --------------------------------------------------------------------------------------------------------

  /**
   * The chat's room, joined now if it isn't yet.
   * @param {Chat} chat
   */
  room(chat) {
    return chat.room ?? this.join(chat);
  }

  /** @param {Chat} chat */
  join(chat) {
    const { client, tally, me } = this;
    const room = client.join(chat.name, { meta: { hue: hueOf(me) }, status: this.status });
    chat.room = room;
    this.rooms.set(chat.name, room);
    room.ready.then(
      () => {
        tally.start(chat.name, room.position);
        this.load(chat);
      },
      () => {}, // told by rt:refused
    );
    room.on("message", (/** @type {any} */ data, /** @type {any} */ info) => this.heard(chat, data, info));
    room.on("typing", (/** @type {any} */ _, /** @type {any} */ { from }) => this.heardTyping(chat, from.user));
    room.on("cursor", (/** @type {any} */ at, /** @type {any} */ { from }) => {
      if (chat === this.current) this.cursors.move(at, from);
    });
    room.presence.on("change", (/** @type {any} */ change) => this.peopleChanged(chat, change));
    room.on("rt:recovered", () => {
      tally.caughtUp(chat.name, room.position);
      this.draw();
    });
    room.on("rt:reset", (/** @type {any} */ { position }) => {
      tally.start(chat.name, position);
      chat.log.clear();
      this.load(chat);
      toast(`${chat.title} starts afresh: the server no longer has all that was written while you were away.`);
    });
    room.on("rt:left", () => this.left(chat, "You were removed from"));
    room.on("rt:refused", (/** @type {any} */ { message }) => this.left(chat, `${message}:`));
    return room;
  }

  /**
   * @param {Chat} chat
   * @param {string} why
   */
  left(chat, why) {
    chat.room = null;
    this.rooms.delete(chat.name);
    const again = { action: "Join again", run: () => this.show(chat), seconds: 0 };
    if (!this.client.closed) toast(`${why} ${chat.title}`, again);
    this.drawMembers();
    this.draw();
  }

  /** @param {Chat} chat */
  show(chat) {
    this.room(chat);
    this.current = chat;
    chat.unread = 0;
    this.cursors.clear();
    history.replaceState(null, "", `#${chat.name.split(":")[1]}`);
    $("[data-current-room]").dataset.currentRoom = chat.name;
    $("[data-current-room]").textContent = chat.title;
    textarea.placeholder = `Write to ${chat.title}`;
    scroller.setAttribute("aria-busy", "true"); // another room's messages are no news
    scroller.querySelector("ol")?.remove();
    chat.log.attach(scroller);
    setTimeout(() => scroller.removeAttribute("aria-busy"), 100);
    this.drawTyping();
    this.drawMembers();
    this.draw();
  }

  /**
   * Show older messages than those that are shown.
   * @param {Chat} chat
   */
  async load(chat) {
    try {
      const { events, more } = await chat.room.history({ before: chat.log.oldest, limit: PAGE });
      chat.log.prepend(events.map((/** @type {any} */ event) => message(event.data, event)));
      chat.log.more = more;
    } catch (error) {
      toast(`Older messages could not be loaded: ${/** @type {Error} */ (error).message}`);
    }
    this.draw();
  }

  /**
   * @param {Chat} chat
   * @param {any} data
   * @param {any} info
   */
  heard(chat, data, { from, at, position }) {
    this.tally.heard(chat.name, position);
    const isNew = chat.log.add(message(data, { from, at, position }));
    clearTimeout(chat.typing.get(from.user));
    chat.typing.delete(from.user);
    if (isNew && from.user !== this.me && (chat !== this.current || document.hidden)) chat.unread++;
    if (isNew && chat === this.current && !chat.log.stuck) $("#newer").hidden = false;
    this.drawTyping();
    this.draw();
  }

  /** @param {string} text */
  say(text) {
    const chat = this.current;
    const mine = { id: crypto.randomUUID(), from: this.me, text, at: Date.now() };
    // With a key, the client may send it over and over: the server takes it once.
    const sent = chat.log.send(mine, ({ id }) => this.room(chat).send("message", { text, id }, { key: id }));
    this.typed = performance.now() - TYPING * 0.8; // what we begin now may be shown soon, but not at every word
    sent.then(() => this.draw());
    this.draw();
  }

  // --- people -------------------------------------------------------------------------------------------------------

  /**
   * @param {Chat} chat
   * @param {any} change
   */
  peopleChanged(chat, { joined, updated, left }) {
    for (const { user, meta } of [...joined, ...updated]) setHue(user, meta?.hue, this.lists);
    for (const { connections } of left) connections.forEach((/** @type {string} */ id) => this.cursors.hide(id));
    if (chat === this.current) this.drawMembers();
    this.drawRooms();
  }

  recolour() {
    const hue = (hueOf(this.me) + 47) % 360;
    localStorage.setItem("hue", String(hue));
    setHue(this.me, hue, this.lists);
    for (const room of this.rooms.values()) room.setStatus(undefined, { hue });
  }

  /** @returns {"online" | "away"} */
  get status() {
    return this.away || document.hidden ? "away" : "online";
  }

  statusChanged() {
    for (const room of this.rooms.values()) room.setStatus(this.status);
    if (document.hidden) return;
    this.current.unread = 0;
    this.directs.seen();
    this.drawDirects();
  }

  typing() {
    clearTimeout(this.later);
    const wait = this.typed + TYPING - performance.now();
    if (!textarea.value) return;
    if (wait > 0) this.later = setTimeout(() => this.typing(), wait);
    else if (this.current.room?.sendVolatile("typing")) this.typed = performance.now();
  }

  /**
   * @param {Chat} chat
   * @param {string} user
   */
  heardTyping(chat, user) {
    if (user === this.me) return; // another page of ours
    clearTimeout(chat.typing.get(user));
    const over = () => {
      chat.typing.delete(user);
      this.drawTyping();
    };
    chat.typing.set(user, setTimeout(over, TYPING * 1.6));
    this.drawTyping();
  }

  /** How many messages the server hasn't acknowledged yet. */
  get pending() {
    return [...this.chats.values()].reduce((sum, { log }) => sum + log.pending, this.directs.pending);
  }

  /** Lists of messages, those that are not shown included. */
  get lists() {
    return [...this.chats.values()].map(({ log }) => log.list).concat(this.directs.lists);
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  draw() {
    for (const name of ["sent", "received", "missed", "repeated"]) {
      const counter = $(`[data-counter="${name}"]`);
      const value = this.tally[/** @type {"sent" | "received" | "missed" | "repeated"} */ (name)];
      counter.textContent = value;
      counter.classList.toggle("bad", value > 0 && (name === "missed" || name === "repeated"));
    }
    const { log, room, title } = this.current;
    $("#older").hidden = !log.more;
    $("#empty").hidden = log.items.length > 0 || room?.state !== "joined";
    if (log.stuck) $("#newer").hidden = true;
    this.drawRooms();
    const unread = [...this.chats.values()].reduce((sum, chat) => sum + chat.unread, this.directs.totalUnread);
    document.title = `${unread ? `(${unread}) ` : ""}${title} · starlette_realtime`;
  }

  drawDirects() {
    this.directs.draw();
    this.drawMembers(); // with what is unread of theirs
    this.draw();
  }

  drawRooms() {
    const buttons = [...this.chats.values()].map((chat) => {
      const { name, title, room, unread } = chat;
      const here = room?.presence.members.size ?? 0;
      const button = $(`[data-room="${name}"]`) ?? h("button", { "data-room": name });
      const count = h("span", { className: "count" }, String(here), h("span", { className: "unseen" }, " here"));
      const badge = h("span", { className: "badge" }, String(unread), h("span", { className: "unseen" }, " unread"));
      button.replaceChildren(h("span", { className: "title" }, title), ...(unread ? [badge] : room ? [count] : []));
      button.onclick = () => {
        view("chat");
        this.show(chat);
      };
      if (chat === this.current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      return button;
    });
    if (!$("#rooms").children.length) $("#rooms").append(...buttons.map((button) => h("li", {}, button)));
  }

  drawMembers() {
    const { room } = this.current;
    const people = [...(room?.presence.members.values() ?? [])].sort(
      (a, b) => Number(b.user === this.me) - Number(a.user === this.me) || a.user.localeCompare(b.user),
    );
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset.dm : undefined;
    $("#members").replaceChildren(...people.map((one) => this.member(one)));
    if (focused !== undefined) $(`[data-dm="${CSS.escape(focused)}"]`)?.focus();
    $("#people-count").textContent = people.length;
    $("#me").textContent = this.me;
    $("#recolour").replaceChildren(avatar(this.me));
  }

  /** @param {any} presentee */
  member({ user, status, connections }) {
    const face = h("span", { className: "face" }, avatar(user));
    const name = h("span", { className: "title" }, user);
    const pages = connections.length > 1 && `${connections.length} pages`;
    const details = [user === this.me && "you", status === "away" && "away", pages];
    const about = h("span", { className: "about" }, details.filter(Boolean).join(", "));
    const item = h("li", { "data-member": user, "data-status": status }, face, h("span", {}, name, about));
    if (user === this.me) return item;
    const unread = this.directs.unread(user);
    const open = () => {
      side(false);
      this.directs.open(user);
    };
    const label = unread ? `Message ${user}, ${unread} unread` : `Message ${user}`;
    const write = h("button", { className: "quiet", "data-dm": user, "aria-label": label, title: label });
    write.append($("#bubble").content.cloneNode(true));
    if (unread) write.append(h("span", { className: "badge" }, String(unread)));
    item.append(write);
    item.onclick = open; // the button is for keyboards, and says what a click does
    return item;
  }

  drawTyping() {
    const who = [...this.current.typing.keys()];
    const [one, two] = who;
    const words = ["", `${one} is typing…`, `${one} and ${two} are typing…`];
    $("[data-typing]").textContent = words[who.length] ?? "Several people are typing…";
  }
}
