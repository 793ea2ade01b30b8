// Compiles, runs and times one WGSL kernel. It knows no page and no lesson.

const GUARD = 1024; // floats behind every tensor, inside its binding: a kernel must neither use nor change them
const UNWRITTEN = -12345.5; // what outputs hold before the kernel runs
const SHORTEST = 50; // ms that a measurement takes at least
const BINDING = /@group\((\d+)\)\s*@binding\((\d+)\)\s*var<\s*(storage[\s,\w]*|uniform)\s*>\s*(\w+)/g;
const TYPES = { "storage,read_write": "storage", uniform: "uniform" };

/**
 * @typedef {Object} Kernel
 * @property {string} code
 * @property {string} grid      workgroups: a formula for each axis
 * @property {[string, string, string][]} params   name, type and formula of every uniform
 * @property {{group: number, binding: number, type: string, name: string}[]} bindings
 * @property {Object<string, number>} overrides
 * @property {boolean} padded   whether rows begin at multiples of 16 bytes
 *
 * @typedef {{shape: number[], values: Float32Array}} Tensor
 */

/** What a compiler or the device said. `lines` are the lines of the code that it names. */
export class Refused extends Error {
  constructor(message, lines = []) {
    super(message);
    this.lines = lines;
  }
}

/** The value of a formula: products of quotients, each division rounded up, and differences of them. */
export function evaluate(formula, sizes) {
  const value = (word) => {
    const found = word in sizes ? sizes[word] : Number(word);
    if (word.trim() === "" || Number.isNaN(found)) throw new Refused(`“${formula}”: there is no size “${word}”.`);
    return found;
  };
  const quotient = (text) => text.split("/").map(value).reduce((a, b) => Math.ceil(a / b));
  const product = (text) => text.split("*").map(quotient).reduce((a, b) => a * b);
  return String(formula).split("-").map(product).reduce((a, b) => a - b);
}

/** Reads a kernel of this page from its text. @returns {Kernel} */
export function parse(code) {
  const grid = /^\/\/! grid (.+)$/m.exec(code)?.[1];
  if (!grid) throw new Refused("Say how many workgroups run, in a line such as: //! grid count/64");
  const fields = /struct Params\s*\{([^}]*)\}/.exec(code)?.[1] ?? "";
  const params = [...fields.matchAll(/(\w+)\s*:\s*(u32|f32)/g)].map(([, name, type]) => [name, type, name]);
  const bindings = [...code.matchAll(BINDING)].map(([, group, binding, kind, name]) => ({
    group: Number(group),
    binding: Number(binding),
    type: TYPES[kind.replace(/\s/g, "")] ?? "read-only-storage",
    name,
  }));
  return { code, grid, params, bindings, overrides: {}, padded: false };
}

/** Opens the device, with timestamps if they are offered. */
export async function openDevice() {
  if (!navigator.gpu) throw new Refused("This browser has no WebGPU.");
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Refused("This browser has WebGPU, but found no adapter.");
  const requiredFeatures = adapter.features.has("timestamp-query") ? ["timestamp-query"] : [];
  return { device: await adapter.requestDevice({ requiredFeatures }), info: adapter.info };
}

/** Runs `work` and throws what the device reports meanwhile as `Refused`. */
async function checked(device, work) {
  device.pushErrorScope("out-of-memory");
  device.pushErrorScope("validation");
  let result, thrown;
  try {
    result = await work();
  } catch (error) {
    thrown = error;
  }
  const scopes = [await device.popErrorScope(), await device.popErrorScope()];
  const found = scopes.find((error) => error);
  if (thrown instanceof Refused || (thrown && !found)) throw thrown;
  if (found) throw new Refused(found.message);
  return result;
}

/** @returns the pipeline and the layouts of its bind groups */
export function compile(device, kernel) {
  return checked(device, async () => {
    const module = device.createShaderModule({ code: kernel.code });
    const { messages } = await module.getCompilationInfo();
    const errors = messages.filter((m) => m.type === "error");
    if (errors.length) {
      const text = messages.map((m) => `${m.lineNum}:${m.linePos} ${m.type}: ${m.message}`).join("\n");
      throw new Refused(text, errors.map((m) => m.lineNum));
    }
    const layouts = [];
    for (let group = 0; group <= Math.max(...kernel.bindings.map((b) => b.group)); group++) {
      const entries = kernel.bindings
        .filter((b) => b.group === group)
        .map((b) => ({ binding: b.binding, visibility: GPUShaderStage.COMPUTE, buffer: { type: b.type } }));
      layouts.push(device.createBindGroupLayout({ entries }));
    }
    const layout = device.createPipelineLayout({ bindGroupLayouts: layouts });
    const compute = { module, entryPoint: "main", constants: kernel.overrides };
    try {
      return { pipeline: await device.createComputePipelineAsync({ layout, compute }), layouts };
    } catch (error) {
      throw new Refused(error.message);
    }
  });
}

/** Rows of a tensor in memory: elements from one to the next, and their number. */
function rowsOf(shape, padded) {
  const columns = shape.at(-1);
  const stride = padded ? Math.ceil(columns / 4) * 4 : columns;
  return { columns, stride, rows: shape.slice(0, -1).reduce((a, b) => a * b, 1) };
}

function storageOf(device, { shape, values }, padded, filler) {
  const { columns, stride, rows } = rowsOf(shape, padded);
  const data = new Float32Array(rows * stride + GUARD).fill(filler, rows * stride);
  for (let row = 0; row < rows; row++) {
    data.set(values.subarray(row * columns, (row + 1) * columns), row * stride);
  }
  return bufferOf(device, data, GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC);
}

function bufferOf(device, data, usage) {
  const buffer = device.createBuffer({ size: data.byteLength, usage: usage | GPUBufferUsage.COPY_DST });
  device.queue.writeBuffer(buffer, 0, data);
  return buffer;
}

function uniformOf(device, kernel, sizes) {
  const bytes = new DataView(new ArrayBuffer(Math.ceil((kernel.params.length * 4) / 16) * 16 || 16));
  kernel.params.forEach(([, type, formula], i) => {
    const value = evaluate(formula, sizes);
    if (type === "f32") bytes.setFloat32(4 * i, value, true);
    else bytes.setUint32(4 * i, value, true);
  });
  return bufferOf(device, bytes.buffer, GPUBufferUsage.UNIFORM);
}

/** Workgroups as (x, y). The project's kernels have one axis, folded in two where it is longer than the limit. */
function workgroups(device, kernel, sizes) {
  const axes = kernel.grid.trim().split(/\s+/).map((formula) => evaluate(formula, sizes));
  if (!kernel.padded) return axes;
  const y = Math.ceil(axes[0] / device.limits.maxComputeWorkgroupsPerDimension);
  return [Math.ceil(axes[0] / y), y];
}

async function read(device, buffer) {
  const staging = device.createBuffer({ size: buffer.size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const data = new Float32Array(staging.getMappedRange().slice(0));
  staging.destroy();
  return data;
}

/** Milliseconds of a dispatch, from many in one pass: by the GPU's timestamps if it gives them, else wall time. */
async function time(device, encode) {
  const stamps = device.features.has("timestamp-query");
  const set = stamps && device.createQuerySet({ type: "timestamp", count: 2 });
  const timestampWrites = set && { querySet: set, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 };
  for (let turn = 0, count = 1; ; turn++) {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass(set ? { timestampWrites } : {});
    for (let i = 0; i < count; i++) encode(pass);
    pass.end();
    const start = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    const wall = performance.now() - start;
    if (turn === 0) continue; // drivers generate code at the first dispatch
    if (wall < SHORTEST && count < 1024) {
      count *= 4;
      continue;
    }
    const gpu = set ? await between(device, set) : 0;
    set?.destroy();
    return gpu > 0 ? { ms: gpu / count, how: "timestamps" } : { ms: wall / count, how: "wall time" };
  }
}

async function between(device, set) {
  const buffer = device.createBuffer({ size: 16, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
  const encoder = device.createCommandEncoder();
  encoder.resolveQuerySet(set, 0, 2, buffer, 0);
  device.queue.submit([encoder.finish()]);
  const [begin, end] = new BigUint64Array((await read(device, buffer)).buffer);
  buffer.destroy();
  return Number(end - begin) / 1e6;
}

/**
 * Runs a compiled kernel on tensors, and times it.
 * @param {Object<string, Tensor>} inputs
 * @param {number[]} shape   of the output
 * @returns values, dense; whether the floats behind the output were left alone; the time of a dispatch
 */
export async function run(device, kernel, compiled, sizes, inputs, shape) {
  const buffers = {};
  try {
    return await checked(device, async () => {
      const { columns, stride, rows } = rowsOf(shape, kernel.padded);
      const empty = new Float32Array(rows * columns).fill(UNWRITTEN);
      for (const [name, tensor] of Object.entries(inputs)) {
        buffers[name] = storageOf(device, tensor, kernel.padded, NaN);
      }
      buffers.out = storageOf(device, { shape, values: empty }, kernel.padded, UNWRITTEN);
      buffers.params = uniformOf(device, kernel, sizes);
      const groups = compiled.layouts.map((layout, group) => device.createBindGroup({
        layout,
        entries: kernel.bindings.filter((b) => b.group === group).map(({ binding, name }) => {
          if (!(name in buffers)) throw new Refused(`There is no “${name}”; this lesson has ${Object.keys(buffers)}.`);
          return { binding, resource: { buffer: buffers[name] } };
        }),
      }));
      const counts = workgroups(device, kernel, sizes);
      const encode = (pass) => {
        pass.setPipeline(compiled.pipeline);
        groups.forEach((group, i) => pass.setBindGroup(i, group));
        pass.dispatchWorkgroups(...counts);
      };
      const speed = await time(device, encode);
      const data = await read(device, buffers.out);
      const values = new Float32Array(rows * columns);
      for (let row = 0; row < rows; row++) {
        values.set(data.subarray(row * stride, row * stride + columns), row * columns);
      }
      const spoilt = data.subarray(rows * stride).filter((v) => v !== UNWRITTEN).length;
      return { values, spoilt, ...speed };
    });
  } finally {
    Object.values(buffers).forEach((buffer) => buffer.destroy());
  }
}
