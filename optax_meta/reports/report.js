"use strict";
// Draws each chart of #chart-data as SVG: legend toggles, zoom, log axes, decisions on hover or by key.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "16 4"];
  const M = { left: 78, right: 14, top: 10, bottom: 40 };

  const make = (tag, attrs = {}, text = "") => {
    const node = ["svg", "g", "path", "line", "text", "circle", "rect", "clipPath"].includes(tag)
      ? document.createElementNS(NS, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attrs)) node.setAttribute(key, value);
    if (text !== "") node.textContent = text;
    return node;
  };
  const show = (v) => {
    if (v === null || v === undefined) return "–";
    const a = Math.abs(v);
    return a !== 0 && (a < 1e-3 || a >= 1e5) ? v.toExponential(2).replace(/\.?0*e\+?/, "e") : String(Number(v.toPrecision(4)));
  };
  const linearTicks = (lo, hi, count, least = 0) => {
    const raw = Math.max((hi - lo) / count, least), base = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * base).find((s) => s >= raw) || raw;
    const ticks = [];
    for (let v = Math.ceil(lo / step) * step; v <= hi + step * 1e-9; v += step) ticks.push(Number(v.toPrecision(12)));
    return ticks;
  };
  const logTicks = (lo, hi) => {
    const from = Math.floor(Math.log10(lo)), to = Math.ceil(Math.log10(hi)), skip = Math.ceil((to - from) / 7);
    const ticks = (digits, every) => {
      const found = [];
      for (let k = from; k <= to; k += every) for (const d of digits) found.push(Number(`${d}e${k}`));
      return found.filter((v) => v >= lo && v <= hi);
    };
    const few = [ticks([1], skip), ticks([1, 3], 1), ticks([1, 2, 5], 1)].find((found) => found.length > 3);
    return few || linearTicks(lo, hi, 4).filter((v) => v > 0);
  };
  // Index of the last x that is ≤ at, or of the first.
  const before = (xs, at) => {
    let lo = 0, hi = xs.length;
    while (lo < hi) { const mid = (lo + hi) >> 1; if (xs[mid] <= at) lo = mid + 1; else hi = mid; }
    return Math.max(0, lo - 1);
  };

  function chart(holder, data) {
    const all = [Math.min(...data.series.map((s) => s.x[0])), Math.max(...data.series.map((s) => s.x[s.x.length - 1]))];
    if (all[0] === all[1]) all[1] += 1;
    const view = { x: [...all], log: data.log, others: data.faint, hidden: new Set(), current: 0, at: null };
    let W = 900, H = 340, sx, sy, ux, from = null;

    const bar = make("div", { class: "bar" });
    const button = (label, pressed, act) => {
      const node = make("button", { type: "button" }, label);
      if (pressed !== null) node.setAttribute("aria-pressed", pressed);
      node.addEventListener("click", () => { const on = act(); if (pressed !== null) node.setAttribute("aria-pressed", on); draw(); });
      return node;
    };
    const style = (s) => ({ class: `s${s.style % 7}`, "stroke-dasharray": DASHES[s.style % DASHES.length] });
    if (data.series.length > 1) data.series.forEach((s, i) => {
      const node = button(s.name, true, () => {
        if (view.hidden.has(i)) view.hidden.delete(i); else view.hidden.add(i);
        return !view.hidden.has(i);
      });
      const swatch = make("svg", { class: "swatch", width: 26, height: 10, "aria-hidden": "true" });
      swatch.append(make("line", { x1: 1, x2: 25, y1: 5, y2: 5, ...style(s), "stroke-width": 2.5 }));
      node.prepend(swatch);
      bar.append(node);
    });
    const tools = make("div", { class: "bar tools" });
    tools.append(button("log axis", view.log, () => (view.log = !view.log)));
    if (data.series.some((s) => s.others && s.others.length)) tools.append(button(data.others, view.others, () => (view.others = !view.others)));
    tools.append(button("reset zoom", null, () => { view.x = [...all]; }));
    const plot = make("div", { class: "plot" });
    const svg = make("svg", { tabindex: 0, role: "group", "aria-label": `${data.title}. Arrow keys: left and right to the next decision, up and down to another line; + and − zoom, 0 resets.` });
    const tip = make("div", { class: "tip", role: "status", hidden: "" });
    plot.append(svg, tip);
    if (data.title !== holder.closest("figure").previousElementSibling.textContent) holder.append(make("h3", {}, data.title));
    holder.append(bar, tools, plot);

    const visible = () => data.series.map((s, i) => [s, i]).filter(([, i]) => !view.hidden.has(i));
    const usable = (v) => v !== null && (!view.log || v > 0);

    function scales() {
      W = Math.max(280, plot.clientWidth); H = W < 600 ? 260 : 340;
      let lo = Infinity, hi = -Infinity;
      const take = (line, step) => {
        let last = null;
        line.x.forEach((x, k) => {
          const v = line.y[k];
          if (!usable(v)) return;
          if (x < view.x[0]) { last = v; return; }
          if (x <= view.x[1]) { lo = Math.min(lo, v); hi = Math.max(hi, v); }
        });
        if (step && last !== null) { lo = Math.min(lo, last); hi = Math.max(hi, last); }
      };
      for (const [s] of visible()) { take(s, s.step); if (view.others) (s.others || []).forEach((o) => take(o, s.step)); }
      if (lo > hi) { lo = view.log ? 0.1 : 0; hi = 1; }
      const f = view.log ? Math.log10 : (v) => v;
      let a = f(lo), b = f(hi);
      const pad = b > a ? 0.06 * (b - a) : view.log ? 0.3 : 0.5 * Math.abs(a) || 1;
      a -= pad; b += pad;
      const range = view.log ? [10 ** a, 10 ** b] : [a, b];
      sx = (x) => M.left + ((x - view.x[0]) / (view.x[1] - view.x[0])) * (W - M.left - M.right);
      ux = (p) => view.x[0] + ((p - M.left) / (W - M.left - M.right)) * (view.x[1] - view.x[0]);
      sy = (v) => H - M.bottom - ((f(v) - a) / (b - a)) * (H - M.top - M.bottom);
      return range;
    }
    function path(line, step) {
      let d = "", open = false;
      line.x.forEach((x, k) => {
        const v = line.y[k];
        if (!usable(v)) { open = false; return; }
        const px = sx(x).toFixed(1), py = sy(v).toFixed(1);
        d += open ? (step ? `H${px}V${py}` : `L${px} ${py}`) : `M${px} ${py}`;
        open = true;
      });
      return d;
    }
    function draw() {
      const range = scales();
      svg.replaceChildren();
      svg.setAttribute("viewBox", `0 0 ${W} ${H}`); svg.setAttribute("height", H);
      const clip = make("clipPath", { id: `clip-${data.id}` });
      clip.append(make("rect", { x: M.left, y: 0, width: W - M.left - M.right, height: H - M.bottom + 2 }));
      svg.append(clip);
      for (const v of view.log ? logTicks(...range) : linearTicks(...range, 5)) {
        svg.append(make("line", { class: "grid", x1: M.left, x2: W - M.right, y1: sy(v), y2: sy(v) }),
          make("text", { x: M.left - 6, y: sy(v) + 4, "text-anchor": "end" }, show(v)));
      }
      for (const v of linearTicks(...view.x, W < 600 ? 4 : 8, 1)) {
        svg.append(make("text", { x: sx(v), y: H - M.bottom + 17, "text-anchor": "middle" }, show(v)));
      }
      svg.append(make("line", { class: "axis", x1: M.left, x2: W - M.right, y1: H - M.bottom, y2: H - M.bottom }),
        make("text", { x: (W + M.left) / 2, y: H - 5, "text-anchor": "middle" }, data.x),
        make("text", { transform: `translate(12 ${(H - M.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, data.y));
      const lines = make("g", { "clip-path": `url(#clip-${data.id})` });
      for (const [s] of visible()) {
        if (view.others) for (const o of s.others || []) lines.append(make("path", { d: path(o, s.step), class: `s${s.style % 7} other` }));
        lines.append(make("path", { d: path(s, s.step), ...style(s), "data-series": s.name }));
        const marked = s.x.length === 1 ? s.x : (s.decisions || []).map((d) => d[0]);
        const steps = marked.filter((x) => x >= view.x[0] && x <= view.x[1]);
        // A dot for each decision where there is room for them, and for a line of one point.
        if (steps.length * 8 < W) for (const x of steps) {
          const v = valueAt(s, x);
          if (usable(v)) lines.append(make("circle", { class: `s${s.style % 7} dot`, cx: sx(x), cy: sy(v), r: 2.5 }));
        }
      }
      svg.append(lines, make("g", { class: "cursor" }), make("rect", { class: "select", y: M.top, height: H - M.top - M.bottom, width: 0 }));
      point();
    }
    const valueAt = (s, x) => s.y[before(s.x, x)];

    function point() {
      const cursor = svg.querySelector(".cursor"), s = data.series[view.current];
      cursor.replaceChildren();
      if (view.at === null || view.hidden.has(view.current)) { tip.hidden = true; return; }
      const decision = s.decisions && s.decisions[before(s.decisions.map((d) => d[0]), view.at)];
      const value = valueAt(s, view.at), px = sx(view.at);
      cursor.append(make("line", { x1: px, x2: px, y1: M.top, y2: H - M.bottom }));
      if (usable(value)) cursor.append(make("circle", { cx: px, cy: sy(value), r: 5, class: `s${s.style % 7}` }));
      explain(s, value, decision && decision[0] <= view.at ? decision : null);
      tip.hidden = false;
      const wide = W >= 600;
      tip.style.left = !wide ? "" : px < W / 2 ? `${px + 14}px` : "";
      tip.style.right = !wide ? "" : px < W / 2 ? "" : `${W - px + 14}px`;
    }
    function explain(s, value, decision) {
      tip.replaceChildren(make("strong", {}, s.name), make("p", {}, `${data.x} ${show(Math.round(view.at))}: ${data.y} ${show(value)}`));
      if (!decision) return;
      const [step, action, reward, probabilities, features] = decision;
      const label = (k) => (s.actions[k] || `action ${k}`).replace(/_/g, " ");
      tip.append(make("p", {}, `Decision at step ${step}: ${label(action)}. Reward: ${reward === null ? "not recorded" : show(reward)}.`));
      const table = (title, names, values, mark) => {
        const list = make("dl", { "aria-label": title });
        values.forEach((v, k) => list.append(make("dt", k === mark ? { class: "taken" } : {}, names(k)), make("dd", {}, show(v))));
        tip.append(make("p", { class: "head" }, title), list);
      };
      table("Probabilities", label, probabilities.map((p) => Math.round(p * 1e4) / 1e4), action);
      table("What the policy saw", (k) => s.features[k].replace(/_/g, " "), features.map((v) => Math.round(v * 1e3) / 1e3), -1);
    }
    function zoom(factor, around) {
      const next = view.x.map((x) => around + (x - around) * factor);
      view.x = [Math.max(all[0], next[0]), Math.min(all[1], next[1])];
      if (view.x[1] - view.x[0] < 1e-3 * (all[1] - all[0])) return;
      draw();
    }
    const local = (event) => ((event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width) * W;
    function hover(event) {
      const px = local(event), box = svg.getBoundingClientRect(), py = ((event.clientY - box.top) / box.height) * H;
      const x = Math.min(view.x[1], Math.max(view.x[0], Math.round(ux(px))));
      let best = Infinity;
      for (const [s, i] of visible()) {
        const v = valueAt(s, x);
        const gap = usable(v) ? Math.abs(sy(v) - py) : 1e9;
        // Among equals the one with decisions has more to say.
        if (gap < best - 0.5 || (gap < best + 0.5 && s.decisions)) { best = Math.min(best, gap); view.current = i; }
      }
      view.at = x; point();
    }
    svg.addEventListener("pointermove", (event) => {
      if (from === null) { hover(event); return; }
      const to = local(event), box = svg.querySelector(".select");
      box.setAttribute("x", Math.min(from, to)); box.setAttribute("width", Math.abs(to - from));
    });
    svg.addEventListener("pointerdown", (event) => { from = local(event); svg.setPointerCapture(event.pointerId); hover(event); });
    svg.addEventListener("pointerup", (event) => {
      const ends = [from, local(event)].sort((a, b) => a - b).map(ux);
      if (from !== null && Math.abs(local(event) - from) > 12) view.x = [Math.max(all[0], ends[0]), Math.min(all[1], ends[1])];
      from = null; draw(); hover(event);
    });
    svg.addEventListener("pointercancel", () => { from = null; draw(); });
    svg.addEventListener("dblclick", () => { view.x = [...all]; draw(); });
    // A finger that is lifted has left too, but what it tapped stays explained.
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") { from = null; view.at = null; draw(); } });
    svg.addEventListener("blur", () => { view.at = null; point(); });
    svg.addEventListener("wheel", (event) => {
      // The page scrolls unless the chart was clicked or Ctrl is held.
      if (document.activeElement !== svg && !event.ctrlKey) return;
      event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, ux(local(event)));
    }, { passive: false });
    svg.addEventListener("keydown", (event) => {
      const shown = visible().map(([, i]) => i);
      if (!shown.length) return;
      if (!shown.includes(view.current)) view.current = shown[0];
      const s = data.series[view.current], xs = s.decisions ? s.decisions.map((d) => d[0]) : s.x;
      const at = view.at === null ? -1 : before(xs, view.at), turn = shown.indexOf(view.current);
      const middle = view.at === null ? (view.x[0] + view.x[1]) / 2 : view.at;
      const acts = {
        ArrowRight: () => { view.at = xs[Math.min(xs.length - 1, at + 1)]; },
        ArrowLeft: () => { view.at = xs[Math.max(0, at - 1)]; },
        ArrowUp: () => { view.current = shown[(turn + shown.length - 1) % shown.length]; view.at = middle; },
        ArrowDown: () => { view.current = shown[(turn + 1) % shown.length]; view.at = middle; },
        "+": () => zoom(0.8, middle), "-": () => zoom(1.25, middle), "0": () => { view.x = [...all]; },
        Escape: () => { view.at = null; },
      };
      if (!(event.key in acts)) return;
      event.preventDefault(); acts[event.key]();
      if (view.at !== null && (view.at < view.x[0] || view.at > view.x[1])) view.x = [...all];
      draw();
    });
    new ResizeObserver(() => { if (plot.clientWidth && plot.clientWidth !== W) draw(); }).observe(plot);
    draw();
  }

  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  for (const data of charts) {
    const holder = document.getElementById(`chart-${data.id}`);
    holder.closest("figure").classList.add("live");
    chart(holder, data);
  }
})();
