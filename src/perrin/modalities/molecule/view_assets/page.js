// The page: a list whose rows are built as they scroll into view, and one panel that shows the selected molecule.
// Text from data enters the document through textContent only; drawings are RDKit's paths, made by Perrin.

const byId = (id) => document.getElementById(id);
const elements = JSON.parse(byId('element-data').textContent);
const records = JSON.parse(byId('molecule-data').textContent);
const page = JSON.parse(byId('property-data').textContent);
const CHUNK = 60;
const COLUMNS = [
  ['index', 'No.', (r, k) => k],
  ['drawing', '2D', null],
  ['formula', 'Formula', (r) => r.formula],
  ['line', 'SMILES', (r) => r.smiles],
  ['size', 'Atoms', (r) => r.z.length],
  ['pieces', 'Fragments', (r) => r.fragments],
].filter(([id]) => id !== 'pieces' || !page.shown.length); // the badge and a property say it too
const state = { columns: new Set(page.shown), shown: [], built: 0, selected: -1, key: 'index', down: false, camera: null };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function formulaNode(formula) {
  const node = make('span');
  for (const [part] of formula.matchAll(/[+-]\d*|\d+|\D+?(?=[\d+-]|$)/g)) {
    const tag = /^\d/.test(part) ? 'sub' : /^[+-]/.test(part) ? 'sup' : 'span';
    node.append(make(tag, '', /^[+-]/.test(part) ? part.slice(1) + part[0].replace('-', '−') : part));
  }
  return node;
}

function badges(r) {
  const list = [];
  if (r.valid === false) list.push(['does not sanitise', 'bad']);
  if (r.fragments > 1) list.push([`${r.fragments} fragments`, '']);
  if (r.radicals) list.push([`${r.radicals} unpaired e⁻`, '']);
  const { duplicate_of: first, duplicate, known, pains, pains_alerts: alerts } = r.properties;
  if (first || duplicate) list.push([first ? `duplicate of ${first}` : 'duplicate', '']);
  if (known) list.push(['known', '']);
  if (pains) list.push([`PAINS: ${alerts || pains}`, 'bad']);
  if (r.valid === null) list.push(['no bonds', '']);
  if (r.xyz.includes(null)) list.push(['positions not finite', 'bad']);
  return list.map(([text, kind]) => make('span', `badge ${kind}`, text));
}

function drawing(r) {
  const holder = document.createElement('template');
  holder.innerHTML = r.svg;
  const svg = holder.content.firstElementChild;
  if (svg) {
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', `2D structure of ${r.smiles || r.formula}`);
  }
  return svg || make('span', 'reason', 'no drawing');
}

// What is wrong, without the words that the badge beside it already says.
const reason = (r) => r.notes.join('; ').replace(/^does not sanitise: /, '');

function smilesNode(r) {
  return r.smiles ? make('span', 'smiles', r.smiles) : make('span', 'reason', reason(r) || '–');
}

const show = (v) => v === null || v === undefined ? '–' : typeof v === 'object' ? JSON.stringify(v)
  : typeof v === 'number' && !Number.isInteger(v) ? String(Number(v.toPrecision(6))) : String(v);

// ---- the list

function keyOf(name) {
  const column = COLUMNS.find(([id]) => id === name);
  return column ? column[2] : (r) => r.properties[name.slice(2)];
}

function matches(r, k, words, status) {
  if (status === 'whole' && !(r.valid && r.fragments === 1)) return false;
  if (status === 'pieces' && !(r.fragments > 1)) return false;
  if (status === 'radical' && !r.radicals) return false;
  if (status === 'invalid' && r.valid !== false) return false;
  if (status === 'new' && (r.properties.duplicate || r.properties.known)) return false;
  return words.every((word) => typeof word === 'function' ? word(r) : /^#\d+$/.test(word) ? Number(word.slice(1)) === k + 1
    : (r.smiles || '').includes(word) || r.formula.includes(word)
      || r.name.toLowerCase().includes(word.toLowerCase()));
}

const COMPARE = { '<': (a, b) => a < b, '<=': (a, b) => a <= b, '>': (a, b) => a > b, '>=': (a, b) => a >= b, '=': (a, b) => a === b };

// `QED>0.5` as a test of a record, where QED is a property of the page; any other word stays text.
function wish(word) {
  const found = /^(.+?)(<=|>=|<|>|=)([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$/i.exec(word);
  const column = found && page.columns.find((c) => c.name.toLowerCase() === found[1].toLowerCase());
  if (!column) return word;
  return (r) => typeof r.properties[column.name] === 'number' && COMPARE[found[2]](r.properties[column.name], Number(found[3]));
}

// Columns of properties: the chosen ones, and what the list is sorted by.
const extras = () => page.columns.map((c) => c.name)
  .filter((name) => state.columns.has(name) || state.key === `p:${name}`)
  .concat(state.key.startsWith('p:') && !page.columns.some((c) => `p:${c.name}` === state.key) ? [state.key.slice(2)] : []);

const unitOf = (name) => (page.columns.find((c) => c.name === name) || {}).unit || '';

function refresh() {
  const words = byId('filter').value.trim().split(/\s+/).filter(Boolean).map(wish);
  const key = keyOf(state.key);
  const order = (a, b) => {
    const [p, q] = [key(records[a], a), key(records[b], b)];
    const [lost, gone] = [p === null || p === undefined, q === null || q === undefined];
    if (lost || gone) return lost && gone ? a - b : lost ? 1 : -1;
    const sign = typeof p === 'number' && typeof q === 'number' ? p - q
      : String(p).localeCompare(String(q), 'en', { numeric: true });
    return (state.down ? -sign : sign) || a - b;
  };
  state.shown = records.map((_, k) => k).filter((k) => matches(records[k], k, words, byId('status').value)).sort(order);
  state.built = 0;
  byId('rows').replaceChildren();
  byId('nothing').hidden = state.shown.length > 0;
  byId('count').textContent = state.shown.length === records.length ? '' : `${state.shown.length} of ${records.length}`;
  byId('order').textContent = state.down ? '↓' : '↑';
  byId('sort').value = state.key;
  heads();
  extend(CHUNK);
  drawHistograms();
}

function heads() {
  const columns = COLUMNS.concat(extras().map((name) => [`p:${name}`, name, () => 0]));
  byId('heads').replaceChildren(...columns.map(([id, label, key]) => {
    const head = make('th', `${id.startsWith('p:') ? 'extra' : id}${['size', 'pieces'].includes(id) || id.startsWith('p:') ? ' number' : ''}`);
    head.scope = 'col';
    if (!key) { head.append(make('span', 'reason', label)); return head; }
    const arrow = id === state.key ? (state.down ? ' ↓' : ' ↑') : '';
    const button = make('button', '', label + arrow);
    button.type = 'button';
    if (id.startsWith('p:')) button.title = ((c) => [c.meaning, c.unit].filter(Boolean).join(', '))(page.columns.find((c) => `p:${c.name}` === id) || {});
    button.addEventListener('click', () => sortBy(id));
    if (arrow) head.setAttribute('aria-sort', state.down ? 'descending' : 'ascending');
    head.append(button);
    return head;
  }));
}

function sortBy(key) {
  state.down = key === state.key && !state.down;
  state.key = key;
  refresh();
}

function row(k) {
  const r = records[k];
  const node = make('tr');
  node.id = `m${k}`;
  node.setAttribute('aria-selected', String(k === state.selected));
  node.tabIndex = k === state.selected ? 0 : -1;
  const cells = COLUMNS.map(([id]) => make('td', id));
  const { index, drawing: draw, formula, line, size, pieces } = Object.fromEntries(cells.map((cell) => [cell.className, cell]));
  index.textContent = k + 1;
  draw.append(drawing(r));
  formula.append(formulaNode(r.formula));
  const marks = badges(r);
  if (marks.length) formula.append(make('br'), ...marks);
  line.append(smilesNode(r));
  size.textContent = r.z.length;
  size.classList.add('number');
  if (pieces) {
    pieces.textContent = show(r.fragments);
    pieces.classList.add('number');
  }
  for (const name of extras()) {
    const extra = make('td', 'extra number', show(r.properties[name]));
    extra.dataset.label = name;
    cells.push(extra);
  }
  node.append(...cells);
  node.addEventListener('click', () => select(k, false));
  return node;
}

function extend(count) {
  const end = Math.min(state.built + count, state.shown.length);
  byId('rows').append(...state.shown.slice(state.built, end).map(row));
  state.built = end;
}

function step(by) {
  const at = state.shown.indexOf(state.selected);
  const to = Math.max(0, Math.min(state.shown.length - 1, at < 0 ? 0 : at + by));
  if (!state.shown.length) return;
  if (to >= state.built) extend(to - state.built + CHUNK);
  select(state.shown[to], true);
}

function perLine() {
  const rows = [...byId('rows').children].slice(0, 40);
  const next = rows.findIndex((node) => node.offsetTop > rows[0].offsetTop + 4);
  return byId('list').classList.contains('cards') ? Math.max(next, 1) : 1;
}

// ---- the panel

function select(k, scroll) {
  const old = byId(`m${state.selected}`);
  if (old) { old.setAttribute('aria-selected', 'false'); old.tabIndex = -1; }
  state.selected = k;
  const now = byId(`m${k}`);
  if (now) {
    now.setAttribute('aria-selected', 'true');
    now.tabIndex = 0;
    if (scroll) {
      now.scrollIntoView({ block: 'nearest' });
      if (byId('rows').contains(document.activeElement)) now.focus({ preventScroll: true });
    }
  }
  const r = records[k];
  byId('heading').replaceChildren(`#${k + 1} · `, formulaNode(r.formula), r.name ? ` · ${r.name.slice(0, 80)}` : '');
  byId('badges').replaceChildren(...badges(r), make('span', 'reason', reason(r)));
  byId('badges').hidden = !byId('badges').textContent;
  byId('smiles').replaceChildren(r.smiles ? smilesNode(r) : '');
  byId('copy').disabled = !r.smiles;
  for (const id of ['sdf', 'xyz']) {
    byId(id).title = cannotWrite(r, id === 'sdf') || `Download this molecule as ${id.toUpperCase()}`;
    byId(id).disabled = Boolean(cannotWrite(r, id === 'sdf'));
  }
  byId('said').textContent = '';
  byId('properties').replaceChildren(...Object.entries(r.properties)
    .flatMap(([name, value]) => [make('dt', '', name), make('dd', '', show(value) + (unitOf(name) && value !== null ? ` ${unitOf(name)}` : ''))]));
  byId('legend').replaceChildren(...[...new Set(r.z)].sort((a, b) => a - b).map((z) => {
    const item = make('li');
    item.append(make('i'), elements[z].symbol);
    item.firstChild.style.background = elements[z].colour;
    return item;
  }));
  try { history.replaceState(null, '', `#${k + 1}`); } catch { /* a viewer without history */ }
  draw3d();
}
