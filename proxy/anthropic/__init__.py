"""Anthropic's Messages API: its requests, its answers and its errors, to and from the shapes that the rest of the proxy has.

Requests become the fields of an OpenAI chat request (`to_chat.py`) and back (`from_chat.py`); answers are parts
(`../answer.py`), written as a body (`body.py`) or as events (`writer.py`), and read from either (`reader.py`). Knows no
HTTP but the headers' names; who answers, the engine or an upstream, is decided elsewhere.
"""
