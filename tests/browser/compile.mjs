// Compiles WGSL texts by Tint and makes their pipelines, on devices with WebGPU's default limits. Dawn's null backend
// makes all checks of a browser, and needs no GPU because it runs nothing.
//
//   node compile.mjs PACKAGE < programs.json > objections.json
//
// PACKAGE is the npm package of Dawn: webgpu or webgpu-old. programs.json holds a list of Program, objections.json has a
// list for each of them: what Tint or the pipeline objects to, with the line of the text.

import { readFileSync } from 'node:fs';

/**
 * @typedef {object} Program
 * @property {string} code
 * @property {string} entry
 * @property {Record<string, number>} constants values of its override constants
 * @property {string[]} features optional features that it needs
 * @property {[group: number, index: number, type: GPUBufferBindingType][]} bindings
 */

const { create, globals } = await import(process.argv[2]);
Object.assign(globalThis, globals);
const gpu = create(['backend=null']);

/** @type {Map<string, Promise<GPUDevice>>} */
const devices = new Map();

/**
 * The device with these features and no other. An adapter makes a single device.
 *
 * @param {string[]} features
 */
function deviceWith(features) {
  const key = features.join();
  if (!devices.has(key)) {
    devices.set(key, gpu.requestAdapter().then((adapter) => adapter.requestDevice({ requiredFeatures: features })));
  }
  return devices.get(key);
}

/**
 * @param {GPUDevice} device
 * @param {Program['bindings']} bindings
 */
function layoutOf(device, bindings) {
  const groups = Math.max(...bindings.map(([group]) => group)) + 1;
  const bindGroupLayouts = Array.from({ length: groups }, (_, group) => {
    const mine = bindings.filter(([other]) => other === group);
    return device.createBindGroupLayout({
      entries: mine.map(([, binding, type]) => ({ binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } })),
    });
  });
  return device.createPipelineLayout({ bindGroupLayouts });
}

/**
 * @param {Program} program
 * @returns {Promise<string[]>}
 */
async function objections({ code, entry, constants, features, bindings }) {
  const device = await deviceWith(features);
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  if (messages.length === 0) {
    const layout = layoutOf(device, bindings);
    device.createComputePipeline({ layout, compute: { module, entryPoint: entry, constants } });
  }
  const error = await device.popErrorScope();
  const found = messages.map(({ type, lineNum, linePos, message }) => `${type}: wgsl:${lineNum}:${linePos} ${message}`);
  return found.length === 0 && error ? [error.message] : found;
}

const found = [];
for (const program of JSON.parse(readFileSync(0, 'utf8'))) {
  found.push(await objections(program));
}
// Exit at once: older versions of Dawn abort while they are unloaded.
process.stdout.write(JSON.stringify(found), () => process.exit(0));
