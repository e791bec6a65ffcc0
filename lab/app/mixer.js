// The mixer: a master slider and a heatmap of alphas (layer by module) for each skill. It draws what the server says and
// sends 'edit' with what a person changed; the server answers with the new values. What is changed before that answer is
// sent together when it has come: of events under way at once, Gradio may draw an older one last.
const root = element.querySelector('.mixer') || element;
let value = null;
let drawn = '';
const chosen = new Set(); // "skill/layer/kind"
let drag = null; // where a drag began: [skill, layer, kind]
let anchor = null; // where a range that shift-click ends begins
let changes = []; // not sent yet
let patience = null; // a timer, while an answer is awaited

const shown = (v) => (Math.round(v * 100) / 100).toString().replace(/^(-?)0\./, '$1.');
const paint = (input, v) => { // in the colours of the plots
  const [lowest, steps] = [-value.reach, value.scale.length - 1];
  const at = Math.round(((Math.min(Math.max(v, lowest), value.reach) - lowest) / (2 * value.reach)) * steps);
  [input.style.backgroundColor, input.style.color] = value.scale[at];
};
const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes || {})) node.setAttribute(name, content);
  node.append(...children);
  return node;
};
const cells = (s) => {
  const found = [];
  value.skills[s].cells.forEach((row, l) => row.forEach((v, k) => v !== null && found.push([l, k, v])));
  return found;
};
const mean = (s) => { const all = cells(s); return all.length ? all.reduce((sum, c) => sum + c[2], 0) / all.length : 0; };

function draw() {
  value = props.value;
  clearTimeout(patience);
  patience = null;
  if (!value || !value.skills) { changes = []; root.replaceChildren(make('p', { class: 'dim' }, 'Load two adapters to mix them.')); drawn = ''; return; }
  const shape = JSON.stringify([value.layers, value.kinds, value.skills.map((s) => s.name)]);
  if (shape !== drawn) build(shape);
  if (changes.length) setTimeout(flush); // what is on the screen is newer than the answer
  else fill();
}

function build(shape) {
  drawn = shape;
  changes = [];
  chosen.clear();
  anchor = null;
  const narrow = window.matchMedia('(max-width: 700px)').matches;
  const boxes = value.skills.map((skill, s) => {
    const master = make('input', { type: 'range', min: -0.5, max: 2, step: 0.01, class: 'master', 'aria-label': `${skill.name}: mean alpha` });
    const number = make('input', { type: 'text', inputmode: 'decimal', class: 'number', 'aria-label': `${skill.name}: mean alpha as a number` });
    master.addEventListener('input', () => { number.value = shown(+master.value); preview(s, +master.value); });
    master.addEventListener('change', () => send({ what: 'master', skill: s, value: +master.value }));
    number.addEventListener('change', () => send({ what: 'master', skill: s, value: number.value }));
    const head = make('tr', {}, make('th', {}, pick('all', () => true, s, 'every cell')));
    value.kinds.forEach((kind, k) => head.append(make('th', { scope: 'col' }, pick(kind, (l, j) => j === k, s, `all ${kind}`))));
    const body = make('tbody', {});
    value.layers.forEach((layer, l) => {
      const row = make('tr', {}, make('th', { scope: 'row' }, pick(layer, (i) => i === l, s, `layer ${layer}`)));
      value.kinds.forEach((kind, k) => row.append(make('td', {}, cell(s, l, k, `${skill.name}, layer ${layer}, ${kind}`))));
      body.append(row);
    });
    const table = make('table', {}, make('thead', {}, head), body);
    const details = make('details', narrow ? {} : { open: '' }, make('summary', {}, 'layers × modules'), make('div', { class: 'scroll' }, table));
    return make('section', { 'data-skill': skill.name }, make('header', {}, make('b', {}, skill.name), master, number), details);
  });
  const slider = make('input', { type: 'range', min: -0.5, max: 2, step: 0.01, 'aria-label': 'value of the selected cells' });
  const exact = make('input', { type: 'text', inputmode: 'decimal', class: 'number', 'aria-label': 'value of the selected cells as a number' });
  const clear = make('button', { type: 'button', class: 'clear', title: 'select nothing' }, '×');
  slider.addEventListener('input', () => { exact.value = shown(+slider.value); selected().forEach((i) => { i.value = shown(+slider.value); paint(i, +slider.value); }); });
  slider.addEventListener('change', () => sendChosen(+slider.value));
  exact.addEventListener('change', () => sendChosen(exact.value));
  clear.addEventListener('click', () => { chosen.clear(); mark(); });
  const hint = make('p', { class: 'hint dim' }, 'Drag over cells, click one and shift-click another, or click a layer, a module or “all” to select cells; then slide. Or type into a cell.');
  const strip = make('span', { class: 'strip', style: `background: linear-gradient(to right, ${value.scale.map((s) => s[0]).join(', ')})` });
  const legend = make('p', { class: 'legend dim' }, make('span', {}, `alpha ≤ −${value.reach}`), strip, make('span', {}, `≥ ${value.reach}`));
  root.replaceChildren(...boxes, make('footer', { class: 'selection' }, make('span', { class: 'count' }), slider, exact, clear), legend, hint);
}

function pick(label, wanted, s, title) {
  const button = make('button', { type: 'button', title: `select ${title}` }, String(label));
  button.addEventListener('click', () => {
    const names = cells(s).filter(([l, k]) => wanted(l, k)).map(([l, k]) => `${s}/${l}/${k}`);
    const all = names.every((name) => chosen.has(name));
    names.forEach((name) => (all ? chosen.delete(name) : chosen.add(name)));
    mark();
  });
  return button;
}

function cell(s, l, k, label) {
  if (value.skills[s].cells[l][k] === null) return make('span', { class: 'absent', title: 'the skill does not change this module' });
  const input = make('input', { type: 'text', inputmode: 'decimal', 'aria-label': label, title: label, 'data-cell': `${s}/${l}/${k}` });
  input.addEventListener('change', () => send({ what: 'cells', skill: s, cells: [[l, k]], value: input.value }));
  input.addEventListener('focus', () => input.select());
  // The browser would select the text under a pressed mouse, or drag what is selected: a cell is entered when the button is let go.
  input.addEventListener('mousedown', (event) => {
    if (event.button !== 0) return;
    if (document.activeElement !== input || event.shiftKey) event.preventDefault();
    if (event.shiftKey && anchor && anchor[0] === s) { choose(anchor, [s, l, k]); return; }
    drag = anchor = [s, l, k];
  });
  input.addEventListener('mouseup', () => {
    if (!drag || drag[0] !== s || drag[1] !== l || drag[2] !== k || document.activeElement === input) return;
    if (chosen.size > 1) { chosen.clear(); mark(); }
    input.focus();
  });
  input.addEventListener('mouseenter', (event) => {
    if (!drag || drag[0] !== s || !(event.buttons & 1) || (drag[1] === l && drag[2] === k && !chosen.size)) return;
    if (document.activeElement && root.contains(document.activeElement)) document.activeElement.blur();
    choose(drag, [s, l, k]);
  });
  return input;
}

function choose([s, l, k], [, m, n]) { // the cells between two, corners included
  const [l0, l1] = [Math.min(l, m), Math.max(l, m)], [k0, k1] = [Math.min(k, n), Math.max(k, n)];
  chosen.clear();
  cells(s).forEach(([i, j]) => i >= l0 && i <= l1 && j >= k0 && j <= k1 && chosen.add(`${s}/${i}/${j}`));
  mark();
}

const selected = () => [...chosen].map((name) => root.querySelector(`[data-cell="${name}"]`)).filter(Boolean);

function mark() {
  root.querySelectorAll('[data-cell]').forEach((input) => input.classList.toggle('chosen', chosen.has(input.dataset.cell)));
  const bar = root.querySelector('.selection');
  bar.classList.toggle('on', chosen.size > 0);
  if (!chosen.size) return;
  const [s, l, k] = [...chosen][0].split('/').map(Number);
  const v = value.skills[s].cells[l][k];
  bar.querySelector('.count').textContent = chosen.size === 1 ? '1 cell' : `${chosen.size} cells`;
  bar.querySelector('[type=range]').value = v;
  bar.querySelector('.number').value = shown(v);
}

function preview(s, target) {
  const now = mean(s);
  cells(s).forEach(([l, k, v]) => {
    const next = Math.abs(now) < 1e-6 ? target : (v * target) / now;
    const input = root.querySelector(`[data-cell="${s}/${l}/${k}"]`);
    input.value = shown(next);
    paint(input, next);
  });
}

function fill() {
  root.querySelectorAll('[data-cell]').forEach((input) => {
    const [s, l, k] = input.dataset.cell.split('/').map(Number);
    const v = value.skills[s].cells[l][k];
    if (document.activeElement !== input || input.dataset.sent) input.value = shown(v);
    delete input.dataset.sent;
    input.title = `${input.getAttribute('aria-label')}: ${v}`;
    paint(input, v);
  });
  root.querySelectorAll('section').forEach((box, s) => {
    box.querySelector('.master').value = mean(s);
    box.querySelector('header .number').value = shown(mean(s));
  });
  mark();
}

function send(edit) {
  if (document.activeElement && document.activeElement.dataset) document.activeElement.dataset.sent = '1';
  changes.push(edit);
  flush();
}
function flush() {
  if (patience === null && changes.length) ask();
}
function ask() {
  patience = setTimeout(ask, 5000); // an answer may be lost on its way; the next brings what it would have brought
  trigger('edit', { changes });
  changes = [];
}
function sendChosen(v) {
  const bySkill = {};
  chosen.forEach((name) => { const [s, l, k] = name.split('/').map(Number); (bySkill[s] = bySkill[s] || []).push([l, k]); });
  send({ what: 'many', groups: Object.entries(bySkill).map(([s, c]) => [Number(s), c]), value: v });
}

document.addEventListener('mouseup', () => { drag = null; });
root.addEventListener('dragstart', (event) => event.preventDefault());
watch('value', draw);
draw();
