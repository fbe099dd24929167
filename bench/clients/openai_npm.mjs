// OpenAI's npm package: a streamed chat. Prints what came as one line of JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.CLIENT_URL, apiKey: process.env.CLIENT_KEY, maxRetries: 0 });
const stream = await client.chat.completions.create({
  model: process.env.CLIENT_MODEL,
  messages: [{ role: "user", content: process.env.CLIENT_QUESTION }],
  temperature: 0,
  max_tokens: Number(process.env.CLIENT_MAX_TOKENS),
  stream: true,
  stream_options: { include_usage: true },
});
let pieces = 0, text = "", finish = null, tokens = null;
for await (const chunk of stream) {
  const choice = chunk.choices[0];
  if (choice?.delta.content) {
    pieces += 1;
    text += choice.delta.content;
  }
  finish = choice?.finish_reason ?? finish;
  tokens = chunk.usage?.completion_tokens ?? tokens;
}
console.log(JSON.stringify({ pieces, text, finish, tokens }));
