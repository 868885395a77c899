// node kernels.mjs LIBRARY [FEATURE ...]: every WGSL kernel of a library, as the runtime that will load it hands it over,
// through Dawn's validation on a device with these features. No GPU is needed: the backend computes nothing.
import fs from "node:fs";
import { createRequire } from "node:module";
import { create, globals } from "webgpu";

Object.assign(globalThis, globals);
const tvmjs = createRequire(import.meta.url)("@mlc-ai/web-runtime");
const [library, ...requiredFeatures] = process.argv.slice(2);

globalThis.gpu = create(["backend=null"]); // Dawn goes when this is collected
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures });
const kernels = [];
const validated = [];

// This backend's limits are smaller than those of any browser: the caller compares sizes, Dawn checks the code.
const recorder = new Proxy(device, {
  get(target, name) {
    if (name === "createShaderModule") return ({ code }) => validated.push(validate(code));
    if (name === "createBindGroupLayout" || name === "createPipelineLayout") return () => ({});
    if (name === "createComputePipelineAsync") return async () => ({});
    const value = target[name];
    return typeof value === "function" ? value.bind(target) : value;
  },
});

async function validate(code) {
  device.pushErrorScope("validation");
  device.createShaderModule({ code });
  const error = await device.popErrorScope();
  kernels.push({ code, error: error?.message ?? "" });
}

const tvm = new tvmjs.Instance(new WebAssembly.Module(fs.readFileSync(library)), tvmjs.createPolyfillWASI());
tvm.initWebGPU(recorder);
tvm.beginScope();
const machine = tvm.createVirtualMachine(tvm.webgpu());
await tvm.asyncLoadWebGPUPipelines(machine.getInternalModule());
await Promise.all(validated);
process.stdout.write(JSON.stringify({ kernels, memory_bytes: tvm.memory.memory.buffer.byteLength }), () => process.exit(0));
