"""What a terminal, a server and a page need to hold a conversation: prompts, history, replies that stop."""
