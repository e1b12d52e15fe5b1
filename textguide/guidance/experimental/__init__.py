"""Methods whose paper leaves something open or is about other models; each docstring describes the differences."""
