"""Claims of papers, registered before they are tested: the claim, its test, and the verdict by a rule."""
