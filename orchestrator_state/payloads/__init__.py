"""A value and its stored text, both ways."""
