// The peer for generation: llama.cpp through node-llama-cpp, one sequence, greedy. Prints one JSON object.
//
//     npm install --omit=optional node-llama-cpp@3.22.1 && npm install @node-llama-cpp/linux-x64@3.22.1
//     node llama_decode.mjs MODEL.gguf THREADS TOKENS ROUNDS
//
// Run it from the folder that holds node_modules.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const {getLlama} = await import(pathToFileURL(createRequire(process.cwd() + "/").resolve("node-llama-cpp")));
const [modelPath, threads, tokens, rounds] = [process.argv[2], ...process.argv.slice(3, 6).map(Number)];
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: threads});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const context = await model.createContext({contextSize: 1024, threads});
const prompt = model.tokenize("The quick brown fox jumps over the lazy dog. ".repeat(4)).slice(0, 32);
const rates = [];
for (let round = 0; round < rounds; ++round) {
    const sequence = context.getSequence();
    const times = [];
    for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        times.push(performance.now());
        if (times.length === tokens) break;
    }
    rates.push(1000 * (times.length - 1) / (times.at(-1) - times[0]));
    sequence.dispose();
}
console.log(JSON.stringify({peer: "llama.cpp (node-llama-cpp)", threads, tokens, rates}));
process.exit(0);
