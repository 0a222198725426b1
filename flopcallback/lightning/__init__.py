"""The door for Lightning: its events, handed to the training."""
