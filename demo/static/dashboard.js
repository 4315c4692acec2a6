/** The dashboard: what the server counts, drawn once a second for as long as it is looked at. */

import { Chart, number } from "./chart.js";
import { $, h } from "./dom.js";
import { Sums } from "./sums.js";

/** @import { Processes } from "./processes.js" */
/** @import { Report } from "./sums.js" */

const SPAN = 300_000; // ms that the charts show
const KEPT = 300; // points: as many as the server keeps
const CODES = 6; // refusals are listed by so many codes

/** The charts, by panel. @type {Record<string, [string, import("./chart.js").Series[]]>} */
const CHARTS = {
  messages: [
    "Messages a second",
    [
      { name: "in", field: "received" },
      { name: "out", field: "sent" },
    ],
  ],
  connections: [
    "Connections",
    [
      { name: "open", field: "connections", step: true },
      { name: "people", field: "people", step: true },
    ],
  ],
  members: ["Members", [{ name: "in rooms", field: "members", step: true }]],
  refusals: ["Refusals a second", [{ name: "refused", field: "refused" }]],
  resumes: [
    "Resumes a second",
    [
      { name: "recovered", field: "resumed" },
      { name: "reset", field: "reset" },
    ],
  ],
};

export class Dashboard {
  /** @type {any} the room while it is watched */
  #room = null;
  #sums = new Sums(KEPT);
  /** @type {Chart[]} */
  #charts = [];
  #client;
  #titles;
  #processes;

  /**
   * @param {any} client
   * @param {Record<string, string>} titles of the rooms
   * @param {Processes} processes
   */
  constructor(client, titles, processes) {
    this.#client = client;
    this.#titles = titles;
    this.#processes = processes;
    for (const [name, [title, series]] of Object.entries(CHARTS)) {
      const chart = new Chart(title, series, SPAN);
      this.#charts.push(chart);
      $(`[data-panel="${name}"]`).append(chart.element);
      // All charts tell of the moment that a pointer is at on one of them.
      chart.drawing.addEventListener("pointermove", (event) => {
        const { clientX } = /** @type {PointerEvent} */ (event);
        this.#mark(chart.moment(clientX));
      });
      chart.drawing.addEventListener("pointerleave", () => this.#mark(null));
    }
    client.on("rt:state", ({ state = "" }) => this.#fresh(state === "online"));
  }

  /**
   * Watch, or stop: nobody is told what nobody looks at.
   * @param {boolean} on
   */
  watch(on) {
    if (on === (this.#room !== null)) return;
    if (!on) return this.#room.leave();
    const room = (this.#room = this.#client.join("dashboard"));
    room.on("stats", (/** @type {Report} */ report) => this.#show(report));
    // The room keeps nothing, so that after each break the last minutes are asked for.
    room.on("rt:reset", () => this.#load(room));
    room.on("rt:left", () => void (this.#room = null));
    room.on("rt:refused", () => void (this.#room = null));
    this.#load(room);
  }

  /** @param {any} room */
  async #load(room) {
    try {
      const reports = await room.send("snapshot");
      this.#sums = new Sums(KEPT);
      this.#show(...reports);
    } catch {
      this.#fresh(false); // left, or closed: whoever looks again asks again
    }
  }

  /** @param {Report[]} reports */
  #show(...reports) {
    for (const report of reports) this.#sums.add(report);
    const { points, rooms, counts } = this.#sums;
    const { refused, resumed, reset } = counts;
    for (const chart of this.#charts) chart.draw(points);
    const refusals = Object.values(refused).reduce((sum, count) => sum + count, 0);
    const last = Object.entries(points).map(([field, column]) => [field, column[column.length - 1] ?? 0]);
    this.#write({ ...Object.fromEntries(last), resumed, reset, refusals });
    const titled = Object.entries(this.#titles).map(([name, title]) => [title, rooms[name] ?? 0]);
    this.#list("rooms", /** @type {[string, number][]} */ (titled));
    const codes = Object.entries(refused).sort(([, a], [, b]) => b - a);
    this.#list("refused", codes.slice(0, CODES));
    this.#processes.draw(this.#sums);
    this.#fresh(true);
  }

  /** @param {Record<string, number>} stats */
  #write(stats) {
    for (const [name, value] of Object.entries(stats)) {
      const element = $(`[data-stat="${name}"]`);
      if (element) element.textContent = number(value);
    }
  }

  /**
   * @param {string} name
   * @param {[string, number][]} rows
   */
  #list(name, rows) {
    const most = Math.max(...rows.map(([, value]) => value), 1);
    const items = rows.map(([label, value]) => {
      const item = h("li", { "data-row": label }, h("span", {}, label), h("b", {}, number(value)));
      item.style.setProperty("--part", String(value / most));
      return item;
    });
    $(`[data-list="${name}"]`).replaceChildren(...items);
  }

  /** @param {boolean} fresh false: the numbers stand still */
  #fresh(fresh) {
    $("[data-panels]").classList.toggle("still", !fresh);
    $("#stale").textContent = fresh ? "" : "· no connection";
  }

  /** @param {number | null} at */
  #mark(at) {
    for (const chart of this.#charts) chart.mark(at);
  }
}
