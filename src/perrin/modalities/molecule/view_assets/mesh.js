// Ball and stick as two triangle meshes, atoms and bonds, in Å. Every vertex carries its colour, so that one molecule
// of any size is two plotly traces.

const vec = {
  add: (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]],
  cross: (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]],
  dot: (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2],
  unit: (a) => { const r = Math.hypot(...a) || 1; return [a[0] / r, a[1] / r, a[2] / r]; },
};

const emptyMesh = () => ({ x: [], y: [], z: [], i: [], j: [], k: [], colour: [], text: [] });

const spheres = {};

// Unit sphere: an icosahedron whose faces are divided `level` times.
function sphere(level) {
  if (spheres[level]) return spheres[level];
  const g = (1 + Math.sqrt(5)) / 2;
  const points = [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g], [0, -1, -g], [0, 1, -g],
    [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]].map(vec.unit);
  let faces = [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4], [11, 10, 2],
    [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10],
    [8, 6, 7], [9, 8, 1]];
  for (let round = 0; round < level; round++) {
    const middles = {};
    const middle = (a, b) => {
      const key = a < b ? `${a},${b}` : `${b},${a}`;
      if (!(key in middles)) middles[key] = points.push(vec.unit(vec.add(points[a], points[b]))) - 1;
      return middles[key];
    };
    faces = faces.flatMap(([a, b, c]) => {
      const [p, q, r] = [middle(a, b), middle(b, c), middle(c, a)];
      return [[a, p, r], [b, q, p], [c, r, q], [p, q, r]];
    });
  }
  return (spheres[level] = { points, faces });
}

function addVertex(mesh, p, colour, text) {
  mesh.x.push(p[0]); mesh.y.push(p[1]); mesh.z.push(p[2]);
  mesh.colour.push(colour);
  mesh.text.push(text);
}

function addFace(mesh, a, b, c) {
  mesh.i.push(a); mesh.j.push(b); mesh.k.push(c);
}

function addSphere(mesh, centre, radius, colour, text, level) {
  const { points, faces } = sphere(level);
  const start = mesh.x.length;
  for (const p of points) addVertex(mesh, vec.add(centre, p, radius), colour, text);
  for (const [a, b, c] of faces) addFace(mesh, start + a, start + b, start + c);
}

// An open tube from a to b.
function addTube(mesh, a, b, radius, colour, sides = 14) {
  const axis = vec.unit(vec.add(b, a, -1));
  const side = vec.unit(vec.cross(axis, Math.abs(axis[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]));
  const other = vec.cross(axis, side);
  const start = mesh.x.length;
  for (let s = 0; s < sides; s++) {
    const angle = (2 * Math.PI * s) / sides;
    const out = vec.add(side.map((v) => v * Math.cos(angle)), other, Math.sin(angle));
    addVertex(mesh, vec.add(a, out, radius), colour, '');
    addVertex(mesh, vec.add(b, out, radius), colour, '');
  }
  for (let s = 0; s < sides; s++) {
    const [p, q] = [start + 2 * s, start + 2 * ((s + 1) % sides)];
    addFace(mesh, p, q, p + 1);
    addFace(mesh, q, q + 1, p + 1);
  }
}

// Where the second line of a double bond goes: across the bond, in the plane of a neighbour when there is one.
function acrossBond(a, b, i, j, places, neighbours, eye) {
  const axis = vec.unit(vec.add(b, a, -1));
  for (const [from, k] of [...neighbours[i].map((m) => [a, m]), ...neighbours[j].map((m) => [b, m])]) {
    if (k === i || k === j) continue;
    const arm = vec.add(places[k], from, -1);
    const flat = vec.add(arm, axis, -vec.dot(arm, axis));
    if (Math.hypot(...flat) > 0.1) return vec.unit(flat);
  }
  const broad = vec.cross(axis, eye); // no plane, as at a linear triple bond: face the first view
  return vec.unit(Math.hypot(...broad) > 0.1 ? broad : vec.cross(axis, Math.abs(axis[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]));
}

const STICKS = { 1: { radius: 0.105, shifts: [0] }, 2: { radius: 0.07, shifts: [-0.11, 0.11] },
  3: { radius: 0.055, shifts: [-0.15, 0, 0.15] } };

// Meshes of one record, moved to its centre, and the radius of the ball that holds it.
function ballAndStick(record, elements) {
  const centre = record.camera.slice(0, 3);
  const n = record.z.length;
  const places = Array.from({ length: n }, (_, i) => {
    const p = record.xyz.slice(3 * i, 3 * i + 3);
    return p.includes(null) ? null : vec.add(p, centre, -1);
  });
  const level = n <= 150 ? 2 : 1;
  const [atoms, bonds] = [emptyMesh(), emptyMesh()];
  let extent = 1.2;
  places.forEach((p, i) => {
    if (!p) return;
    const element = elements[record.z[i]];
    const radius = record.bonds ? 0.17 + 0.2 * element.radius : 0.85 * element.radius;
    const charge = record.charges ? record.charges[i] : 0;
    const sign = charge === 0 ? '' : ' ' + (Math.abs(charge) > 1 ? Math.abs(charge) : '') + (charge > 0 ? '+' : '−');
    addSphere(atoms, p, radius, element.colour, `${element.symbol}${i + 1}${sign}`, level);
    extent = Math.max(extent, Math.hypot(...p) + radius);
  });
  const pairs = [];
  const neighbours = places.map(() => []);
  for (let b = 0; record.bonds && b < record.bonds.length; b += 3) {
    const [i, j, order] = record.bonds.slice(b, b + 3);
    if (i === j || !places[i] || !places[j]) continue;
    pairs.push([i, j, order]);
    neighbours[i].push(j);
    neighbours[j].push(i);
  }
  for (const [i, j, order] of pairs) {
    const { radius, shifts } = STICKS[order] || STICKS[1];
    const across = shifts.length > 1 ? acrossBond(places[i], places[j], i, j, places,
      order === 3 ? places.map(() => []) : neighbours, record.camera.slice(3, 6)) : [0, 0, 0];
    for (const shift of shifts) {
      const [a, b] = [vec.add(places[i], across, shift), vec.add(places[j], across, shift)];
      const half = vec.add(a, vec.add(b, a, -1), 0.5);
      addTube(bonds, a, half, radius, elements[record.z[i]].colour);
      addTube(bonds, half, b, radius, elements[record.z[j]].colour);
    }
  }
  return { atoms, bonds, extent };
}

const LIGHT = {
  lighting: { ambient: 0.58, diffuse: 0.65, specular: 0.28, roughness: 0.35, fresnel: 0.05,
    vertexnormalsepsilon: 0, facenormalsepsilon: 0 },
  lightposition: { x: 2e4, y: 3e4, z: 1e5 },
};

function meshTrace(mesh, hover) {
  return { type: 'mesh3d', x: mesh.x, y: mesh.y, z: mesh.z, i: mesh.i, j: mesh.j, k: mesh.k, vertexcolor: mesh.colour,
    flatshading: false, text: mesh.text, hoverinfo: hover ? 'text' : 'skip', showscale: false, ...LIGHT };
}
