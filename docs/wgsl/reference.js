// The lessons' inputs, and what their kernels should compute, in float64.

const EXAMPLES = 4;

/** Normal random numbers from a seed, by Box and Muller's method over mulberry32. */
function normal(seed) {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

/**
 * A random tensor. `spike` multiplies every 41st element; `first` replaces the first element of every row.
 * @param {{shape: (string|number)[], deviation?: number, mean?: string, spike?: number, first?: number}} rule
 */
export function tensor(rule, sizes, seed) {
  const shape = rule.shape.map((n) => sizes[n] ?? n);
  const columns = shape.at(-1);
  const next = normal(seed);
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => {
    if (rule.first !== undefined && i % columns === 0) return rule.first;
    return next() * (rule.deviation ?? 1) * (i % 41 === 0 ? rule.spike ?? 1 : 1) + (sizes[rule.mean] ?? 0);
  });
  return { shape, values };
}

function scale({ x }, { factor }) {
  return Float64Array.from(x.values, (v) => v * Math.fround(factor));
}

/** The error function: its series near 0, else a continued fraction; both exact to about 1e-15. */
function erf(v) {
  const a = Math.abs(v);
  if (a > 6) return Math.sign(v);
  if (a > 2.5) {
    let tail = a;
    for (let n = 60; n > 0; n--) tail = a + n / 2 / tail;
    return Math.sign(v) * (1 - Math.exp(-a * a) / (tail * Math.sqrt(Math.PI)));
  }
  let term = v, sum = v;
  for (let n = 1; n < 60; n++) {
    term *= (-v * v) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

function gelu({ x }) {
  return Float64Array.from(x.values, (v) => 0.5 * v * (1 + erf(v * Math.SQRT1_2)));
}

function layernorm({ x, weight, bias }, { rows, columns, eps }) {
  const out = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) {
    const row = Float64Array.from(x.values.subarray(r * columns, (r + 1) * columns));
    const mean = row.reduce((a, b) => a + b, 0) / columns;
    const variance = row.reduce((a, b) => a + (b - mean) ** 2, 0) / columns;
    const factor = 1 / Math.sqrt(variance + Math.fround(eps));
    for (let c = 0; c < columns; c++) {
      out[r * columns + c] = (row[c] - mean) * factor * weight.values[c] + bias.values[c];
    }
  }
  return out;
}

/** Σₖ a[i, k] · b[j, k], the dot product of two rows of k columns. */
function dot(a, i, b, j, columns) {
  let sum = 0;
  for (let c = 0; c < columns; c++) sum += a[i * columns + c] * b[j * columns + c];
  return sum;
}

function matmul({ x, w }, { m, n, k }) {
  const out = new Float64Array(m * n);
  for (let r = 0; r < m; r++) {
    for (let c = 0; c < n; c++) out[r * n + c] = dot(x.values, r, w.values, c, k);
  }
  return out;
}

function attention({ q, k, v }, { rows, positions, scale: factor }) {
  if (positions < rows) throw new Error("positions must be at least rows: the last query is at the last position.");
  const head = q.shape[1];
  const out = new Float64Array(rows * head);
  for (let r = 0; r < rows; r++) {
    const seen = r + positions - rows + 1;
    const scores = Array.from({ length: seen }, (_, j) => dot(q.values, r, k.values, j, head) * factor);
    const top = scores.reduce((a, b) => Math.max(a, b));
    const weights = scores.map((s) => Math.exp(s - top));
    const sum = weights.reduce((a, b) => a + b);
    weights.forEach((weight, j) => {
      for (let c = 0; c < head; c++) out[r * head + c] += (weight / sum) * v.values[j * head + c];
    });
  }
  return out;
}

export const references = { scale, gelu, layernorm, matmul, attention };

/**
 * Compares a result with its reference. The error is relative to the reference's largest element, for NaN infinite.
 * @returns the largest error, the number of elements that are off by more than the bound, and examples of them
 */
export function compare(values, expected, bound) {
  const largest = expected.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const examples = [];
  let error = 0, wrong = 0, worst = -1;
  values.forEach((value, i) => {
    const off = Number.isFinite(value) ? Math.abs(value - expected[i]) / largest : Infinity;
    if (off > error) [error, worst] = [off, i];
    if (off > bound && (wrong += 1) < EXAMPLES) examples.push(i);
  });
  if (wrong && !examples.includes(worst)) examples.push(worst);
  return { error, wrong, examples };
}
