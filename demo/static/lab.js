/** The lab: what networks and people do to a page, at the press of a button, and what comes of it. */

import { cut } from "./cut.js";
import { $, h, toast } from "./dom.js";

/** @import { Visit } from "./visit.js" */

/** @typedef {{ refused: number, left: Map<string, number>, again: number }} Flood `again`: the longest wait, seconds */

const FLOOD = 1500; // ms that a flood lasts at most
const BREATH = 10; // ms between two waves of it: the page must stay alive
const WAVE = 50; // messages
const PATIENCE = 60_000; // ms to wait for the end of a trial
const REFUSED = "last_process"; // what the server says when it is asked to end the only one that is left
const WRONG = { to: "", text: 5, id: "?".repeat(65) }; // as a direct message: nothing of it is right

/** @param {number} since a time of `performance.now` */
const seconds = (since) => ((performance.now() - since) / 1000).toFixed(1);

/** @param {Flood} flood what the server said that remains */
const left = (flood) => [...flood.left].map(([event, remaining]) => `${remaining} left of ${event}`).join(", ");

export class Lab {
  #visit;
  /** @type {Flood | null} what the flood that runs has met with */
  #flood = null;
  /** @type {((words: string) => void) | null} tells a kill that is on its way what became of it */
  #kill = null;

  /** @param {Visit} visit */
  constructor(visit) {
    this.#visit = visit;
    visit.expected = (error) => this.#refused(error);
    visit.client.on("rt:limits", (/** @type {any} */ limits) => this.#limited(limits));
    const { drop, kill, flood, bad, second, away } = this;
    const trials = { drop, kill, flood, bad, second, away };
    for (const [name, trial] of Object.entries(trials)) {
      const button = $(`[data-${name}]`);
      button.onclick = () => {
        // Not `disabled`, which would take the focus away.
        if (button.ariaDisabled === "true") return;
        button.ariaDisabled = "true";
        trial.call(this, button).finally(() => (button.ariaDisabled = "false"));
      };
    }
  }

  /**
   * Cut the connection for some seconds.
   * @param {HTMLButtonElement} button
   */
  async drop(button) {
    const { client, current } = this.#visit;
    const room = this.#visit.room(current);
    const duration = Number($("#seconds").value);
    const start = performance.now();
    this.#say(`Cut off for ${duration} s. Write now, here and elsewhere.`);
    cut(duration);
    const count = () => {
      const left = Math.ceil(duration - (performance.now() - start) / 1000);
      button.textContent = left > 0 ? `Cut off, ${left} s left` : "Coming back…";
    };
    const timer = setInterval(count, 200);
    count();
    const back = await this.#first([
      [room, "rt:recovered", ({ count = 0 }) => `with what ${current.title} had meanwhile (${count})`],
      [room, "rt:reset", () => `${current.title} starts afresh: the server had kept less`],
      [client, "rt:state", ({ state = "" }) => (state === "closed" ? "but the server has closed it for good" : "")],
    ]);
    clearInterval(timer);
    button.textContent = "Disconnect me";
    const { missed, repeated } = this.#visit.tally;
    this.#say(`Back after ${seconds(start)} s, ${back}. Missed ${missed}, repeated ${repeated}.`);
  }

  /** Kill the process that this page is on, as a crash or the machine's end would: the page goes to another one. */
  async kill() {
    const { client, processes } = this.#visit;
    const killed = processes.here;
    const toast = processes.moved;
    const outcome = new Promise((resolve) => {
      this.#kill = resolve;
      processes.moved = (move) => resolve(`Process ${killed} was killed. ${move}`);
      setTimeout(() => resolve("Nothing happened. Try again."), PATIENCE);
    });
    this.#say(`Killing process ${killed}, which can't do anything about it. Write meanwhile.`);
    // Volatile: what is repeated until it is answered would kill the next one as well.
    if (killed === null || !client.sendVolatile("kill")) this.#kill?.("There is no connection now.");
    this.#say(await outcome);
    this.#kill = null;
    processes.moved = toast;
  }

  /** Send as fast as the page can, for a moment, whatever the server says. */
  async flood() {
    const { client } = this.#visit;
    const total = Number($("#amount").value);
    const start = performance.now();
    /** @type {Flood} */
    const flood = (this.#flood = { refused: 0, left: new Map(), again: 0 });
    let closed = 0;
    const off = client.on("rt:state", ({ code = 0 }) => void (closed ||= code));
    this.#say(`Sending ${total} messages as fast as the page can…`);
    let sent = 0;
    while (sent < total && !closed && performance.now() - start < FLOOD) {
      for (const end = Math.min(total, sent + WAVE); sent < end && client.sendVolatile("noise"); ) sent++;
      await new Promise((resolve) => setTimeout(resolve, BREATH));
    }
    const over = performance.now();
    // The client repeats what is refused, at the time that the server names: the answer is the end of the flood.
    const end = await client.send("noise", null, { timeout: PATIENCE }).then(
      () => `took messages again ${seconds(over)} s later`,
      (/** @type {Error} */ error) => `did not recover: ${error.message}`,
    );
    off();
    this.#flood = null;
    const cost = closed ? `closed the connection (${closed}), which came back, and ` : "";
    this.#say(`${sent} sent, ${flood.refused} refused; the server ${cost}${end}.`, [
      ["rt:limits", left(flood) || "enough was left"],
      ["retry_after", `${flood.again.toFixed(2)} s`],
    ]);
    $("#spend").textContent = "";
  }

  /** Send what no handler takes, and show what it says. */
  async bad() {
    const { current } = this.#visit;
    try {
      await this.#visit.room(current).send("direct", WRONG);
    } catch (error) {
      const { code, message, fields = {} } = /** @type {any} */ (error);
      this.#say(`${code}: ${message}.`, Object.entries(fields));
    }
  }

  /** A second page of the same user, with a session of its own: presence shows one person, on two pages. */
  async second() {
    const address = `/#${this.#visit.current.name.split(":")[1]}`;
    if (!open(address, "_blank", "popup,width=400,height=720")) toast("The browser kept the second page from opening.");
    else this.#say(`${this.#visit.me} is here twice now: one person for the others, on two pages.`);
  }

  /**
   * Be away, or back again.
   * @param {HTMLButtonElement} button
   */
  async away(button) {
    const visit = this.#visit;
    visit.away = !visit.away;
    visit.statusChanged();
    button.setAttribute("aria-pressed", String(visit.away));
    button.textContent = visit.away ? "Come back" : "Go away";
    this.#say(visit.away ? "The others see you as away, unless another page of yours is not." : "You are back.");
  }

  /**
   * Wait for one of several events.
   * @param {[any, string, (data: any) => string][]} events the first that has words for it counts
   * @returns {Promise<string>}
   */
  #first(events) {
    return new Promise((resolve) => {
      const offs = events.map(([emitter, name, tell]) =>
        emitter.on(name, (/** @type {any} */ data) => {
          const words = tell(data);
          if (!words) return;
          offs.forEach((off) => off());
          resolve(words);
        }),
      );
    });
  }

  /** @param {{ event?: string, remaining: number, retry_after: number }} limits */
  #limited({ event = "all that is sent", remaining, retry_after }) {
    if (!this.#flood) return;
    this.#flood.left.set(event, Math.min(remaining, this.#flood.left.get(event) ?? Infinity));
    this.#flood.again = Math.max(this.#flood.again, retry_after);
    this.#spend(this.#flood);
  }

  /** @param {any} error */
  #refused({ code, message, retryAfter = 0 }) {
    if (this.#kill && (code === REFUSED || code === "rate_limited")) {
      this.#kill(`The server says: ${message}.`);
      return true;
    }
    if (!this.#flood || code !== "rate_limited") return false;
    this.#flood.refused++;
    this.#flood.again = Math.max(this.#flood.again, retryAfter);
    this.#spend(this.#flood);
    return true;
  }

  /** @param {Flood} flood */
  #spend(flood) {
    const refusals = flood.refused && `${flood.refused} refused, again in ${flood.again.toFixed(2)} s`;
    $("#spend").textContent = [left(flood), refusals].filter(Boolean).join(" · ");
  }

  /**
   * @param {string} text
   * @param {[string, unknown][]} [details]
   */
  #say(text, details = []) {
    const rows = details.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
    $("#outcome").replaceChildren(h("p", {}, text), ...(rows.length ? [h("dl", {}, ...rows)] : []));
  }
}
