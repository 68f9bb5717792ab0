"""The writer for endpoints that speak OpenAI's chat completions: OpenAI itself, Azure's, Gemini's, vLLM, Ollama, llama.cpp.

They agree on the request and differ in the answer. `event_stream` cuts the bytes into events, `answer` reads one event,
`reasoning` removes the model's reasoning, `opening` finds the title, `manuscript` keeps the story within its length, and
`failures` translates errors into WriterUnavailable and WriterRefused.
"""

from .writer import OpenAIWriter

__all__ = ["OpenAIWriter"]
