"""Claims of papers, registered before they are tested: what is claimed, what is run, and the verdict by rule."""
