"""The door for plain loops: calls and optimizer steps, handed to the training."""
