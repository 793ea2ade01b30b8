"""The export room: a model's plans, weights and text written as a static site that a browser runs."""
