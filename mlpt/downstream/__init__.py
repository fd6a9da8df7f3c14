"""Fine-tuning, multi-task training and evaluation."""
