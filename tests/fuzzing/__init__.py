"""Fuzzers: random cases against ground truth, by command for thousands of them, and a fixed sample in the tests."""
