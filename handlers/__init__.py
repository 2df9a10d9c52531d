"""What a message means. Decisions are pure and return frozen plans; `execute` is the one file that acts."""
