"""A page in the browser on which guidance can be tried out and inspected."""
