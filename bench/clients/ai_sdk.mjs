// The AI SDK with its OpenAI-compatible provider: a streamed chat. Prints what came as one line of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const provider = createOpenAICompatible({
  name: "penstock",
  baseURL: process.env.CLIENT_URL,
  apiKey: process.env.CLIENT_KEY,
  includeUsage: true,
});
const result = streamText({
  model: provider(process.env.CLIENT_MODEL),
  prompt: process.env.CLIENT_QUESTION,
  temperature: 0,
  maxOutputTokens: Number(process.env.CLIENT_MAX_TOKENS),
  maxRetries: 0,
});
let pieces = 0, text = "";
for await (const piece of result.textStream) {
  pieces += 1;
  text += piece;
}
const usage = await result.usage;
console.log(JSON.stringify({ pieces, text, finish: await result.finishReason, tokens: usage.outputTokens }));
