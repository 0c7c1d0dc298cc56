"""The operating system: files, signals, child processes, environment variables."""
