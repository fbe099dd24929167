"""Hugging Face models made servable: loading, attention hook, INT8 linears, KV cache, tokenizer."""
