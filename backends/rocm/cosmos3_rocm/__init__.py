"""AMD GPUs for cosmos3. Found through the entry point; `plugin` is the backend."""
