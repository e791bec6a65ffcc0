"use strict";
const field = id => document.getElementById(id);
let data, board, runs, listed;

unpack().then(found => {
  if (!found) return;
  data = found;
  field("browser").hidden = false;
  fill(field("board"), data.boards.map((own, place) => [place, own.label]));
  field("board-label").hidden = data.boards.length < 2;
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.has("run")) field("board").value = wanted.get("run");
  openBoard(wanted);
});

// One run of the section: its seeds, methods and parts become the choices.
function openBoard(wanted) {
  board = data.boards[field("board").value];
  fill(field("seed"), [...new Set(board.runs.map(run => run.seed))].map(seed => [seed, seed]), wanted.get("seed") ?? field("seed").value);
  const names = [...new Map(board.runs.map(run => [run.label, run])).values()];
  const usual = names.find(run => run.method === "cat") ?? names[names.length - 1];
  const asked = names.find(run => run.label === wanted.get("method"));
  fill(field("method"), names.map(run => [run.label, run.label]), (asked ?? usual).label);
  const roles = [...new Set(names.map(run => run.role))];
  field("roles").replaceChildren(field("roles").firstElementChild, ...roles.map(role => {
    const box = element("input", { type: "checkbox", value: role, checked: true });
    const label = element("label", {}, box, data.roles[role].label);
    label.style.setProperty("--role", data.roles[role].colour);
    return label;
  }));
  const reasons = [...new Set(board.problems.flatMap(problem => problem[3].filter(Boolean).map(answer => answer[2])))];
  const known = data.reasons.filter(reason => reasons.includes(reason) && reason !== "right");
  const others = reasons.filter(reason => !data.reasons.includes(reason)).sort();
  fill(field("outcome"), [
    ["", "any"], ["right", "right"], ["only", "right where no skill alone is"], ["not", "not right"],
    ["lost", "not right where a skill alone is"], ...[...known, ...others].map(reason => [`=${reason}`, reason]),
  ], wanted.get("outcome") ?? field("outcome").value);
  openSeed(wanted.get("problem") ?? undefined);
}

function openSeed(problem) {
  const seed = Number(field("seed").value);
  // A method with one seed, as the base, stands beside every seed of the others.
  const single = new Set(board.runs.map(run => run.label));
  for (const label of single) if (board.runs.filter(run => run.label === label).length > 1) single.delete(label);
  runs = board.runs.map((run, place) => ({ ...run, place })).filter(run => run.seed === seed || single.has(run.label));
  list(problem);
}

const right = answer => answer && answer[3] === 1;
const mark = answer => !answer ? "·" : right(answer) ? "✓" : answer[3] === null ? "?" : "✗";

function fits(problem, place, skills, outcome, text) {
  const answers = problem[3], own = answers[place], bySkill = skills.some(skill => right(answers[skill]));
  if (outcome && !own) return false;
  if (outcome === "right" && !right(own)) return false;
  if (outcome === "only" && (!right(own) || bySkill)) return false;
  if (outcome === "not" && right(own)) return false;
  if (outcome === "lost" && (right(own) || !bySkill)) return false;
  if (outcome.startsWith("=") && own[2] !== outcome.slice(1)) return false;
  return !text || [problem[0], problem[1], ...runs.map(run => (answers[run.place] ?? [""])[0])].some(part => part.toLowerCase().includes(text));
}

function list(wanted = field("problem").value) {
  const place = runs.find(run => run.label === field("method").value)?.place;
  const skills = runs.filter(run => run.role === "skill").map(run => run.place);
  const outcome = field("outcome").value, text = field("text").value.trim().toLowerCase();
  listed = board.problems.filter(problem => fits(problem, place, skills, outcome, text));
  fill(field("problem"), listed.map(problem => {
    const own = problem[3][place], question = problem[1].trim().replace(/\s+/g, " ").replace(/^Question: /, "");
    return [problem[0], `${mark(own)} ${problem[0]}  ${question.slice(0, 60)}`];
  }), wanted);
  show();
}

function show() {
  const chosen = field("problem"), at = chosen.selectedIndex;
  field("previous").disabled = at <= 0;
  field("next").disabled = at < 0 || at === listed.length - 1;
  field("count").textContent = listed.length ? `${at + 1} of ${listed.length}` : "none";
  const problem = listed[at];
  if (!problem) {
    field("shown").replaceChildren(element("p", { textContent: "No problem fits; choose another filter." }));
    return;
  }
  const [id, prompt, answer, answers] = problem;
  const roles = new Set([...field("roles").querySelectorAll(":checked")].map(box => box.value));
  const there = runs.filter(run => answers[run.place]), solved = there.filter(run => right(answers[run.place])).length;
  const first = run => run.label !== field("method").value; // the chosen method's answer stands first
  const cards = there.filter(run => roles.has(run.role)).sort((a, b) => first(a) - first(b)).map(run => card(run, answers[run.place]));
  field("shown").replaceChildren(
    element("h2", { textContent: id }),
    element("pre", { className: "prompt", textContent: prompt.trimEnd() }),
    element("p", {}, "Expected: ", element("b", { textContent: answer || "nothing" }), `; right: ${solved} of ${there.length} methods.`),
    element("div", { className: "answers" }, ...cards),
  );
  const state = new URLSearchParams({ seed: field("seed").value, method: field("method").value, outcome: field("outcome").value, problem: id });
  if (data.boards.length > 1) state.set("run", field("board").value);
  history.replaceState(null, "", `#${state}`);
}

function card(run, [completion, extracted, reason, score, before, extras]) {
  const verdict = score === 1 ? "right" : "not";
  const further = Object.entries(extras).map(([name, value]) => `${name.replaceAll("_", " ")} ${+value.toFixed(3)}`);
  const told = [reason, extracted === "" ? "no answer found" : `answer ${extracted}`];
  if (score !== null && score !== 0 && score !== 1) told.push(`score ${+score.toFixed(3)}`);
  const parts = [
    element("h3", { textContent: run.label }),
    element("p", { className: `answer ${verdict}`, textContent: told.join("; ") }),
    element("pre", { textContent: completion.trimEnd() || "(nothing)" }),
  ];
  if (before !== null) {
    const text = element("pre", { textContent: board.before[before].trimEnd() });
    parts.push(element("details", {}, element("summary", { textContent: "Stood before the question" }), text));
  }
  const files = element("p", { className: "small" }, ...further.map(text => `${text} · `), `seed ${run.seed}: `,
    element("a", { href: `records/${run.record}.json`, textContent: "record" }), " · ",
    element("a", { href: `records/${run.record}.jsonl.gz`, textContent: "all rows" }),
    ...(run.questions ? [" · ", element("a", { href: `records/${run.questions}`, textContent: "their questions" })] : []));
  const made = element("article", {}, ...parts, files);
  made.style.setProperty("--role", data.roles[run.role].colour);
  return made;
}

function step(by) {
  const chosen = field("problem");
  chosen.selectedIndex = Math.min(Math.max(chosen.selectedIndex + by, 0), listed.length - 1);
  show();
}

field("board").addEventListener("change", () => openBoard(new URLSearchParams()));
field("seed").addEventListener("change", () => openSeed());
for (const id of ["method", "outcome"]) field(id).addEventListener("change", () => list());
field("text").addEventListener("input", () => list());
field("roles").addEventListener("change", show);
field("problem").addEventListener("change", show);
field("previous").addEventListener("click", () => step(-1));
field("next").addEventListener("click", () => step(1));
field("controls").addEventListener("submit", event => event.preventDefault());
// On a phone a list of many lines is a scroll inside a scroll: there it folds up.
const narrow = matchMedia("(max-width: 46rem)"), fold = () => { field("problem").size = narrow.matches ? 1 : 18; };
narrow.addEventListener("change", fold);
fold();
