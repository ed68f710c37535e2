"""What comes in and goes out of the trainer, and what happens at a fence."""
