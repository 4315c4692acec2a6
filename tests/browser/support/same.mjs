/** Reads a list of pairs of modules from stdin, and writes those of which the two are not the same but for positions. */

import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";

import { parse } from "acorn";

const POSITIONS = new Set(["start", "end"]);

function tree(source) {
  const parsed = parse(source, { ecmaVersion: "latest", sourceType: "module" });
  return JSON.stringify(parsed, function (key, value) {
    if (POSITIONS.has(key)) return undefined;
    return typeof value === "bigint" || value instanceof RegExp ? String(value) : value;
  });
}

const wrong = [];
for (const [one, other] of JSON.parse(readFileSync(0, "utf8"))) {
  const expected = tree(one);
  let found;
  try {
    found = tree(other);
  } catch (error) {
    found = String(error);
  }
  if (!isDeepStrictEqual(found, expected)) wrong.push(`${other.slice(0, 500)}\n${found.slice(0, 200)}`);
}
console.log(JSON.stringify(wrong));
