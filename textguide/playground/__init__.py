"""A page to play on: write, look at what guidance did, fork, constrain, fill a canvas, caption."""
