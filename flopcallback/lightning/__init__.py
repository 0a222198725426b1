"""The door for Lightning: passes its events to the training."""
