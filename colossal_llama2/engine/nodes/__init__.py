"""Starting and surviving on many nodes; nothing here imports torch, so that these commands start at once."""
