"""What a table cannot say by itself: doubts, detection, transfer, and what a memory does."""
