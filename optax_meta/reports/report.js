"use strict";
// Draws each chart of #chart-data as SVG, for screen and paper alike: legend, zoom, log axes, and
// the decisions behind a line, by pointer or by key. Python (`charts.py`) says what a chart holds.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "text", "circle", "rect", "clipPath"]);
// For print without colour. Five dashes and seven colours: 35 lines before one comes again.
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "16 4"];
const COLORS = 7;
const MARGIN = { left: 78, right: 14, top: 10, bottom: 40 };
// Pixels between the margins of an A4 page; on letter paper it grows by 3 %.
const PAPER = 680;
const PHONE = 600;

const make = (tag, attributes = {}, text = "") => {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== "") node.textContent = text;
  return node;
};
const color = (series) => `s${series.style % COLORS}`;
const lineStyle = (series) => ({ class: color(series), "stroke-dasharray": DASHES[series.style % DASHES.length] });
const clamp = (x, [low, high]) => Math.min(high, Math.max(low, x));
const spaced = (name) => name.replace(/_/g, " ");
const valueAt = (series, x) => series.y[before(series.x, x)];

const whole = (data) => {
  const ends = data.series.flatMap((s) => [s.x[0], s.x[s.x.length - 1]]);
  const first = Math.min(...ends), last = Math.max(...ends);
  return [first, last > first ? last : first + 1];
};

class Chart {
  constructor(holder, data, number) {
    this.data = data;
    this.clip = `clip-${number}`;
    this.whole = whole(data);
    // What the reader chose: the steps shown, which lines, and the step that is explained.
    this.range = [...this.whole];
    this.log = data.log;
    this.others = data.faint;
    this.hidden = new Set();
    this.current = 0;
    this.at = null;
    this.dragged = null;
    this.plot = make("div", { class: "plot" });
    this.svg = make("svg", {
      tabindex: 0, role: "group",
      "aria-label": `${data.title}. Arrow keys: left and right to the next decision, up and down to another line; + and − zoom, 0 resets.`,
    });
    this.tip = make("div", { class: "tip", role: "status", hidden: "" });
    this.plot.append(this.svg, this.tip);
    holder.append(this.legend(), this.tools(), this.plot);
    this.listen();
    new ResizeObserver(() => {
      if (this.plot.clientWidth && this.plot.clientWidth !== this.width) this.draw();
    }).observe(this.plot);
    this.draw();
  }

  // The same lines with new points; what the reader chose stays, and who saw the whole still does.
  update(data) {
    const sawWhole = this.range.every((x, k) => x === this.whole[k]);
    if (this.log === this.data.log) this.log = data.log;
    this.logButton.setAttribute("aria-pressed", this.log);
    this.data = data;
    this.whole = whole(data);
    this.range = sawWhole ? [...this.whole] : this.range.map((x) => clamp(x, this.whole));
    this.draw();
  }

  // Buttons. `act` returns whether its button is now pressed.
  button(label, isPressed, act) {
    const node = make("button", { type: "button", "aria-pressed": isPressed }, label);
    node.addEventListener("click", () => {
      node.setAttribute("aria-pressed", act());
      this.draw();
    });
    return node;
  }
  legend() {
    const bar = make("div", { class: "bar" });
    if (this.data.series.length < 2) return bar;
    this.data.series.forEach((s, i) => {
      const node = this.button(s.name, true, () => {
        if (!this.hidden.delete(i)) this.hidden.add(i);
        return !this.hidden.has(i);
      });
      const swatch = make("svg", { class: "swatch", width: 26, height: 10, "aria-hidden": "true" });
      swatch.append(make("line", { x1: 1, x2: 25, y1: 5, y2: 5, ...lineStyle(s), "stroke-width": 2.5 }));
      node.prepend(swatch);
      bar.append(node);
    });
    return bar;
  }
  tools() {
    const bar = make("div", { class: "bar tools" });
    this.logButton = this.button("log axis", this.log, () => (this.log = !this.log));
    bar.append(this.logButton);
    if (this.data.series.some((s) => s.others.length)) {
      bar.append(this.button(this.data.others, this.others, () => (this.others = !this.others)));
    }
    const reset = make("button", { type: "button" }, "reset zoom");
    reset.addEventListener("click", () => this.reset());
    bar.append(reset);
    return bar;
  }

  // Scales.
  visible() {
    return this.data.series.map((s, i) => [s, i]).filter(([, i]) => !this.hidden.has(i));
  }
  usable(v) {
    return v !== null && (!this.log || v > 0);
  }
  lowestAndHighest() {
    let low = Infinity, high = -Infinity;
    const take = (v) => { low = Math.min(low, v); high = Math.max(high, v); };
    const takeLine = (line, isStep) => {
      let latest = null;
      line.x.forEach((x, k) => {
        if (!this.usable(line.y[k]) || x > this.range[1]) return;
        if (x < this.range[0]) latest = line.y[k]; else take(line.y[k]);
      });
      // A line of steps enters the view at the height of the last point before it.
      if (isStep && latest !== null) take(latest);
    };
    for (const [s] of this.visible()) {
      takeLine(s, s.step);
      if (this.others) for (const other of s.others) takeLine(other, s.step);
    }
    return low <= high ? [low, high] : [this.log ? 0.1 : 0, 1];
  }
  scale(width) {
    this.width = Math.max(280, width);
    // Two charts with their captions fit on a sheet.
    this.height = this.width < PHONE ? 260 : this.width <= PAPER ? 300 : 340;
    const to = this.log ? Math.log10 : (v) => v, from = this.log ? (v) => 10 ** v : (v) => v;
    let [low, high] = this.lowestAndHighest().map(to);
    // Room above and below; a flat line runs through the middle.
    const room = high > low ? 0.06 * (high - low) : this.log ? 0.3 : 0.5 * Math.abs(low) || 1;
    low -= room;
    high += room;
    const inner = this.width - MARGIN.left - MARGIN.right, tall = this.height - MARGIN.top - MARGIN.bottom;
    const [start, end] = this.range;
    this.toX = (x) => MARGIN.left + ((x - start) / (end - start)) * inner;
    this.fromX = (px) => start + ((px - MARGIN.left) / inner) * (end - start);
    this.toY = (v) => this.height - MARGIN.bottom - ((to(v) - low) / (high - low)) * tall;
    return [from(low), from(high)];
  }

  // Drawing.
  draw(width = this.plot.clientWidth) {
    const values = this.scale(width);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
    this.drawAxes(values);
    this.drawLines();
    this.svg.append(
      make("g", { class: "cursor" }),
      make("rect", { class: "select", y: MARGIN.top, height: this.height - MARGIN.top - MARGIN.bottom, width: 0 }),
    );
    this.explain();
  }
  drawAxes(values) {
    const { left, right, bottom } = MARGIN, base = this.height - bottom, end = this.width - right;
    const text = (label, attributes) => this.svg.append(make("text", { "text-anchor": "middle", ...attributes }, label));
    const line = (kind, y) => this.svg.append(make("line", { class: kind, x1: left, x2: end, y1: y, y2: y }));
    for (const v of this.log ? logTicks(values) : linearTicks(values, 6)) {
      line("grid", this.toY(v));
      text(show(v), { x: left - 6, y: this.toY(v) + 4, "text-anchor": "end" });
    }
    for (const v of linearTicks(this.range, this.width < PHONE ? 4 : 8, 1)) {
      text(show(v), { x: this.toX(v), y: base + 17 });
    }
    line("axis", base);
    text(this.data.x, { x: (this.width + left) / 2, y: this.height - 5 });
    text(this.data.y, { transform: `translate(12 ${base / 2}) rotate(-90)` });
  }
  drawLines() {
    const clip = make("clipPath", { id: this.clip });
    const width = this.width - MARGIN.left - MARGIN.right;
    clip.append(make("rect", { x: MARGIN.left, y: 0, width, height: this.height - MARGIN.bottom + 2 }));
    const lines = make("g", { "clip-path": `url(#${this.clip})` });
    for (const [s] of this.visible()) {
      if (this.others) for (const o of s.others) lines.append(make("path", { d: this.path(o, s.step), class: `${color(s)} other` }));
      lines.append(make("path", { d: this.path(s, s.step), ...lineStyle(s), "data-series": s.name }), ...this.dots(s));
    }
    this.svg.append(clip, lines);
  }
  path(line, isStep) {
    let d = "", isOpen = false;
    line.x.forEach((x, k) => {
      const v = line.y[k];
      if (!this.usable(v)) { isOpen = false; return; }
      const px = this.toX(x).toFixed(1), py = this.toY(v).toFixed(1);
      d += !isOpen ? `M${px} ${py}` : isStep ? `H${px}V${py}` : `L${px} ${py}`;
      isOpen = true;
    });
    return d;
  }
  // A dot for each decision where there is room for them, and for a line of one point; a ring for
  // each step that leapt.
  dots(s) {
    const single = s.x.length === 1 ? s.x : (s.decisions || []).map((d) => d[0]);
    return [...this.marks(s, single, "dot", 2.5), ...this.marks(s, s.leaps || [], "leap", 5)];
  }
  marks(s, marked, kind, r) {
    const steps = marked.filter((x) => x >= this.range[0] && x <= this.range[1]);
    if (steps.length * 8 >= this.width) return [];
    return steps.filter((x) => this.usable(valueAt(s, x))).map((x) => this.circle(s, x, kind, r));
  }
  circle(s, x, kind, r) {
    return make("circle", { class: `${color(s)} ${kind}`, cx: this.toX(x), cy: this.toY(valueAt(s, x)), r });
  }

  // What stands behind the step `at` of the current line.
  explain() {
    const cursor = this.svg.querySelector(".cursor"), s = this.data.series[this.current];
    cursor.replaceChildren();
    this.tip.hidden = this.at === null || this.hidden.has(this.current);
    if (this.tip.hidden) return;
    const px = this.toX(this.at), value = valueAt(s, this.at);
    cursor.append(make("line", { x1: px, x2: px, y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    if (this.usable(value)) cursor.append(this.circle(s, this.at, "", 5));
    const place = `${this.data.x} ${show(Math.round(this.at))}: ${this.data.y} ${show(value)}`;
    this.tip.replaceChildren(make("strong", {}, s.name), make("p", {}, place));
    const decision = s.decisions && s.decisions[before(s.decisions.map((d) => d[0]), this.at)];
    if (decision && decision[0] <= this.at) this.describe(s, decision);
    this.placeTip(px);
  }
  describe(s, [step, action, reward, probabilities, features]) {
    const label = (k) => spaced(s.actions[k] || `action ${k}`);
    const earned = reward === null ? "not recorded" : show(reward);
    this.tip.append(make("p", {}, `Decision at step ${step}: ${label(action)}. Reward: ${earned}.`));
    const table = (title, names, values, digits, mark) => {
      const list = make("dl", { "aria-label": title });
      values.forEach((v, k) => {
        const rounded = v === null ? null : Number(v.toFixed(digits));
        list.append(make("dt", k === mark ? { class: "taken" } : {}, names(k)), make("dd", {}, show(rounded)));
      });
      this.tip.append(make("p", { class: "head" }, title), list);
    };
    table("Probabilities", label, probabilities, 4, action);
    table("What the policy observed", (k) => spaced(s.features[k]), features, 3, -1);
  }
  // Beside the line, on the side where there is more room.
  placeTip(px) {
    const isWide = this.width >= PHONE, isLeft = px < this.width / 2;
    this.tip.style.left = isWide && isLeft ? `${px + 14}px` : "";
    this.tip.style.right = isWide && !isLeft ? `${this.width - px + 14}px` : "";
  }

  // Reading.
  reset() {
    this.range = [...this.whole];
    this.draw();
  }
  zoom(factor, around) {
    const next = this.range.map((x) => clamp(around + (x - around) * factor, this.whole));
    if (next[1] - next[0] < 1e-3 * (this.whole[1] - this.whole[0])) return;
    this.range = next;
    this.draw();
  }
  leave() {
    this.dragged = null;
    this.at = null;
    this.draw();
  }
  // Pixels of the drawing, which a style sheet may have scaled.
  local(event) {
    const box = this.svg.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.width, ((event.clientY - box.top) / box.height) * this.height];
  }
  hover(event) {
    const [px, py] = this.local(event);
    const x = clamp(Math.round(this.fromX(px)), this.range);
    let best = Infinity;
    for (const [s, i] of this.visible()) {
      const v = valueAt(s, x);
      const gap = this.usable(v) ? Math.abs(this.toY(v) - py) : 1e9;
      // Among equals the one with decisions has more to say.
      if (gap < best - 0.5 || (gap < best + 0.5 && s.decisions)) { best = Math.min(best, gap); this.current = i; }
    }
    this.at = x;
    this.explain();
  }
  drag(event) {
    const [to] = this.local(event), box = this.svg.querySelector(".select");
    box.setAttribute("x", Math.min(this.dragged, to));
    box.setAttribute("width", Math.abs(to - this.dragged));
  }
  drop(event) {
    const ends = [this.dragged, this.local(event)[0]].sort((a, b) => a - b);
    // Less is a click with an unsteady hand.
    if (this.dragged !== null && ends[1] - ends[0] > 12) this.range = ends.map((px) => clamp(this.fromX(px), this.whole));
    this.dragged = null;
    this.draw();
    this.hover(event);
  }
  key(event) {
    const shown = this.visible().map(([, i]) => i);
    if (!shown.length) return;
    if (!shown.includes(this.current)) this.current = shown[0];
    const s = this.data.series[this.current], xs = s.decisions ? s.decisions.map((d) => d[0]) : s.x;
    const at = this.at === null ? -1 : before(xs, this.at), turn = shown.indexOf(this.current);
    const middle = this.at === null ? (this.range[0] + this.range[1]) / 2 : this.at;
    const walk = (to) => { this.at = xs[clamp(to, [0, xs.length - 1])]; };
    const turnTo = (to) => { this.current = shown[(to + shown.length) % shown.length]; this.at = middle; };
    const acts = {
      ArrowRight: () => walk(at + 1), ArrowLeft: () => walk(at - 1),
      ArrowUp: () => turnTo(turn - 1), ArrowDown: () => turnTo(turn + 1),
      "+": () => this.zoom(0.8, middle), "-": () => this.zoom(1.25, middle),
      0: () => { this.range = [...this.whole]; }, Escape: () => { this.at = null; },
    };
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
    // Who walks out of the view wants to see where.
    if (this.at !== null && this.at !== clamp(this.at, this.range)) this.range = [...this.whole];
    this.draw();
  }
  listen() {
    const on = (kind, act, options) => this.svg.addEventListener(kind, act, options);
    on("pointermove", (event) => (this.dragged === null ? this.hover(event) : this.drag(event)));
    on("pointerdown", (event) => {
      [this.dragged] = this.local(event);
      this.svg.setPointerCapture(event.pointerId);
      this.hover(event);
    });
    on("pointerup", (event) => this.drop(event));
    on("pointercancel", () => { this.dragged = null; this.draw(); });
    // A finger that is lifted has left too, but what it tapped stays explained.
    on("pointerleave", (event) => { if (event.pointerType !== "touch") this.leave(); });
    on("dblclick", () => this.reset());
    on("blur", () => { this.at = null; this.explain(); });
    on("wheel", (event) => {
      // The page scrolls unless the chart was clicked or Ctrl is held.
      if (document.activeElement !== this.svg && !event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.fromX(this.local(event)[0]));
    }, { passive: false });
    on("keydown", (event) => this.key(event));
  }
}

const data = JSON.parse(document.getElementById("chart-data").textContent);
const charts = data.map((chart, i) => new Chart(document.getElementById(`chart-${chart.id}`), chart, i));
// A chart as wide as the window would shrink on paper, and its text with it. The reader's zoom and
// choice of lines stay: what was looked at is what is printed.
addEventListener("beforeprint", () => charts.forEach((chart) => chart.draw(PAPER)));
addEventListener("afterprint", () => charts.forEach((chart) => chart.draw()));
