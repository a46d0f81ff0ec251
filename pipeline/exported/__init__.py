"""What goes into an exported directory or runs beside it: files that must work where this package is not installed."""
