"""The door for plain loops: passes calls and optimizer steps to the training."""
