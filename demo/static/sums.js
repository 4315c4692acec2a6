/** Sums: what the processes of the server report, added up. */

const GAP = 3500; // ms without a word after which a process counts as gone, and a line is interrupted

/**
 * What a process tells: columns of points, and what stands since its start.
 * @typedef {object} Report
 * @property {number} process its number
 * @property {string} run another one after each start
 * @property {string} node its name on the store
 * @property {Record<string, number>} beats node → seconds since the store last heard of it
 * @property {Record<string, number[]>} points
 * @property {Record<string, number>} rooms
 * @property {Record<string, number>} refused
 * @property {number} resumed
 * @property {number} reset
 *
 * @typedef {{ report: Report, points: Record<string, number[]>, last: number }} Run `last`: Unix milliseconds
 */

export class Sums {
  /** @type {Map<string, Run>} */
  #runs = new Map();
  #kept;

  /** @param {number} kept points of each process */
  constructor(kept) {
    this.#kept = kept;
  }

  /** @param {Report} report */
  add(report) {
    const points = this.#runs.get(report.run)?.points ?? { at: [] };
    for (const [field, column] of Object.entries(report.points)) {
      points[field] = [...(points[field] ?? []), ...column].slice(-this.#kept);
    }
    this.#runs.set(report.run, { report, points, last: points.at.at(-1) ?? 0 });
  }

  /** The last word of each process, by number. */
  get latest() {
    const runs = [...this.#runs.values()].sort((a, b) => a.last - b.last);
    return new Map(runs.map((run) => [run.report.process, { ...run, live: this.#live(run) }]));
  }

  /** How old the newest word of each node's heart is, as the newest report has it. */
  get beats() {
    return this.#newest?.report.beats ?? {};
  }

  /** Members by room, of the processes that are there. */
  get rooms() {
    return added([...this.#runs.values()].filter((run) => this.#live(run)).map(({ report }) => report.rooms));
  }

  /** What was counted since the start, of those that are gone as well. */
  get counts() {
    const reports = [...this.#runs.values()].map(({ report }) => report);
    const { resumed = 0, reset = 0 } = added(reports.map(({ resumed, reset }) => ({ resumed, reset })));
    return { resumed, reset, refused: added(reports.map(({ refused }) => refused)) };
  }

  /** One point for each second, all processes together: each already knows how many people there are on all. */
  get points() {
    const runs = [...this.#runs.values()];
    if (runs.length === 1) return runs[0].points;
    /** @type {Map<number, Record<string, number>[]>} */
    const seconds = new Map();
    for (const { points } of runs) {
      points.at.forEach((at, index) => {
        const row = Object.fromEntries(Object.entries(points).map(([field, column]) => [field, column[index]]));
        const second = Math.round(at / 1000);
        const before = seconds.get(second - 1);
        // A clock that ticks a little late leaves out a second now and then.
        if (index && second - Math.round(points.at[index - 1] / 1000) === 2) before?.push(row);
        seconds.set(second, [...(seconds.get(second) ?? []), row]);
      });
    }
    const live = runs.filter((run) => this.#live(run)).length;
    const rows = [...seconds].sort(([a], [b]) => a - b);
    // The last second is complete when all have told of it.
    if (rows.length > 1 && rows[rows.length - 1][1].length < live) rows.pop();
    /** @type {Record<string, number[]>} */
    const sums = {};
    for (const [second, points] of rows) {
      const sum = { ...added(points), people: Math.max(...points.map(({ people }) => people)), at: second * 1000 };
      for (const [field, value] of Object.entries(sum)) (sums[field] ??= []).push(value);
    }
    return sums;
  }

  /** @param {Run} run */
  #live({ last }) {
    return last > (this.#newest?.last ?? 0) - GAP;
  }

  /** @returns {Run | undefined} */
  get #newest() {
    return [...this.#runs.values()].reduce((a, b) => (b.last > a.last ? b : a), [...this.#runs.values()][0]);
  }
}

/** @param {Record<string, number>[]} records */
function added(records) {
  /** @type {Record<string, number>} */
  const sums = {};
  for (const record of records) for (const [key, value] of Object.entries(record)) sums[key] = (sums[key] ?? 0) + value;
  return sums;
}
