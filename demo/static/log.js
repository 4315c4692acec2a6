/** A list of messages in the server's order; what is still on its way stands below. */

import { avatar, h } from "./dom.js";

/**
 * @typedef {object} Message
 * @property {string} id the page's own, "" for those of clients that give none
 * @property {string} from
 * @property {string} text
 * @property {number} at Unix milliseconds
 * @property {any} [position]
 * @property {number} [offset] the server's number; none: not delivered
 * @property {any} [element]
 */

const SHOWN = 1000; // messages; older ones can be loaded again
const TOGETHER = 180_000; // ms within which messages of one person stand together
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/**
 * What the list shows of an event.
 * @param {{ id: string, text: string }} data
 * @param {any} info
 * @returns {Message}
 */
export function message({ id, text }, { from, at, position }) {
  return { id, from: from.user, text, at, position };
}

export class Log {
  list = h("ol");
  /** @type {Message[]} */
  items = [];
  /** older ones can be loaded */
  more = false;
  /** the reader is at the bottom, and stays there */
  stuck = true;
  /** @type {Map<string, Message>} */
  #mine = new Map(); // by id: sent from here, and not acknowledged
  #me;
  #attribute;
  #delivered;
  #top = 0;

  /**
   * @param {string} me
   * @param {{ attribute: string, delivered: () => void }} options the attribute that marks an item; what to do when the
   *   server has one of ours
   */
  constructor(me, { attribute, delivered }) {
    this.#me = me;
    this.#attribute = attribute;
    this.#delivered = delivered;
  }

  /** The oldest message that is shown: what is before it can be asked for. */
  get oldest() {
    return this.items.find((item) => item.position)?.position;
  }

  /** How many are on their way. */
  get pending() {
    return [...this.#mine.values()].filter(({ element }) => element.dataset.delivery === "sending").length;
  }

  /**
   * Show what the server has; once only, however often it is told.
   * @param {Message} message
   * @returns {boolean} whether it is new here
   */
  add(message) {
    const mine = message.from === this.#me ? this.#mine.get(message.id) : undefined;
    if (mine) {
      Object.assign(mine, { position: message.position, at: message.at });
      this.#accepted(mine, message.position.offset);
      return false;
    }
    const known = this.items.find((item) => item.offset === message.position.offset);
    if (known) {
      known.position = message.position;
      return false;
    }
    message.offset = message.position.offset;
    message.element = this.#draw(message);
    this.#mark(message, "delivered");
    this.#keep(() => this.#place(message));
    return true;
  }

  /**
   * Send a message that somebody has just written, or try again.
   * @param {Message} message
   * @param {(message: Message) => Promise<{ offset: number }>} send
   */
  async send(message, send) {
    if (!this.#mine.has(message.id)) {
      this.#mine.set(message.id, message);
      message.element = this.#draw(message);
      this.stuck = true;
      this.#keep(() => this.#place(message));
    }
    this.#mark(message, "sending");
    try {
      this.#accepted(message, (await send(message)).offset);
    } catch (error) {
      // It may have come back to us all the same.
      if (message.offset === undefined) this.#failed(message, error, send);
    }
  }

  /** Forget what the server has forgotten. */
  clear() {
    for (const item of this.items) if (item.offset !== undefined) item.element.remove();
    this.items = this.items.filter((item) => item.offset === undefined);
    this.#group(0);
  }

  /**
   * Show this list at the end of an element that scrolls.
   * @param {any} scroller
   */
  attach(scroller) {
    scroller.append(this.list);
    this.settle();
  }

  /** Be where the reader was, after the element has changed its size, say. */
  settle() {
    const scroller = this.list.parentElement;
    if (scroller) scroller.scrollTop = this.stuck ? scroller.scrollHeight : this.#top;
  }

  /** The element that it was attached to was scrolled. */
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.list.parentElement;
    this.#top = scrollTop;
    this.stuck = scrollHeight - scrollTop - clientHeight < 48;
  }

  /**
   * Change the list, and keep what the reader looks at where it is.
   * @param {() => void} change
   * @param {boolean} [above] the change is above it
   */
  #keep(change, above = false) {
    const scroller = this.list.parentElement;
    const below = scroller ? scroller.scrollHeight - scroller.scrollTop : 0;
    change();
    if (!scroller) return;
    if (above) scroller.scrollTop = scroller.scrollHeight - below;
    else if (this.stuck) scroller.scrollTop = scroller.scrollHeight;
  }

  /**
   * Show a page of older messages.
   * @param {Message[]} messages
   */
  prepend(messages) {
    const stuck = this.stuck && this.items.length === 0;
    this.#keep(() => messages.forEach((message) => this.add(message)), !stuck);
  }

  /** @param {Message} message */
  #place(message) {
    const { items } = this;
    let index = items.length;
    if (message.offset !== undefined) {
      while (index > 0 && (items[index - 1].offset ?? Infinity) > message.offset) index--;
    }
    items.splice(index, 0, message);
    const next = items[index + 1]?.element ?? null;
    const { element } = message;
    // Where it stands already it isn't touched: a screen reader would read it out again.
    if (!element.parentNode || element.nextSibling !== next) this.list.insertBefore(element, next);
    if (items.length > SHOWN && this.stuck) {
      items.shift()?.element.remove();
      this.more = true;
      index--;
    }
    this.#group(index);
  }

  /**
   * Names and faces are shown once for messages that stand together.
   * @param {number} index of what has changed
   */
  #group(index) {
    for (const at of [index, index + 1]) {
      const item = this.items[at];
      const before = this.items[at - 1];
      const follows = before && before.from === item?.from && item.at - before.at < TOGETHER;
      item?.element.classList.toggle("follows", !!follows);
    }
  }

  /** @param {Message} message */
  #draw({ from, text, at }) {
    const own = from === this.#me;
    const item = h("li", { className: own ? "message own" : "message", [this.#attribute]: "", "data-from": from });
    if (this.#attribute === "data-dm-message") {
      item.append(text);
      item.title = `${from}, ${MOMENT.format(at)}`;
      return item;
    }
    const time = h("time", { dateTime: new Date(at).toISOString(), title: MOMENT.format(at) }, CLOCK.format(at));
    const name = h("b", { className: own ? "unseen" : "" }, own ? "You" : from);
    const words = h("p", { className: "text", "data-text": "" }, text);
    if (!own) item.append(avatar(from));
    item.append(h("p", { className: "by" }, name, " ", time), words);
    if (own) item.append(h("span", { className: "mark", role: "img", "aria-label": "" }));
    return item;
  }

  /**
   * @param {Message} message
   * @param {"sending" | "delivered" | "failed"} delivery
   */
  #mark({ element, offset }, delivery) {
    element.dataset.delivery = delivery;
    if (offset !== undefined) element.dataset.offset = offset;
    element.querySelector(".mark")?.setAttribute("aria-label", delivery);
    element.querySelector(".trouble")?.remove();
  }

  /**
   * @param {Message} message
   * @param {number} offset
   */
  #accepted(message, offset) {
    if (message.offset !== undefined) return;
    this.#mine.delete(message.id);
    const index = this.items.indexOf(message);
    if (index >= 0) this.items.splice(index, 1);
    message.offset = offset;
    this.#mark(message, "delivered");
    this.#keep(() => this.#place(message));
    this.#group(index);
    this.#delivered();
  }

  /**
   * @param {Message} message
   * @param {any} error
   * @param {(message: Message) => Promise<{ offset: number }>} send
   */
  #failed(message, error, send) {
    this.#mark(message, "failed");
    // The same id and key again: if the server has it after all, it comes back to us, or is not taken twice.
    const retry = h("button", { className: "quiet", onclick: () => this.send(message, send) }, "Try again");
    const why = error.code === "uncertain" ? "No answer: it may have arrived. " : `Not sent: ${error.message}. `;
    this.#keep(() => message.element.append(h("span", { className: "trouble" }, why, retry)));
  }
}
