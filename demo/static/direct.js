/** Direct messages: one conversation in place of the rest, and the list of all of them. */

import { $, avatar, h, toast } from "./dom.js";
import { Log, message } from "./log.js";

const PAGE = 100; // messages that are loaded when the page opens

export class Directs {
  /** @type {Map<string, { log: Log, unread: number, toasts: (() => void)[] }>} by the other person */
  #threads = new Map();
  /** @type {string | null} */
  #shown = null;
  #me;
  #tally;
  #send;
  #changed;

  /**
   * @param {string} me
   * @param {import("./tally.js").Tally} tally
   * @param {(data: object, key: string) => Promise<{ offset: number }>} send
   * @param {() => void} changed
   */
  constructor(me, tally, send, changed) {
    this.#me = me;
    this.#tally = tally;
    this.#send = send;
    this.#changed = changed;
    $("#direct-messages").onscroll = () => this.#current?.log.scrolled();
    $("#close-direct").onclick = () => this.close();
    $("[data-dm-composer]").onsubmit = (/** @type {Event} */ event) => this.#submit(event);
    $("#direct").onkeydown = (/** @type {KeyboardEvent} */ { key }) => void (key === "Escape" && this.close());
  }

  get #current() {
    return this.#shown === null ? undefined : this.#threads.get(this.#shown);
  }

  /** @param {string} user */
  unread(user) {
    return this.#threads.get(user)?.unread ?? 0;
  }

  get totalUnread() {
    return [...this.#threads.values()].reduce((sum, { unread }) => sum + unread, 0);
  }

  get pending() {
    return [...this.#threads.values()].reduce((sum, { log }) => sum + log.pending, 0);
  }

  /** What to recolour. */
  get lists() {
    return [...this.#threads.values()].map(({ log }) => log.list);
  }

  /**
   * The user's own room was joined: show what it keeps.
   * @param {any} room
   */
  async load(room) {
    try {
      for (const event of (await room.history({ limit: PAGE })).events) this.#add(event.data, event);
    } catch (error) {
      toast(`Older direct messages could not be loaded: ${/** @type {Error} */ (error).message}`);
    }
    this.#changed();
  }

  /**
   * @param {any} data
   * @param {any} info
   */
  heard(data, info) {
    const { user, added } = this.#add(data, info);
    const thread = this.#thread(user);
    if (added && info.from.user !== this.#me && (this.#shown !== user || document.hidden)) {
      thread.unread++;
      const close = toast(`${user}: ${data.text}`, {
        action: "Answer",
        run: () => this.open(user),
        anywhere: true,
        seconds: 12,
      });
      thread.toasts = [...thread.toasts.slice(-3), close]; // as many as are shown
    }
    this.#changed();
  }

  /** The server lost what it had kept. */
  clear() {
    for (const { log } of this.#threads.values()) log.clear();
  }

  /** @param {string} user */
  open(user) {
    this.#shown = user;
    const thread = this.#thread(user);
    this.seen();
    $("#direct").hidden = false;
    $("#direct-title").textContent = user;
    $("#direct-avatar").replaceChildren(avatar(user));
    $("#direct-messages").replaceChildren();
    thread.log.attach($("#direct-messages"));
    $("#direct-text").placeholder = `Write to ${user}`;
    $("#direct-text").focus();
    this.#changed();
  }

  close() {
    if (this.#shown === null) return;
    const opener = $(`[data-dm="${CSS.escape(this.#shown)}"]`);
    this.#shown = null;
    $("#direct").hidden = true;
    $("#direct-messages").replaceChildren();
    [opener, $("#open-side"), $("#text")].find((one) => one?.checkVisibility())?.focus();
  }

  /** What is shown has been read. */
  seen() {
    const thread = this.#current;
    if (!thread) return;
    thread.unread = 0;
    for (const close of thread.toasts.splice(0)) close();
  }

  /** Write the list of conversations. */
  draw() {
    const threads = [...this.#threads].map(([user, { unread }]) => {
      const button = h("button", { "data-thread": user, onclick: () => this.open(user) });
      button.append(avatar(user), h("span", { className: "title" }, user));
      if (unread) button.append(h("span", { className: "badge", "aria-label": `${unread} unread` }, String(unread)));
      return h("li", {}, button);
    });
    $("#threads").replaceChildren(...threads);
    $("#threads-title").hidden = threads.length === 0;
  }

  /** @param {string} user */
  #thread(user) {
    const known = this.#threads.get(user);
    if (known) return known;
    const delivered = () => void this.#tally.sent++;
    /** @type {{ log: Log, unread: number, toasts: (() => void)[] }} */
    const thread = { log: new Log(this.#me, { attribute: "data-dm-message", delivered }), unread: 0, toasts: [] };
    this.#threads.set(user, thread);
    return thread;
  }

  /**
   * @param {any} data
   * @param {any} info
   */
  #add(data, info) {
    const user = info.from.user === this.#me ? data.to : info.from.user;
    const added = this.#thread(user).log.add(message(data, info));
    return { user, added };
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    const input = $("#direct-text");
    const text = input.value.trim();
    const to = this.#shown;
    if (!text || to === null) return;
    input.value = "";
    const mine = { id: crypto.randomUUID(), from: this.#me, text, at: Date.now() };
    this.#thread(to)
      .log.send(mine, ({ id }) => this.#send({ to, text, id }, id))
      .then(this.#changed);
  }
}
