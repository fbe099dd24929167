"""langchain-openai: a streamed chat. Prints what came as one line of JSON."""

import json
import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ["CLIENT_URL"],
    api_key=os.environ["CLIENT_KEY"],
    model=os.environ["CLIENT_MODEL"],
    temperature=0,
    max_tokens=int(os.environ["CLIENT_MAX_TOKENS"]),
    stream_usage=True,
    max_retries=0,
)
pieces, text, finish, tokens = 0, "", None, None
for chunk in model.stream(os.environ["CLIENT_QUESTION"]):
    if chunk.content:
        pieces += 1
        text += chunk.content
    finish = chunk.response_metadata.get("finish_reason") or finish
    if chunk.usage_metadata:
        tokens = chunk.usage_metadata["output_tokens"]
print(json.dumps({"pieces": pieces, "text": text, "finish": finish, "tokens": tokens}))
