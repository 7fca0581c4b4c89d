// Text formats of one record: MDL V2000 with data items, and XYZ. Pure functions; `elements` maps Z to its symbol.

const oneLine = (text) => String(text).replace(/[\r\n]+/g, ' ');

// A data item ends at an empty line and a record at $$$$, so neither may stand in a value.
const dataItem = (text) => text.trim().replace(/[\r\n]+/g, '\n').replace(/^(\$\$\$\$|>)/gm, ' $1');

function sdfBlock(record, elements) {
  const n = record.z.length;
  const bonds = record.bonds || [];
  const int3 = (v) => String(v).padStart(3);
  const lines = [oneLine(record.name).slice(0, 80), '  Perrin            3D', ''];
  lines.push(int3(n) + int3(bonds.length / 3) + '  0  0  0  0  0  0  0  0999 V2000');
  for (let i = 0; i < n; i++) {
    const place = [0, 1, 2].map((k) => record.xyz[3 * i + k].toFixed(4).padStart(10)).join('');
    const symbol = elements[record.z[i]].symbol === 'X' ? '*' : elements[record.z[i]].symbol;
    lines.push(`${place} ${symbol.padEnd(3)} 0  0  0  0  0  0  0  0  0  0  0  0`);
  }
  for (let b = 0; b < bonds.length; b += 3) {
    lines.push(int3(bonds[b] + 1) + int3(bonds[b + 1] + 1) + int3(bonds[b + 2]) + '  0');
  }
  const charged = (record.charges || []).map((q, i) => [i + 1, q]).filter(([, q]) => q !== 0);
  for (let c = 0; c < charged.length; c += 8) {
    const part = charged.slice(c, c + 8);
    lines.push('M  CHG' + int3(part.length) + part.map(([i, q]) => ' ' + int3(i) + ' ' + int3(q)).join(''));
  }
  lines.push('M  END');
  for (const [key, value] of Object.entries(record.properties)) {
    const text = value === null ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value);
    lines.push(`>  <${oneLine(key).replace(/[<>]/g, '_')}>`, dataItem(text), '');
  }
  lines.push('$$$$', '');
  return lines.join('\n');
}

function xyzBlock(record, elements) {
  const lines = [String(record.z.length), oneLine(record.name || record.smiles || record.formula)];
  record.z.forEach((z, i) => {
    const place = [0, 1, 2].map((k) => record.xyz[3 * i + k].toFixed(4).padStart(11)).join('');
    lines.push(elements[z].symbol.padEnd(2) + place);
  });
  return lines.join('\n') + '\n';
}

// Why a file of this record cannot be written, or '' when it can.
function cannotWrite(record, sdf) {
  const n = record.z.length;
  const bonds = record.bonds || [];
  if (n === 0) return 'there are no atoms';
  if (record.xyz.includes(null)) return 'some positions are not finite numbers';
  if (!sdf) return '';
  if (n > 999 || bonds.length / 3 > 999) return 'a V2000 block holds at most 999 atoms and bonds';
  if (bonds.some((v, k) => k % 3 < 2 && !(v >= 0 && v < n))) return 'a bond names an atom that is not there';
  return '';
}
