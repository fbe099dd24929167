"""OpenAI's Responses API: its requests told as chat requests, and answers told as its responses and events."""
