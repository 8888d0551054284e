// Two drawings: a signal over the last hour, and the cell voltages of a pack.

import { clock, number, svg } from "./dom.js";

const WIDTH = 560, LEFT = 40, RIGHT = 8, TOP = 6, BOTTOM = 16;

// A range with round ends that holds every value.
function rounded(low, high) {
  if (low === high) [low, high] = [low - 1, high + 1];
  const step = [1, 2, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10((high - low) / 2))).find((s) => (high - low) / s <= 4);
  return [Math.floor(low / step) * step, Math.ceil(high / step) * step];
}

/**
 * points: [{at: ms, iso, value, low, high}], gaps are gaps: a line is never drawn across missing buckets.
 * The shaded band is the lowest and highest value of each bucket, the line its mean.
 */
export function curve({ points, from, to, bucketMs, colour, digits, unit, range, height = 92, onpoint }) {
  const values = points.filter((p) => p.value !== null);
  const bottom = height - BOTTOM;
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, role: "img" });
  if (values.length === 0) return plot;
  const [low, high] = range ?? rounded(Math.min(...values.map((p) => p.low)), Math.max(...values.map((p) => p.high)));
  const x = (at) => LEFT + ((at - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - TOP);

  for (const value of [low, (low + high) / 2, high]) {
    plot.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, number(value, high - low < 4 ? 1 : 0)),
    );
  }
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const at = from + part * (to - from);
    const iso = shifted(points[0], at);
    plot.append(
      svg("text", { x: x(at), y: height - 2, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, iso.slice(0, 5)),
    );
  }
  const runs = [];
  for (const point of values) {
    const run = runs.at(-1);
    if (run && point.at - run.at(-1).at <= bucketMs * 2) run.push(point);
    else runs.push([point]);
  }
  const path = (list, key) => list.map((p) => `${x(p.at).toFixed(1)} ${y(p[key]).toFixed(1)}`).join("L");
  for (const run of runs) {
    if (run.length === 1) {
      plot.append(svg("circle", { cx: x(run[0].at), cy: y(run[0].value), r: 1.8, fill: colour }));
      continue;
    }
    plot.append(
      svg("path", { class: "band", fill: colour, d: `M${path(run, "high")}L${path([...run].reverse(), "low")}Z` }),
      svg("path", { class: "curve", stroke: colour, d: `M${path(run, "value")}` }),
    );
  }
  const cross = svg("line", { class: "cross", y1: TOP, y2: bottom, visibility: "hidden" });
  const mark = svg("circle", { r: 3, fill: colour, visibility: "hidden" });
  plot.append(cross, mark);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = from + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (to - from);
    const near = values.reduce((best, p) => (Math.abs(p.at - at) < Math.abs(best.at - at) ? p : best));
    for (const [node, attributes] of [[cross, { x1: x(near.at), x2: x(near.at) }], [mark, { cx: x(near.at), cy: y(near.value) }]]) {
      for (const [name, value] of Object.entries({ ...attributes, visibility: "visible" })) node.setAttribute(name, value);
    }
    onpoint(`${number(near.value, digits)} ${unit} at ${clock(near.iso)}`);
  });
  plot.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    mark.setAttribute("visibility", "hidden");
    onpoint(null);
  });
  return plot;
}

// Clock time at `at`, counted from a point whose own clock text is known (the fleet's zone, not the reader's).
function shifted(point, at) {
  const [h, m, s] = clock(point.iso).split(":").map(Number);
  const seconds = (((h * 3600 + m * 60 + s + Math.round((at - point.at) / 1000)) % 86_400) + 86_400) % 86_400;
  const two = (n) => String(n).padStart(2, "0");
  return `${two(Math.floor(seconds / 3600))}:${two(Math.floor(seconds / 60) % 60)}`;
}

/** One bar a cell. The axis does not begin at zero (a pack's cells differ by millivolts), and says so. */
export function cells(pack, height = 104) {
  const known = pack.cells_v.filter((v) => v !== null);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${height}`, role: "img" });
  if (known.length === 0) return { plot, summary: null };
  const least = Math.min(...known), most = Math.max(...known);
  const low = Math.floor((least - 0.004) * 200) / 200, high = Math.ceil((most + 0.001) * 200) / 200;
  const bottom = height - BOTTOM;
  const y = (v) => bottom - ((v - low) / (high - low)) * (bottom - TOP);
  for (const v of [low, (low + high) / 2, high]) {
    plot.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(v), y2: y(v) }),
      svg("text", { x: LEFT - 6, y: y(v) + 3.5, "text-anchor": "end" }, v.toFixed(3)),
    );
  }
  const step = (WIDTH - LEFT - RIGHT) / pack.cells_v.length;
  const width = Math.max(step * (step > 3 ? 0.76 : 0.94), 0.6);
  pack.cells_v.forEach((v, i) => {
    const name = `cell ${i + 1}: ${v === null ? pack.flaws[String(i + 1)] ?? "not reported" : `${v.toFixed(3)} V`}`;
    const kind = v === null ? "none" : v === most ? "most" : v === least ? "least" : "";
    const top = v === null ? TOP : y(v);
    plot.append(
      svg("rect", { class: `cell ${kind}`, x: LEFT + i * step + (step - width) / 2, y: top, width, height: bottom - top }, svg("title", null, name)),
    );
  });
  for (let i = 0; i < pack.cells_v.length; i += Math.max(1, Math.ceil(pack.cells_v.length / 8))) {
    plot.append(svg("text", { x: LEFT + (i + 0.5) * step, y: height - 2, "text-anchor": "middle" }, String(i + 1)));
  }
  return { plot, summary: { least, most, low, count: pack.cells_v.length, none: pack.cells_v.length - known.length } };
}
