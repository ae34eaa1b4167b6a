"""Load tests of any OpenAI endpoint."""
