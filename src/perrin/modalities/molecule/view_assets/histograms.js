// One small histogram for each property: bars are the molecules that are shown, the line is the reference. Both are shares,
// so that sets of different size compare. A click on a bar filters by it.

const SVG = drawing({ svg: '<svg></svg>' }).namespaceURI;
const [WIDE, HIGH] = [168, 58];

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.append(shape('title', {}));
  if (text !== undefined) node.firstChild.textContent = text;
  return node;
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

const short = (v) => String(Number(v.toPrecision(3)));

function histogram(h, values) {
  const width = (h.high - h.low) / h.bins;
  const whole = width === 1 && Number.isInteger(h.low - 0.5);
  const counts = new Array(h.bins).fill(0);
  for (const v of values) counts[Math.max(0, Math.min(h.bins - 1, Math.floor((v - h.low) / width)))] += 1;
  const shares = counts.map((c) => c / (values.length || 1));
  const top = Math.max(...shares, ...(h.shares || [0])) || 1;
  const x = (k) => (WIDE * k) / h.bins;
  const y = (share) => HIGH - (HIGH - 2) * (share / top);
  const unit = (page.columns.find((c) => c.name === h.name) || {}).unit || '';
  const svg = shape('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img' });
  svg.setAttribute('aria-label', `Histogram of ${h.name}`);
  shares.forEach((share, k) => {
    const from = h.low + k * width;
    const words = whole ? `${h.name}=${Math.round(from + 0.5)}`
      : `${h.name}>=${short(from)} ${h.name}<${short(from + width)}`;
    const bar = shape('g', { class: 'bar-of' }, `${words.replace(' ', ' and ')}: ${counts[k]}`);
    bar.append(shape('rect', { x: x(k), y: 0, width: x(1), height: HIGH, fill: 'transparent' }));
    bar.append(shape('rect', { x: x(k) + 0.4, y: y(share), width: Math.max(x(1) - 0.8, 0.5), height: HIGH - y(share), class: 'share' }));
    bar.addEventListener('click', () => addFilter(h.name, words));
    svg.append(bar);
  });
  if (h.shares) {
    const line = h.shares.map((share, k) => `${k ? 'L' : 'M'}${x(k)} ${y(share)}L${x(k + 1)} ${y(share)}`).join('');
    svg.append(shape('path', { d: line, class: 'reference' }));
  }
  const figure = make('figure');
  const caption = make('figcaption', '', `${h.name}${unit ? `, ${unit}` : ''}`);
  const column = page.columns.find((c) => c.name === h.name);
  if (column && column.meaning) caption.title = column.meaning;
  if (values.length) caption.append(make('span', 'median', short(median(values)) + (h.shares ? ` (${short(h.median)})` : '')));
  const ends = make('p', 'ends');
  const inset = whole ? 0.5 : 0; // a bin of a whole number has it in the middle
  ends.append(make('span', '', short(h.low + inset)), make('span', '', short(h.high - inset)));
  figure.append(caption, svg, ends);
  return figure;
}

function addFilter(name, words) {
  const box = byId('filter');
  const rest = box.value.trim().split(/\s+/).filter((word) => word && !word.startsWith(name));
  box.value = [...rest, words].join(' ');
  refresh();
}

function drawHistograms() {
  if (!page.histograms.length || !byId('histograms').open) return;
  byId('bars').replaceChildren(...page.histograms.map((h) => histogram(h, state.shown
    .map((k) => records[k].properties[h.name]).filter((v) => typeof v === 'number'))));
}

function startHistograms() {
  byId('histograms').hidden = !page.histograms.length;
  const r = page.reference;
  byId('against').textContent = r ? `Properties of what is shown (bars), of ${r.count} molecules of ${r.name} (line), and medians`
    : 'Properties of what is shown';
  const low = window.innerHeight < 1000;
  if (low && byId('metrics') && page.histograms.length) byId('metrics').open = false;
  byId('histograms').open = window.matchMedia('(min-width: 821px) and (min-height: 700px)').matches;
  byId('histograms').addEventListener('toggle', drawHistograms);
}
