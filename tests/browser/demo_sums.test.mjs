/** The demo's dashboard adds up what several processes report. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Sums } from "../../demo/static/sums.js";

const START = 1_700_000_000;

/** A report of process `process`, with one point per value: at second 0, 1, … after `START`, `off` ms late. */
function report(process, values, { off = 0, from = 0, run = `run ${process}`, people = 1, ...rest } = {}) {
  const at = values.map((_, index) => (START + from + index) * 1000 + off);
  const points = { at, connections: values, people: values.map(() => people) };
  const counted = { rooms: {}, refused: {}, resumed: 0, reset: 0, beats: {} };
  return { process, run, node: `node ${process}`, points, ...counted, ...rest };
}

function summed(...reports) {
  const sums = new Sums(300);
  for (const one of reports) sums.add(one);
  return sums;
}

test("one process alone is shown as it reports", () => {
  const one = report(1, [1, 2, 3], { off: 123 });
  assert.deepEqual(summed(one).points, one.points);
});

test("what several have at the same second is added, but people are those of all", () => {
  const { points } = summed(report(1, [1, 2], { people: 4 }), report(2, [10, 20], { off: 300, people: 5 }));
  assert.deepEqual(points, { at: [START * 1000, (START + 1) * 1000], connections: [11, 22], people: [5, 5] });
});

test("a second that not all have told of yet is not shown", () => {
  const sums = summed(report(1, [1, 2]), report(2, [10]));
  assert.deepEqual(sums.points.connections, [11]);
  sums.add(report(2, [20], { from: 1 }));
  assert.deepEqual(sums.points.connections, [11, 22]);
});

test("a second that a late clock left out is as the one after it", () => {
  const late = report(2, [10, 20]);
  late.points.at[1] += 1000;
  assert.deepEqual(summed(report(1, [1, 2, 3]), late).points.connections, [11, 22, 23]);
});

test("a process that is gone counts for when it was there, and what it counted stays", () => {
  const gone = report(1, [5, 5], { rooms: { lobby: 5 }, refused: { forbidden: 2 }, resumed: 3 });
  const there = report(2, Array(8).fill(1), { rooms: { lobby: 1 }, refused: { forbidden: 1 }, resumed: 1, reset: 1 });
  const sums = summed(gone, there);
  assert.deepEqual(sums.points.connections, [6, 6, 1, 1, 1, 1, 1, 1]);
  assert.deepEqual(sums.rooms, { lobby: 1 });
  assert.deepEqual(sums.counts, { resumed: 4, reset: 1, refused: { forbidden: 3 } });
  assert.deepEqual([...sums.latest].map(([number, { live }]) => [number, live]), [[1, false], [2, true]]);
});

test("a process that was started again is another run of the same number", () => {
  const sums = summed(
    report(1, [5], { refused: { forbidden: 2 } }),
    report(1, [1], { from: 8, run: "another", beats: { "node 1": 0.5 } }),
  );
  const now = sums.latest.get(1);
  assert.deepEqual([now.live, now.report.run, now.points.connections], [true, "another", [1]]);
  assert.deepEqual(sums.counts.refused, { forbidden: 2 });
  assert.deepEqual(sums.beats, { "node 1": 0.5 });
});

test("so many points of each are kept", () => {
  const sums = new Sums(3);
  for (let second = 0; second < 9; second++) sums.add(report(1, [second], { from: second }));
  assert.deepEqual(sums.points.connections, [6, 7, 8]);
});

test("nothing at all is nothing to show", () => {
  const sums = new Sums(300);
  assert.deepEqual([sums.points, sums.rooms, sums.beats, sums.latest.size], [{}, {}, {}, 0]);
});
