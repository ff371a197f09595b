// Loads one bundle in Transformers.js, from local files alone, and writes down what it answers.
// Started by transformersjs_node.py as `node transformersjs.mjs REQUEST ANSWER`, two JSON files described there.
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';

const CLASSES = {
  'text-classification': 'AutoModelForSequenceClassification',
  'token-classification': 'AutoModelForTokenClassification',
  'fill-mask': 'AutoModelForMaskedLM',
  'feature-extraction': 'AutoModel',
  'text-generation': 'AutoModelForCausalLM',
  'text2text-generation': 'AutoModelForSeq2SeqLM',
};

const [requestFile, answerFile] = process.argv.slice(2);
const request = JSON.parse(readFileSync(requestFile, 'utf8'));
const answer = { node: process.versions.node };
try {
  const library = load();
  if (library) await ask(library);
} catch (error) {
  answer.error = String(error?.message ?? error);
}
writeFileSync(answerFile, JSON.stringify(answer));

/** The library, or null where it is installed and yet does not start, which says nothing of the bundle. */
function load() {
  try {
    // Resolved from its own folder: this script lies in another one.
    return createRequire(`${request.home}/package.json`)('@huggingface/transformers');
  } catch (error) {
    answer.broken = String(error?.message ?? error);
    return null;
  }
}

async function ask(library) {
  const { env } = library;
  answer.transformersjs = env.version;
  answer.onnxruntime = env.backends.onnx.versions?.node ?? null;
  env.allowRemoteModels = false;
  env.localModelPath = dirname(request.bundle);
  env.useFSCache = env.useBrowserCache = false;
  // A folder is given by its whole path: localModelPath serves names that the Hub would allow, not `fp32+length=64`.
  const tokenizer = await library.AutoTokenizer.from_pretrained(request.bundle);
  if (request.padding_side) tokenizer.padding_side = request.padding_side;
  tokenizer.pad_token_id ??= request.pad_id;
  const settings = {
    dtype: 'fp32', // no suffix: onnx/model.onnx, whatever its precision
    device: 'cpu',
    session_options: { intraOpNumThreads: 1, interOpNumThreads: 1 },
  };
  const model = await library[CLASSES[request.task]].from_pretrained(request.bundle, settings);
  const pipeline = request.pooling
    ? new library.FeatureExtractionPipeline({ task: request.task, model, tokenizer })
    : null;
  answer.groups = [];
  for (const group of request.groups) {
    const inputs = tokenizer(group.texts, { text_pair: group.pairs, padding: true });
    const found = { input_ids: inputs.input_ids.tolist().map((row) => row.map(Number)) };
    found.output = plain(await run(library, model, inputs));
    if (request.steps) found.tokens = await generate(model, inputs);
    if (pipeline) {
      found.pooled = plain(await pipeline(group.texts, { pooling: request.pooling, normalize: request.normalize }));
    }
    answer.groups.push(found);
  }
}

/** Logits or hidden states; of a generator the logits of the first token that it writes. */
async function run(library, model, inputs) {
  const batch = inputs.input_ids.dims[0];
  const start = request.task === 'text2text-generation' && {
    decoder_input_ids: new library.Tensor('int64', Array(batch).fill(BigInt(request.start_id)), [batch, 1]),
  };
  const outputs = await model({ ...inputs, ...start });
  const found = outputs.last_hidden_state ?? outputs.logits;
  return request.steps ? found.slice(null, -1, null) : found;
}

/** Greedy tokens, without what a generation_config adds to the model's own choice. */
async function generate(model, inputs) {
  const greedy = { do_sample: false, num_beams: 1, repetition_penalty: 1, no_repeat_ngram_size: 0 };
  const sequences = await model.generate({ ...inputs, ...greedy, max_new_tokens: request.steps });
  const read = request.task === 'text2text-generation' ? 1 : inputs.input_ids.dims[1];
  return sequences.tolist().map((row) => row.slice(read).map(Number));
}

function plain(tensor) {
  return { shape: tensor.dims, values: Array.from(tensor.to('float32').data) };
}
