/** A chart of the last minutes, in SVG: one or two series over time. Its numbers are in its description, too. */

import { h } from "./dom.js";

const [WIDTH, HEIGHT] = [300, 60]; // of the view box; the page stretches it, and lines keep their width
const GAP = 3500; // ms without a point after which a line is interrupted
const MOMENT = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

/** @param {number} value */
export const number = (value) => NUMBER.format(value);

/** @typedef {{ name: string, field: string, step?: boolean }} Series `step`: it holds until it changes */

/**
 * @param {string} name
 * @param {Record<string, string | number>} [attributes]
 */
function svg(name, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}

export class Chart {
  #area = svg("path", { class: "area" });
  #mark = svg("path", { class: "mark" });
  /** what the scale reaches to, or what there was where a pointer is */
  #top = h("p", { className: "top", "aria-hidden": "true" });
  /** @type {number | null} the moment where a pointer is */
  #marked = null;
  /** @type {Record<string, number[]>} */
  #points = { at: [] };
  #lines;
  #description;
  #series;
  #span;

  /**
   * @param {string} title
   * @param {Series[]} series the first one is filled
   * @param {number} span ms that it shows
   */
  constructor(title, series, span) {
    const id = `chart-${series[0].field}`;
    const name = svg("title", { id });
    name.textContent = title;
    this.#series = series;
    this.#span = span;
    this.#description = svg("desc", { id: `${id}-description` });
    this.#lines = series.map((_, index) => svg("path", { class: index ? "line second" : "line first" }));
    const grid = svg("path", { class: "grid", d: `M0 .5H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT - 0.5}H${WIDTH}` });
    this.drawing = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-labelledby": id,
      "aria-describedby": `${id}-description`,
    });
    this.drawing.append(name, this.#description, grid, this.#area, ...this.#lines, this.#mark);
    this.element = h("figure", {}, this.#top, this.drawing);
  }

  /** @param {Record<string, number[]>} points columns, `at` in Unix milliseconds among them */
  draw(points) {
    this.#points = points;
    const columns = this.#series.map(({ field }) => points[field] ?? []);
    const top = nice(Math.max(...columns.flat(), 0));
    columns.forEach((column, index) => {
      const { line, area } = this.#path(column, top, this.#series[index].step);
      this.#lines[index].setAttribute("d", line);
      if (index === 0) this.#area.setAttribute("d", area);
    });
    this.#top.dataset.top = number(top);
    this.mark(this.#marked);
    const words = this.#series.map(({ name }, index) => {
      const column = columns[index].length ? columns[index] : [0];
      const numbers = [column[column.length - 1], Math.min(...column), Math.max(...column)].map(number);
      return `${name}: now ${numbers[0]}, at least ${numbers[1]}, at most ${numbers[2]}`;
    });
    this.#description.textContent = `Over ${Math.round(this.#span / 60_000)} minutes. ${words.join(". ")}.`;
  }

  /** @param {number | null} at a moment in Unix milliseconds, to tell what there was then; null: none */
  mark(at) {
    this.#marked = at;
    const index = at === null ? -1 : this.#points.at.findIndex((one) => one >= at);
    const there = this.#points.at[index];
    this.#mark.setAttribute("d", index < 0 ? "" : `M${this.#x(there)} 0V${HEIGHT}`);
    const values = this.#series.map(({ name, field }) => `${number(this.#points[field]?.[index] ?? 0)} ${name}`);
    this.#top.textContent = index < 0 ? (this.#top.dataset.top ?? "") : `${MOMENT.format(there)}: ${values.join(", ")}`;
  }

  /**
   * The moment that a place on the chart stands for.
   * @param {number} clientX
   */
  moment(clientX) {
    const { left, width } = this.drawing.getBoundingClientRect();
    return (this.#points.at.at(-1) ?? 0) - this.#span * (1 - (clientX - left) / width);
  }

  /** @param {number} at */
  #x(at) {
    return round(WIDTH * (1 - ((this.#points.at.at(-1) ?? 0) - at) / this.#span));
  }

  /**
   * @param {number[]} column
   * @param {number} top
   * @param {boolean} [step]
   */
  #path(column, top, step) {
    const { at } = this.#points;
    let [line, area, start] = ["", "", 0];
    column.forEach((value, index) => {
      const [x, y] = [this.#x(at[index]), round((HEIGHT - 1) * (1 - value / top) + 0.5)];
      const first = index === 0 || at[index] - at[index - 1] > GAP;
      const last = index === column.length - 1 || at[index + 1] - at[index] > GAP;
      if (first) start = x;
      const there = step && !first ? `H${x}V${y}` : `L${x} ${y}`;
      line += first ? `M${x} ${y}` : there;
      area += first ? `M${x} ${HEIGHT}${there}` : there;
      if (last) area += `V${HEIGHT}H${start}Z`;
    });
    return { line, area };
  }
}

/** @param {number} value with one decimal: finer than a screen */
const round = (value) => Math.round(value * 10) / 10;

/** @param {number} value the next round number, so that the scale seldom jumps */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 4) / 4));
  return Math.max(1, Math.ceil(value / (4 * power))) * 4 * power;
}
