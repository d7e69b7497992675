"""The script of pages: curves to look at by mouse, finger or keys, and a page that follows a run.

A chart is a `figure` with JSON: `x` and `y` list what its axes may show (key, title, kind of number), `series` what is
drawn (name, group, whether it is shown at first, and a list of values under each key; `<key>:low` and `<key>:high`
make a band), `marks` the places to point out. Texts reach the page by `textContent` alone.
"""

SCRIPT = """
(() => {
"use strict";
const kept = new Map();
const written = {
  bytes(v) {
    const power = Math.min(4, Math.max(0, Math.floor(Math.log10(Math.abs(v) || 1) / 3)));
    return +(v / 1000 ** power).toFixed(power ? 1 : 0) + " " + ["B", "kB", "MB", "GB", "TB"][power];
  },
  seconds(v) {
    const [divisor, unit] = v < 60 ? [1, "s"] : v < 3600 ? [60, "min"] : [3600, "h"];
    return +(v / divisor).toFixed(1) + " " + unit;
  },
  count: v => String(+v.toFixed(2)),
  metric(v) {
    const size = Math.abs(v);
    return size >= 1e5 || (size && size < 1e-4) ? v.toExponential(2) : v.toFixed(size >= 100 ? 1 : 3);
  },
};
const make = (parent, name, attributes = {}, text = "") => {
  const svg = name === "svg" || parent instanceof SVGElement;
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
};
const ticks = (low, high, count, whole) => {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw * .999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
};
const looks = n => ({
  colour: `var(--c${n % 8})`,
  dash: ["", "7 3", "2 3"][Math.floor(n / 8) % 3],
  border: ["solid", "dashed", "dotted"][Math.floor(n / 8) % 3],
});

function chart(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const shown = new Map(data.series.map(s => [s.name, s.shown !== false]));
  const start = { x: data.x[0].key, y: data.y[0].key, shown };
  const now = kept.get(figure.id) || start;
  kept.set(figure.id, now);
  for (const axis of ["x", "y"]) if (!data[axis].some(one => one.key === now[axis])) now[axis] = start[axis];
  for (const [name, shown] of start.shown) if (!now.shown.has(name)) now.shown.set(name, shown);
  const controls = make(figure, "div", { class: "controls" });
  for (const [axis, label] of [["y", "Show"], ["x", "against"]]) {
    const choose = make(make(controls, "label", {}, label + " "), "select");
    for (const one of data[axis]) {
      make(choose, "option", { value: one.key }, one.title).selected = one.key === now[axis];
    }
    choose.addEventListener("change", () => { now[axis] = choose.value; draw() });
  }
  const place = make(figure, "div"), said = make(figure, "div", { class: "unseen", "aria-live": "polite" });
  const tip = make(figure, "div", { class: "tip", hidden: "" });
  const legend = make(figure, "div", { class: "controls legend", role: "group", "aria-label": "curves to show" });
  const groups = [...new Set(data.series.map(s => s.group).filter(Boolean))];
  const press = (button, members) => {
    button.addEventListener("click", () => {
      const shown = !members.every(name => now.shown.get(name));
      members.forEach(name => now.shown.set(name, shown));
      draw();
    });
    button.refresh = () => button.setAttribute("aria-pressed", members.every(name => now.shown.get(name)));
  };
  data.series.forEach((series, n) => {
    const button = make(legend, "button", { type: "button" });
    make(button, "i", { style: `border-color: ${looks(n).colour}; border-top-style: ${looks(n).border}` });
    button.append(series.name);
    button.series = series;
    press(button, [series.name]);
  });
  for (const group of groups) {
    const members = data.series.filter(s => s.group === group).map(s => s.name);
    if (members.length > 1) press(make(legend, "button", { type: "button" }, `all ${group}`), members);
  }
  let at = null, view = null;

  function draw() {
    for (const button of legend.children) {
      button.refresh();
      if (button.series) button.hidden = !button.series[now.y];
    }
    const x = data.x.find(one => one.key === now.x), y = data.y.find(one => one.key === now.y);
    const curves = [];
    data.series.forEach((series, n) => {
      if (!now.shown.get(series.name) || !series[now.y] || !series[now.x]) return;
      const low = series[now.y + ":low"] || [], high = series[now.y + ":high"] || [];
      const points = series[now.y].map((v, i) => ({ x: series[now.x][i], y: v, low: low[i], high: high[i] }))
        .filter(p => p.y != null && p.x != null);
      if (points.length) curves.push({ name: series.name, points, ...looks(n) });
    });
    const width = Math.max(260, place.clientWidth || 640), height = Math.max(220, Math.min(380, width * .5));
    place.replaceChildren();
    const label = `${y.title} against ${x.title}, ${curves.length} curves; the arrow keys move along them`;
    const svg = make(place, "svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": label,
    });
    const write = (x, y, anchor, text) => make(svg, "text", { x, y, "text-anchor": anchor, class: "axis" }, text);
    const box = { left: 58, right: width - 14, top: 12, bottom: height - 40 };
    if (!curves.length) {
      write(width / 2, height / 2, "middle", "choose a curve to show");
      view = null;
      return;
    }
    const all = curves.flatMap(c => c.points), xs = all.map(p => p.x);
    const ys = all.flatMap(p => [p.y, p.low, p.high]).filter(v => v != null);
    let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    if (x1 === x0) x1 = x0 + 1;
    const space = (y1 - y0 || Math.abs(y1) || 1) * .06;
    y0 -= space; y1 += space;
    const px = v => box.left + (v - x0) / (x1 - x0) * (box.right - box.left);
    const py = v => box.bottom - (v - y0) / (y1 - y0) * (box.bottom - box.top);
    for (const v of ticks(y0, y1, 5)) {
      make(svg, "line", { x1: box.left, x2: box.right, y1: py(v), y2: py(v), class: "rule" });
      write(box.left - 6, py(v) + 4, "end", written[y.kind](v));
    }
    for (const v of ticks(x0, x1, width < 500 ? 4 : 8, x.kind === "count")) {
      write(px(v), box.bottom + 16, "middle", written[x.kind](v));
    }
    write((box.left + box.right) / 2, height - 6, "middle", x.title);
    for (const mark of data.marks || []) {
      if (mark[x.key] == null || mark.y && mark.y !== y.key) continue;
      make(svg, "line", { x1: px(mark[x.key]), x2: px(mark[x.key]), y1: box.top, y2: box.bottom, class: "mark" });
      const end = px(mark[x.key]) > (box.left + box.right) / 2;
      write(px(mark[x.key]) + (end ? -4 : 4), box.bottom - 5, end ? "end" : "start", mark.title);
    }
    for (const c of curves) {
      const banded = c.points.filter(p => p.low != null && p.high != null);
      if (banded.length > 1)
        make(svg, "polygon", { fill: c.colour, opacity: .16, points: [...banded.map(p => [px(p.x), py(p.high)]),
          ...banded.reverse().map(p => [px(p.x), py(p.low)])].join(" ") });
      make(svg, "polyline", { points: c.points.map(p => [px(p.x), py(p.y)]).join(" "), fill: "none", "stroke-width": 2,
        style: `stroke: ${c.colour}`, "stroke-dasharray": c.dash });
      if (c.points.length <= 40 && curves.length <= 8)
        for (const p of c.points) make(svg, "circle", { cx: px(p.x), cy: py(p.y), r: 2.5, style: `fill: ${c.colour}` });
    }
    const pointer = make(svg, "line", { y1: box.top, y2: box.bottom, class: "mark", visibility: "hidden" });
    view = { svg, pointer, curves, px, x, y, width, stops: [...new Set(xs)].sort((a, b) => a - b) };
    svg.addEventListener("pointermove", event => {
      const frame = svg.getBoundingClientRect(), seen = (event.clientX - frame.left) / frame.width * width;
      point(nearest(view.stops, v => Math.abs(px(v) - seen)));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (step === undefined) return;
      event.preventDefault();
      const from = at === null ? (step > 0 ? -1 : view.stops.length) : view.stops.indexOf(at);
      point(view.stops[Math.max(0, Math.min(view.stops.length - 1, from + step))]);
      said.textContent = tip.textContent;
    });
  }

  const nearest = (values, far) => values.reduce((best, v) => far(v) < far(best) ? v : best);

  function point(value) {
    at = value;
    const { svg, pointer, curves, px, x, y, width } = view;
    pointer.setAttribute("x1", px(value));
    pointer.setAttribute("x2", px(value));
    pointer.setAttribute("visibility", "visible");
    tip.replaceChildren();
    make(tip, "b", {}, x.kind === "count" ? `${x.title} ${written.count(value)}` : written[x.kind](value));
    const near = curves.map(c => ({ c, p: nearest(c.points, p => Math.abs(p.x - value)) }));
    for (const { c, p } of near.slice(0, 12)) {
      const row = make(tip, "div");
      make(row, "i", { style: `border-color: ${c.colour}` });
      const range = p.low != null && p.high != null ? ` (${[p.low, p.high].map(written[y.kind]).join(" to ")})` : "";
      row.append(`${c.name}: ${written[y.kind](p.y)}${range}; `);
    }
    if (near.length > 12) make(tip, "div", {}, `and ${near.length - 12} more`);
    tip.hidden = false;
    const left = px(value) / width * svg.clientWidth;
    tip.style.left = Math.max(0, left > svg.clientWidth / 2 ? left - tip.offsetWidth - 12 : left + 12) + "px";
    tip.style.top = place.offsetTop + 14 + "px";
  }

  function hide() {
    at = null;
    tip.hidden = true;
    if (view) view.pointer.setAttribute("visibility", "hidden");
  }
  draw();
  let wide = place.clientWidth;
  new ResizeObserver(() => {
    if (place.clientWidth === wide) return;
    wide = place.clientWidth;
    hide();
    draw();
  }).observe(place);
}

const charts = () => document.querySelectorAll("figure.chart").forEach(chart);
charts();

const renew = async () => {
  const answer = await fetch("./", { cache: "no-store" });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("details[open] > summary")].map(one => one.textContent);
  const main = document.querySelector("main"), top = scrollY;
  main.replaceChildren(...page.querySelector("main").childNodes);
  for (const one of main.querySelectorAll("details")) one.open ||= open.includes(one.firstChild.textContent);
  document.title = page.title;
  charts();
  scrollTo(0, top);
};

async function follow(version) {
  const note = document.querySelector("#live");
  let latest = version;
  try {
    const answer = await fetch("version", { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    latest = await answer.text();
    if (latest !== version) await renew();
    note.textContent = "Live: this page follows the run.";
  } catch (error) {
    latest = version;
    note.textContent = "There is no newer state: thistledown watch does not answer.";
  }
  setTimeout(follow, 2000, latest);
}
if (document.body.dataset.version) setTimeout(follow, 2000, document.body.dataset.version);
})();
"""
