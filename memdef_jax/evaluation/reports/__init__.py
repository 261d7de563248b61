"""What was found as tables, words, pictures and pages."""
