"""A server that speaks the OpenAI API: settings, batching, requests, replies, the page, and what guards the door."""
