"""Floor 8: what is served as HTTP: OpenAI's interface over an engine, and the chat page."""
