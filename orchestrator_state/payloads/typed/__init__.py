"""Values of the application's own types, by way of pydantic."""
