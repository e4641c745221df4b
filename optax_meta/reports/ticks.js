"use strict";
// Numbers as they stand on axes: how they are written, and which are shown.

const show = (v) => {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  const isFar = size !== 0 && (size < 1e-3 || size >= 1e5);
  return isFar ? v.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(v.toPrecision(4)));
};

// About `count` round numbers, no closer than `least`.
const linearTicks = ([low, high], count, least = 0) => {
  const raw = Math.max((high - low) / count, least), base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw) || raw;
  const ticks = [];
  // A last tick that rounding puts beyond the end still counts; its label must not show rounding.
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) ticks.push(Number(v.toPrecision(12)));
  return ticks;
};

// Whole decades where there are enough of them, else parts of decades, else round numbers.
const logTicks = ([low, high]) => {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const ticks = (digits, every) => {
    const found = [];
    for (let k = from; k <= to; k += every) for (const d of digits) found.push(Number(`${d}e${k}`));
    return found.filter((v) => v >= low && v <= high);
  };
  const candidates = [ticks([1], Math.ceil((to - from) / 7)), ticks([1, 3], 1), ticks([1, 2, 5], 1)];
  return candidates.find((found) => found.length > 3) || linearTicks([low, high], 4).filter((v) => v > 0);
};

// Index of the last x that is ≤ at, or of the first.
const before = (xs, at) => {
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= at) low = middle + 1; else high = middle;
  }
  return Math.max(0, low - 1);
};
