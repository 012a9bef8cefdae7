"""An OpenAI-compatible server around the engine, with a web page and structured answers."""
