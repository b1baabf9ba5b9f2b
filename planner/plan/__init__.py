"""What a plan is, as values, on one device and on several. They import nothing above them."""
