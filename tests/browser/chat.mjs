// node chat.mjs SERVER LIBRARY PROMPT MAX_TOKENS: what unmodified WebLLM says, greedily.
// SERVER/web-llm.js is WebLLM, SERVER/model/resolve/main/ the artifact.
import { withPage } from "./browser.mjs";

const [server, library, prompt, tokens] = process.argv.slice(2);

await withPage(async (page) => {
  await page.goto(`${server}/empty.html`);
  return page.evaluate(
    async ([library, prompt, max_tokens]) => {
      const instantiate = WebAssembly.instantiate;
      let memory;
      WebAssembly.instantiate = async (...given) => {
        const result = await instantiate.apply(WebAssembly, given);
        if ((result.instance ?? result).exports.TVMFFIFunctionCall) memory = (result.instance ?? result).exports.memory;
        return result;
      };
      const { CreateMLCEngine } = await import("/web-llm.js");
      const home = new URL("/model/", location.href).href;
      const model = { model: home, model_id: "model", model_lib: `${home}resolve/main/${library}` };
      const messages = [{ role: "user", content: prompt }];
      const started = performance.now();
      const engine = await CreateMLCEngine("model", { appConfig: { model_list: [model] } });
      const loaded = performance.now();
      const first = memory.buffer.byteLength;
      const answer = await engine.chat.completions.create({ messages, max_tokens, temperature: 0 });
      const sampled = await engine.chat.completions.create({
        messages, max_tokens: 4, temperature: 0.8, top_p: 0.9, seed: 1, frequency_penalty: 0.5, logit_bias: { 5: -100 },
      });
      return {
        text: answer.choices[0].message.content, usage: answer.usage, sampled: sampled.choices[0].message.content,
        load_s: (loaded - started) / 1000, memory_bytes: [first, memory.buffer.byteLength],
      };
    },
    [library, prompt, Number(tokens)]
  );
});
