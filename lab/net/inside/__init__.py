"""What runs inside the lab's kernel: standard library only, and little of it, for start-up is slow there."""
