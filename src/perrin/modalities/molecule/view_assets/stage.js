// The 3D view, the keyboard and the buttons; then the start of the page.

const LAYOUT = { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: 'rgba(0,0,0,0)', showlegend: false,
  hoverlabel: { bgcolor: '#1b2128', bordercolor: '#1b2128', font: { color: '#ffffff', size: 13 } } };
const CONFIG = { displayModeBar: false, scrollZoom: true, doubleClick: false };

const hasWebGL = (() => {
  const canvas = document.createElement('canvas');
  return Boolean(canvas.getContext('webgl2') || canvas.getContext('webgl'));
})();

function startCamera(r) {
  const [ex, ey, ez, ux, uy, uz] = r.camera.slice(3);
  const far = 1.62;
  const at = (x, y, z) => ({ x, y, z });
  return { eye: at(far * ex, far * ey, far * ez), up: at(ux, uy, uz), center: at(0, 0, 0) };
}

function draw3d() {
  if (typeof Plotly === 'undefined' || state.selected < 0) return;
  const r = records[state.selected];
  const plot = byId('plot');
  const blank = byId('blank');
  const seen = r.camera !== null && hasWebGL;
  plot.style.visibility = seen ? 'visible' : 'hidden';
  byId('zoom').hidden = !seen;
  blank.hidden = seen;
  plot.setAttribute('aria-label', `3D view of molecule ${state.selected + 1}, ${r.formula}. Arrow keys rotate, plus and minus zoom.`);
  if (!seen) {
    blank.replaceChildren(drawing(r), r.camera ? 'This browser offers no WebGL, so there is no 3D view.' : 'No 3D view: there are no usable positions.');
    return;
  }
  const { atoms, bonds, extent } = ballAndStick(r, elements);
  const axis = { visible: false, showspikes: false, range: [-extent, extent], autorange: false };
  state.camera = startCamera(r);
  Plotly.react(plot, [meshTrace(atoms, true), meshTrace(bonds, false)], { ...LAYOUT, scene: { xaxis: axis, yaxis: { ...axis },
    zaxis: { ...axis }, aspectmode: 'cube', dragmode: 'orbit', camera: startCamera(r) } }, CONFIG);
}

function camera() {
  const full = byId('plot')._fullLayout;
  const now = full && full.scene._scene ? full.scene._scene.getCamera() : byId('plot').layout.scene.camera;
  return JSON.parse(JSON.stringify(now));
}

function zoom(factor) {
  if (!state.camera || typeof Plotly === 'undefined') return;
  const next = factor ? camera() : startCamera(records[state.selected]);
  for (const k of ['x', 'y', 'z']) next.eye[k] *= factor || 1;
  Plotly.relayout(byId('plot'), { 'scene.camera': next });
}

// Turn the eye about the upward axis (sideways) or about the axis to its right (over the top).
function turn(sideways, over) {
  if (!state.camera || typeof Plotly === 'undefined') return;
  const next = camera();
  const list = (p) => [p.x, p.y, p.z];
  const point = ([x, y, z]) => ({ x, y, z });
  const spin = (p, axis, angle) => vec.add(vec.add(p.map((v) => v * Math.cos(angle)), vec.cross(axis, p), Math.sin(angle)),
    axis, vec.dot(axis, p) * (1 - Math.cos(angle)));
  const up = vec.unit(list(next.up));
  const right = vec.unit(vec.cross(up, list(next.eye)));
  next.eye = point(spin(spin(list(next.eye), up, sideways), right, over));
  next.up = point(spin(up, right, over));
  Plotly.relayout(byId('plot'), { 'scene.camera': next });
}

function saveAs(text, name) {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain' }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const download = (text, ending) => saveAs(text, `molecule-${state.selected + 1}.${ending}`);

// What is shown, in its order, with every property.
function csv() {
  const names = [...new Set(state.shown.flatMap((k) => Object.keys(records[k].properties)))];
  const cell = (v) => { const text = v === null || v === undefined ? '' : String(v); return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text; };
  const rows = state.shown.map((k) => [k + 1, records[k].name, records[k].smiles, ...names.map((n) => records[k].properties[n])]);
  return [['number', 'name', 'smiles', ...names.map((n) => (n === 'smiles' ? 'smiles_of_file' : n))], ...rows].map((row) => row.map(cell).join(',')).join('\n') + '\n';
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  byId('said').textContent = 'copied';
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, select, textarea, pre')) return;
  const inPlot = byId('plot').contains(event.target);
  const moves = inPlot
    ? { ArrowLeft: () => turn(-0.2, 0), ArrowRight: () => turn(0.2, 0), ArrowUp: () => turn(0, -0.2),
      ArrowDown: () => turn(0, 0.2), '+': () => zoom(0.8), '=': () => zoom(0.8), '-': () => zoom(1.25), 0: () => zoom(0) }
    : { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => step(-perLine()),
      ArrowDown: () => step(perLine()), Home: () => step(-records.length), End: () => step(records.length) };
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  move();
}

function cards(on) {
  byId('list').classList.toggle('cards', on);
  byId('layout').setAttribute('aria-pressed', String(on));
}

function start() {
  const numeric = new Set();
  for (const r of records) {
    for (const [name, value] of Object.entries(r.properties)) if (typeof value === 'number') numeric.add(name);
  }
  const keys = COLUMNS.filter(([, , key]) => key).map(([id, label]) => [id, label]);
  for (const [value, label] of [...keys, ...[...numeric].slice(0, 60).map((name) => [`p:${name}`, name])]) {
    const option = make('option', '', `sort: ${label}`);
    option.value = value;
    byId('sort').append(option);
  }
  byId('chooser').hidden = !page.columns.length;
  byId('choices').replaceChildren(...page.columns.map((c) => {
    const label = make('label', '', ` ${c.name}${c.unit ? `, ${c.unit}` : ''}`);
    const box = make('input');
    box.type = 'checkbox';
    box.checked = state.columns.has(c.name);
    box.addEventListener('change', () => { state.columns[box.checked ? 'add' : 'delete'](c.name); refresh(); });
    label.title = c.meaning;
    label.prepend(box);
    return label;
  }));
  byId('csv').addEventListener('click', () => saveAs(csv(), 'molecules.csv'));
  startHistograms();
  byId('filter').addEventListener('input', refresh);
  byId('status').addEventListener('change', refresh);
  byId('sort').addEventListener('change', (event) => { state.down = false; state.key = event.target.value; refresh(); });
  byId('order').addEventListener('click', () => sortBy(state.key));
  byId('layout').addEventListener('click', () => cards(!byId('list').classList.contains('cards')));
  byId('tools').addEventListener('submit', (event) => event.preventDefault());
  byId('previous').addEventListener('click', () => step(-1));
  byId('next').addEventListener('click', () => step(1));
  byId('copy').addEventListener('click', () => copy(records[state.selected].smiles));
  byId('sdf').addEventListener('click', () => download(sdfBlock(records[state.selected], elements), 'sdf'));
  byId('xyz').addEventListener('click', () => download(xyzBlock(records[state.selected], elements), 'xyz'));
  byId('zoom').addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) zoom(Number(button.dataset.zoom));
  });
  document.addEventListener('keydown', onKey);
  // The sentinel is watched anew after each chunk: one that stays in view would never report again.
  const watcher = new IntersectionObserver((seen) => {
    if (!seen.some((entry) => entry.isIntersecting) || state.built === state.shown.length) return;
    extend(CHUNK);
    watcher.unobserve(byId('more'));
    watcher.observe(byId('more'));
  }, { rootMargin: '1200px', scrollMargin: '1200px' });
  watcher.observe(byId('more'));
  cards(window.matchMedia('(max-width: 820px)').matches);
  refresh();
  const asked = Number(location.hash.slice(1)) - 1;
  if (records.length) select(records[asked] ? asked : 0, false);
  else byId('panel').hidden = true;
  window.addEventListener('load', draw3d);
  // The stage also changes height with the facts below it, which is no resize of the window.
  new ResizeObserver(() => { if (byId('plot').layout) Plotly.Plots.resize(byId('plot')); }).observe(byId('stage'));
}

start();
