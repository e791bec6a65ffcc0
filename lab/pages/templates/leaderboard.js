"use strict";
// Sorts and filters the leaderboard. Without this the page is a plain table.
const table = document.getElementById("leaderboard"), body = table.tBodies[0], rows = [...body.rows];
const field = id => document.getElementById(id);
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const told = cell => (cell.dataset.value ?? cell.textContent).trim();

function sort(head, down) {
  const column = head.cellIndex, number = "number" in head.dataset;
  const order = (a, b) => {
    const [x, y] = [told(a.cells[column]), told(b.cells[column])];
    if (!x || !y) return !x - !y; // what is not known comes last either way
    return (number ? x - y : words.compare(x, y)) * (down ? -1 : 1);
  };
  body.append(...[...rows].sort(order));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

function filter() {
  const section = field("section").value, role = field("role").value, text = field("text").value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = (!section || told(row.cells[2]) === section) && (!role || told(row.cells[3]) === role)
      && row.textContent.toLowerCase().includes(text);
    row.hidden = !fits;
    shown += fits;
  }
  field("count").textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
}

for (const head of table.tHead.rows[0].cells) {
  if (head.textContent === "records") continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    sort(head, before ? before === "ascending" : "number" in head.dataset);
  });
}
const form = field("filters");
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", event => event.preventDefault());
filter();
