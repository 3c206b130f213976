// Reads token_strings.jsonl with llama.cpp's own tokenizer over a GGUF vocabulary and writes the ids as JSON to stdout.
//
//   mkdir nodellama && cd nodellama && npm init -y
//   npm install --omit=optional --ignore-scripts node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
//   node make_token_vectors.mjs nodellama MODEL.gguf token_strings.jsonl > llama_ids.json
//
// The first argument is the folder that holds node_modules. make_token_ids.py compares these ids with those of the `tokenizers` library and
// writes token_ids.json.

import {readFileSync} from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [modules, gguf, strings] = process.argv.slice(2);
if (strings == null) throw new Error("usage: make_token_vectors.mjs MODULES_FOLDER MODEL.gguf token_strings.jsonl");

const entry = path.resolve(modules, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(entry).href);
const {version} = JSON.parse(readFileSync(path.resolve(modules, "node_modules/node-llama-cpp/package.json"), "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: path.resolve(gguf), vocabOnly: true});

const rows = readFileSync(strings, "utf8").split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
const plain = rows.map(({text}) => Array.from(model.tokenize(text, false)));
const special = {};
rows.forEach(({text, special: parsed}, index) => {
    if (parsed) special[index] = Array.from(model.tokenize(text, true));
});
const {release} = llama.llamaCppRelease ?? {};
process.stdout.write(JSON.stringify({source: `llama.cpp ${release ?? "?"} through node-llama-cpp ${version}`, plain, special}) + "\n");
await llama.dispose();
