/** Several processes: where they are, which one this page is on, and how it fares when that one is no more. */

import { $, h } from "./dom.js";

/** @import { Sums } from "./sums.js" */

const SHORT = 8; // characters of a node's name, which tell it from the others

/** @typedef {{ number: number, ports: number[] }} Places which process served this page; the ports of all, if several */

/**
 * Where the kit is, this page's own process first.
 * @param {Places} places
 */
export function addresses({ number, ports }) {
  const elsewhere = ports.filter((_, index) => index !== number - 1);
  return ["/realtime", ...elsewhere.map((port) => `${location.protocol}//${location.hostname}:${port}/realtime`)];
}

export class Processes {
  /** @type {number | null} the process that this page is on; null: none, or not yet known */
  here = null;
  /** @type {(move: string) => void} what to do with the words for a move from one process to another */
  moved = () => {};
  /** @type {number | null} the last one that it was on */
  #before = null;
  #left = 0; // time at which that ended
  #ports;
  #client;
  #caughtUp;

  /**
   * @param {any} client
   * @param {Places} places
   * @param {() => Promise<string>} caughtUp settles, when what was missed is there, with words for how that went
   */
  constructor(client, { ports }, caughtUp) {
    this.#client = client;
    this.#ports = ports;
    this.#caughtUp = caughtUp;
    for (const element of document.querySelectorAll("[data-several]")) element.toggleAttribute("hidden", !this.several);
    if (this.several) client.on("rt:state", (/** @type {any} */ change) => this.#changed(change));
  }

  get several() {
    return this.#ports.length > 1;
  }

  /** @param {{ state: string }} change */
  #changed({ state }) {
    if (state === "online") return void this.#arrived();
    if (this.here !== null) {
      this.#before = this.here;
      this.#left = performance.now();
    }
    this.#show(null);
  }

  async #arrived() {
    const { connection } = this.#client;
    const [from, left] = [this.#before, this.#left];
    const words = this.#caughtUp();
    const here = await this.#client.send("where").catch(() => null);
    if (connection !== this.#client.connection) return; // that was another connection
    this.#show(here);
    if (from === null || here === null || from === here) return;
    const told = await words;
    const seconds = ((performance.now() - left) / 1000).toFixed(1);
    if (connection === this.#client.connection) this.moved(`Moved to process ${here} in ${seconds} s; ${told}.`);
  }

  /** @param {number | null} here */
  #show(here) {
    this.here = here;
    $("#process").textContent = here === null ? "" : `process ${here}`;
  }

  /**
   * Write the list of all.
   * @param {Sums} sums
   */
  draw(sums) {
    if (!this.several) return;
    const { latest, beats } = sums;
    const items = this.#ports.map((port, index) => {
      const number = index + 1;
      const known = latest.get(number);
      const beat = known ? beats[known.report.node] : undefined;
      const words = known?.live ? life(known.points.connections.at(-1) ?? 0, beat) : death(beat);
      const place = h("span", { className: "port" }, `:${port}`);
      if (number === this.here) place.append(h("span", { className: "chip" }, "this page"));
      const node = known?.report.node ?? "";
      return h(
        "li",
        { "data-process": String(number), "data-live": String(known?.live ?? false) },
        h("b", {}, `Process ${number}`),
        place,
        h("span", { className: "node", title: `Its name on the store: ${node}` }, node.slice(0, SHORT)),
        h("span", { className: "about" }, words),
      );
    });
    $("#processes").replaceChildren(...items);
  }
}

/**
 * @param {number} connections
 * @param {number | undefined} beat seconds
 */
function life(connections, beat) {
  const heart = beat === undefined ? "" : ` · heartbeat ${Math.round(beat)} s ago`;
  return `${connections} ${connections === 1 ? "page" : "pages"}${heart}`;
}

/** @param {number | undefined} beat */
function death(beat) {
  return beat === undefined ? "gone" : `gone: no heartbeat for ${Math.round(beat)} s`;
}
