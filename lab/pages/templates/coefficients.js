"use strict";
const field = id => document.getElementById(id);
let data, board;

unpack().then(found => {
  if (!found) return;
  data = found;
  field("browser").hidden = false;
  fill(field("board"), data.boards.map((own, place) => [place, own.label]));
  const wanted = new URLSearchParams(location.hash.slice(1));
  const place = data.boards.findIndex(own => own.section === wanted.get("section"));
  if (place >= 0) field("board").value = place;
  openBoard();
});

function openBoard() {
  board = data.boards[field("board").value];
  const usual = board.runs.find(run => run.method === "cat") ?? board.runs[0];
  fill(field("method"), [...new Set(board.runs.map(run => run.label))].map(label => [label, label]), usual.label);
  openMethod();
}

function openMethod() {
  const seeds = board.runs.filter(run => run.label === field("method").value).map(run => [run.seed, run.seed]);
  fill(field("seed"), seeds);
  show();
}

// Between the two of the scale's colours that lie next to it. at: 0 to 1.
function colour(at) {
  const steps = data.scale.length - 1, low = Math.min(Math.floor(at * steps), steps - 1), part = at * steps - low;
  return data.scale[low].map((value, i) => Math.round(value + part * (data.scale[low + 1][i] - value)));
}

function paint(cell, value, equal, reach) {
  const [red, green, blue] = colour((value - equal) / (2 * reach) + 0.5);
  cell.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
  cell.style.color = 0.3 * red + 0.59 * green + 0.11 * blue < 140 ? "#fff" : "#15181d";
}

const short = value => value.toFixed(2).replace("-", "−");

function grid(run, skill, reach, equal) {
  const [name, mean, least, greatest] = skill;
  const head = element("tr", {}, element("th", { scope: "col", textContent: "layer" }),
    ...run.kinds.map(kind => element("th", { scope: "col", textContent: kind.replace(/_proj$/, "") })));
  const rows = run.layers.map((layer, i) => element("tr", {}, element("th", { scope: "row", textContent: layer }),
    ...run.kinds.map((_, j) => {
      const value = mean[i][j];
      if (value === null) return element("td", { textContent: "" });
      const cell = element("td", { textContent: short(value) });
      if (least) cell.append(element("small", { textContent: `${short(least[i][j])} to ${short(greatest[i][j])}` }));
      paint(cell, value, equal, reach);
      return cell;
    })));
  const values = mean.flat().filter(value => value !== null), all = values.reduce((a, b) => a + b, 0) / values.length;
  const told = `${name} skill: mean ${short(all)}, ${short(Math.min(...values))} to ${short(Math.max(...values))}`;
  return element("table", { className: "grid" }, element("caption", { textContent: told }),
    element("thead", {}, head), element("tbody", {}, ...rows));
}

function show() {
  const run = board.runs.find(own => own.label === field("method").value && own.seed === Number(field("seed").value));
  const equal = 1 / run.skills.length;
  const values = run.skills.flatMap(skill => skill[1].flat()).filter(value => value !== null);
  const reach = Math.max(0.001, ...values.map(value => Math.abs(value - equal)));
  const scale = element("p", { className: "scale" }, short(equal - reach), element("span", { className: "bar" }), short(equal + reach),
    ` (equal shares: ${short(equal)}${run.ranks > 1 ? `; mean of ${run.ranks} ranks` : ""})`);
  scale.querySelector(".bar").style.background = `linear-gradient(to right, ${data.scale.map(part => `rgb(${part.join(" ")})`).join(", ")})`;
  field("shown").replaceChildren(scale,
    element("div", { className: "grids" }, ...run.skills.map(skill => grid(run, skill, reach, equal))),
    element("p", { className: "small" }, element("a", { href: `records/${run.record}.json`, textContent: "record of this run" })));
}

field("board").addEventListener("change", openBoard);
field("method").addEventListener("change", openMethod);
field("seed").addEventListener("change", show);
field("controls").addEventListener("submit", event => event.preventDefault());
