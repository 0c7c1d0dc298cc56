"""Where the data is: one file a format. Files are read, and indexed once in the cache."""
