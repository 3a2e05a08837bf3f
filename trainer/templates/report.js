"use strict";
// Draws the charts of the page into its <div class="chart">, in their order.

const read = id => JSON.parse(document.getElementById(id).textContent);
const runs = read("runs");
const charts = read("charts").filter(chart => chart.curves.length > 0);
const boxes = [...document.querySelectorAll(".chart")];
const HEIGHT = 240;

// As the classes d0 to d3 of the style sheet.
const DASHES = [[], [7, 4], [1.5, 4], [8, 3, 1.5, 3]];

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A tick with the digits that tell it from its neighbors, `step` away.
function tick(value, step) {
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  if (digits <= 4) return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  if (Math.abs(value) < step / 2) return "0";
  return value.toExponential(Math.min(15, Math.max(0, digits + Math.floor(Math.log10(Math.abs(value))))));
}

// The place nearest to `at` where a series has a value: runs need not log at the same steps.
function nearest(plot, series, at) {
  const values = plot.data[series];
  for (let d = 0; d < values.length; d++) {
    if (values[at - d] != null) return at - d;
    if (values[at + d] != null) return at + d;
  }
  return at;
}

function draw(chart, box) {
  const ticks = (plot, splits, axis, space, step) => splits.map(value => tick(value, step));
  const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, values: ticks, font: "12px system-ui, sans-serif" };
  const series = chart.curves.map(({ run, x }) => ({
    label: runs[run],
    stroke: style(`--c${run % 7}`),
    dash: DASHES[Math.floor(run / 7) % 4],
    width: 1.8,
    // One point has no line.
    points: { show: x.length === 1, size: 5 },
    value: (plot, value) => (value == null ? "–" : String(Number(value.toPrecision(5)))),
  }));
  const options = {
    width: box.clientWidth,
    height: HEIGHT,
    scales: { x: { time: false } },
    axes: [{ ...axis, label: "step", labelSize: 20, size: 28, labelFont: axis.font }, { ...axis, size: 62 }],
    series: [{ label: "step", value: (plot, step) => (step == null ? "–" : step) }, ...series],
    cursor: { sync: { key: "step" }, drag: { x: true, y: true, uni: 24 }, dataIdx: nearest, points: { size: 6 } },
  };
  return new uPlot(options, uPlot.join(chart.curves.map(({ x, y }) => [x, y])), box);
}

let plots = [];
function drawAll() {
  for (const plot of plots) plot.destroy();
  plots = charts.map((chart, i) => draw(chart, boxes[i]));
}
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("resize", () => plots.forEach((plot, i) => plot.setSize({ width: boxes[i].clientWidth, height: HEIGHT })));
