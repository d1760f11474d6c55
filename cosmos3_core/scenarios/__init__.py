"""What can be asked for: tasks, their defaults as data, the checks on a request, prompts and conditioning input."""
