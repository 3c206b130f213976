// Runs token ids through llama.cpp (node-llama-cpp), with a GGUF adapter and without, for localsft's proof of an export.
//
// argv: a JSON request {modules, model, lora, prompts, texts, max_tokens, context, threads, logits, base_logits}. Writes the raw
// logits after each prompt as float32 (prompts, V) to the files `logits` (with the adapter) and `base_logits` (without), and one
// JSON document to stdout: {version, generated, stop_ids, tokenized, prepends_bos}.

import {readFileSync, writeFileSync} from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const request = JSON.parse(readFileSync(process.argv[2], "utf8"));
const installed = path.resolve(request.modules, "node_modules/node-llama-cpp");
const {getLlama} = await import(pathToFileURL(path.join(installed, "dist/index.js")).href);
const {version} = JSON.parse(readFileSync(path.join(installed, "package.json"), "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: request.threads});
const model = await llama.loadModel({modelPath: request.model});
const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
const all = Array.from({length: vocabulary}, (_, id) => id);

async function run(lora, maxTokens) {
    const context = await model.createContext({contextSize: request.context, threads: request.threads, ...(lora ? {lora} : {})});
    const sequence = context.getSequence();
    const logits = new Float32Array(request.prompts.length * vocabulary);
    const generated = [];
    for (const [number, prompt] of request.prompts.entries()) {
        await sequence.clearHistory();
        const last = [prompt.at(-1), {generateNext: {token: true, logits: {filter: {tokens: all}}, options: {temperature: 0}}}];
        const {next} = (await sequence.controlledEvaluate([...prompt.slice(0, -1), last])).at(-1);
        for (const [id, logit] of next.logits) logits[number * vocabulary + id] = logit;
        const tokens = [next.token];
        if (maxTokens > 1 && !model.isEogToken(next.token)) {
            for await (const token of sequence.evaluate([next.token], {temperature: 0, yieldEogToken: true})) {
                tokens.push(token);
                if (tokens.length >= maxTokens || model.isEogToken(token)) break;
            }
        }
        generated.push(tokens);
    }
    await context.dispose();
    return {logits, generated};
}

const base = request.base_logits == null ? null : await run(null, 1);
const {logits, generated} = await run(request.lora, request.max_tokens);
writeFileSync(request.logits, logits);
if (base) writeFileSync(request.base_logits, base.logits);
const tokenized = request.texts.map((text) => Array.from(model.tokenize(text, true)));
const stop_ids = all.filter((id) => model.isEogToken(id));
process.stdout.write(JSON.stringify({version, generated, stop_ids, tokenized, prepends_bos: model.tokens.shouldPrependBosToken}) + "\n");
await llama.dispose();
