"""Where the data is: one file a format."""
