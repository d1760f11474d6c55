"""Several processes, each with a device, that make one thing: what each of them does of it, and how they meet."""
