"""Base classes of data sets, and what all of them share."""
