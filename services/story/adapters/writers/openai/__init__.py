"""The writer for every endpoint that speaks OpenAI's chat completions: OpenAI itself, Azure's, Gemini's, vLLM, Ollama, llama.cpp.

They agree on the request and differ in what they send back. `event_stream` cuts the bytes into events, `answer` reads one event,
`reasoning` takes out what the model only thought, `opening` finds the title, `manuscript` keeps the story within its length, and
`failures` says in the writers' own terms what went wrong.
"""

from .writer import OpenAIWriter

__all__ = ["OpenAIWriter"]
