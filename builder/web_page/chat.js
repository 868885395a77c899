// Chats with the model beside this page, through WebLLM (web-llm.js). Nothing is fetched from anywhere else.
// In the page's address, ?temperature=0&max_tokens=64 set what their names say.

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const LONGEST_CONTINUATION = 128; // tokens, of a model that completes text

class Refusal extends Error {}

main().catch((error) => {
  $("loading").hidden = true;
  $("failure").hidden = false;
  $("failure").textContent = error instanceof Refusal ? error.message : `The model could not be loaded: ${error.message ?? error}`;
  console.error(error);
});

async function main() {
  const page = await json("page.json");
  const home = new URL(`resolve/${page.revision}/`, document.baseURI).href;
  document.title = $("name").textContent = page.name;
  $("about").textContent = `${page.family}, ${page.quantization}, ${megabytes(page.weights_bytes)}; runs in this browser, on your GPU`;
  await checkDevice(page);
  const config = await json(`${home}mlc-chat-config.json`);
  await forgetOtherRevisions(home);
  const engine = await load(page, home);
  $("loading").hidden = true;
  converse(engine, config);
}

async function json(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${new URL(url, document.baseURI).pathname}: ${answer.status} ${answer.statusText}`);
  return answer.json();
}

// Throws a Refusal that says what this browser lacks and what helps.
async function checkDevice(page) {
  if (!window.isSecureContext)
    throw new Refusal("Browsers give pages the GPU only over https, or from localhost. Open this page that way.");
  if (!navigator.gpu)
    throw new Refusal("This browser has no WebGPU. Chrome and Edge have had it since version 113, Safari since 26, Firefox since 141 on some systems.");
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) throw new Refusal("WebGPU found no GPU that it may use. chrome://gpu, or about:support in Firefox, says why.");
  const missing = page.features.filter((feature) => !adapter.features.has(feature));
  if (missing.length)
    throw new Refusal(
      `This model needs ${missing.join(" and ")}, which this browser does not offer on this GPU.` +
        (missing.includes("shader-f16") ? " A library built with target=webgpu-f32 does without." : "")
    );
  if (page.largest_tensor_bytes > adapter.limits.maxStorageBufferBindingSize)
    throw new Refusal(`This model has a tensor of ${megabytes(page.largest_tensor_bytes)}; this GPU binds ${megabytes(adapter.limits.maxStorageBufferBindingSize)} at most.`);
}

// WebLLM keeps files by address: those of an earlier build of this page would stay for ever.
async function forgetOtherRevisions(home) {
  const ours = new URL("resolve/", document.baseURI).href;
  for (const name of await caches.keys()) {
    if (!name.startsWith("webllm/")) continue;
    const cache = await caches.open(name);
    for (const { url } of await cache.keys()) if (url.startsWith(ours) && !url.startsWith(home)) await cache.delete(url);
  }
}

async function load(page, home) {
  const { CreateMLCEngine } = await import("./web-llm.js");
  const model = { model: home, model_id: page.name, model_lib: `${home}${page.library}`, required_features: page.features };
  return CreateMLCEngine(page.name, {
    appConfig: { model_list: [model] },
    initProgressCallback: ({ progress, text }) => showProgress(page, progress, text),
  });
}

function showProgress(page, progress, text) {
  const bytes = `${megabytes(progress * page.weights_bytes)} of ${megabytes(page.weights_bytes)}`;
  if (text.startsWith("Fetching")) $("status").textContent = `Downloading: ${bytes}`;
  else if (text.startsWith("Loading model")) $("status").textContent = `Loading to the GPU: ${bytes}`;
  else $("status").textContent = text.replace(/:.*/s, "");
  $("bar").value = progress;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e8 ? 1 : 0)} MB`;
}

// The conversation: a model with a chat template answers, one without continues the text.
function converse(engine, config) {
  const continues = config.conv_template.name === "plain";
  let messages = [];
  const settings = { stream: true, stream_options: { include_usage: true } };
  if (continues) settings.max_tokens = LONGEST_CONTINUATION;
  for (const name of ["temperature", "max_tokens"]) if (asked.has(name)) settings[name] = Number(asked.get(name));
  $("prompt").placeholder = continues ? "Begin a text; the model continues it" : "Message";
  $("send").textContent = continues ? "Continue" : "Send";
  $("clear").textContent = continues ? "Clear" : "New chat";

  async function send() {
    const text = continues ? $("prompt").value : $("prompt").value.trim();
    if (!text) return;
    $("prompt").value = "";
    busy(true);
    show("user", text);
    const answer = show("model", "");
    answer.classList.add("busy");
    try {
      if (continues) messages = [];
      messages.push({ role: "user", content: text });
      const said = await stream(await engine.chat.completions.create({ ...settings, messages }), answer);
      messages.push({ role: "assistant", content: said });
    } catch (error) {
      answer.textContent += `\n[${error.message ?? error}]`;
      console.error(error);
    }
    answer.classList.remove("busy");
    busy(false);
  }

  $("form").addEventListener("submit", (event) => (event.preventDefault(), send()));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), $("form").requestSubmit());
  });
  $("stop").addEventListener("click", () => engine.interruptGenerate());
  $("clear").addEventListener("click", async () => {
    messages = [];
    $("log").replaceChildren();
    $("speed").textContent = "";
    await engine.resetChat();
    $("prompt").focus();
  });
  busy(false);
}

async function stream(chunks, answer) {
  for await (const chunk of chunks) {
    const choice = chunk.choices[0];
    if (choice) answer.textContent += choice.delta.content ?? "";
    if (chunk.usage) showSpeed(chunk.usage);
    answer.scrollIntoView({ block: "end" });
  }
  return answer.textContent;
}

function showSpeed({ completion_tokens: tokens, extra }) {
  const parts = [`${tokens} tokens`];
  if (extra?.decode_tokens_per_s) parts.push(`${extra.decode_tokens_per_s.toFixed(1)} tokens/s`);
  if (extra?.time_to_first_token_s) parts.push(`first after ${extra.time_to_first_token_s.toFixed(2)} s`);
  $("speed").textContent = parts.join(" · ");
}

function show(kind, text) {
  const box = document.createElement("div");
  box.className = kind;
  box.textContent = text;
  $("log").append(box);
  return box;
}

function busy(is) {
  $("prompt").disabled = $("send").disabled = $("clear").disabled = is;
  $("send").hidden = is;
  $("stop").hidden = !is;
  if (!is) $("prompt").focus();
}
