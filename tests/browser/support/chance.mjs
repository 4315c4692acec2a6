/** Chance that is the same in every run. */

/** @param {number} seed */
export function dice(seed) {
  let state = seed >>> 0;
  // mulberry32: 32 bits of state are plenty for tests.
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    random,
    between: (low, high) => low + random() * (high - low),
    one: (...choices) => choices[Math.floor(random() * choices.length)],
  };
}
