"""One line in a training script: callbacks of trainers that other packages have."""
