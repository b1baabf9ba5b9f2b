"""Plans as text, pictures, pages and files."""
