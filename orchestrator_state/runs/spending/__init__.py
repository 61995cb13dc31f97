"""What the steps of a run use of models: recorded by their functions, and committed with them."""
