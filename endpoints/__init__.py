"""The one client of OpenAI-compatible servers: pace, retries, and errors that repeat no prompt."""
