// Simulation: takes a file into the text, and draws each table of days. Without it all is there as text and tables.
"use strict";

const file = document.getElementById("file");
if (file) {
  file.closest("[data-file]").hidden = false;
  file.addEventListener("change", async () => {
    if (file.files[0]) document.getElementById("text").value = await file.files[0].text();
  });
}

// A colour of the sheet as it is now, light or dark: a canvas knows no variables.
function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function numbers(table) {
  const rows = [...table.tBodies[0].rows];
  const columns = [rows.map((row) => Date.parse(`${row.cells[0].textContent}T00:00Z`) / 1000)];
  for (let at = 1; at < rows[0].cells.length; at += 1) {
    columns.push(rows.map((row) => Number(row.cells[at].textContent)));
  }
  return columns;
}

const HEIGHT = 190;
const hovers = matchMedia("(hover: hover)").matches;
const drawn = new Map();

function draw(place) {
  const table = document.getElementById(place.dataset.plots);
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const [muted, accent, line, bad] = ["--muted", "--accent", "--line", "--bad"].map(colour);
  const strokes = [muted, accent, bad, bad];
  const axis = { stroke: muted, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const columns = numbers(table);
  const few = columns[0].length < 40;
  const series = heads.slice(1).map((label, at) => ({
    label, stroke: strokes[at], width: 2, dash: at % 2 ? undefined : [5, 4],
    points: { show: few, size: 5 }, value: (_, value) => (value === null ? "" : String(value)),
  }));
  drawn.get(place)?.destroy();
  drawn.set(place, new uPlot({
    width: place.clientWidth, height: HEIGHT, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "UTC"),
    cursor: { points: { size: 7 } },
    // Where nothing hovers the legend names the lines; values are in the table.
    legend: { live: hovers, markers: { dash: (_, at) => (at % 2 ? "dashed" : "solid") } },
    scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.08)] } },
    series: [{ label: "Day", value: (_, at) => (at === null ? "" : new Date(at * 1000).toISOString().slice(0, 10)) }, ...series],
    axes: [
      { ...axis, values: "{D} {MMM}", incrs: [1, 2, 7, 14, 28, 91, 182, 364].map((days) => days * 86400) },
      { ...axis, size: 46, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000] },
    ],
  }, columns, place));
}

const places = [...document.querySelectorAll("[data-plots]")];
const drawAll = () => places.filter((place) => place.clientWidth).forEach(draw);
if (places.length) {
  drawAll();
  // What is folded has no width; it is drawn when it is unfolded.
  const widths = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      if (!target.clientWidth) continue;
      if (drawn.has(target)) drawn.get(target).setSize({ width: target.clientWidth, height: HEIGHT });
      else draw(target);
    }
  });
  places.forEach((place) => widths.observe(place));
  new MutationObserver(drawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}
